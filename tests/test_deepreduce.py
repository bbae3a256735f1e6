"""DeepReDuce's configurations against the counts of the released code, and the choice by budget."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relufair import masks, models, report, tracing, training
from relufair.linearize import deepreduce
from relufair.linearize.deepreduce import Configuration
from relufair.methods import DeepReDuce, OneStage
from relufair.store import Store
from relufair.study import AccuracyDrops
from relufair.training import logits

# ResNet-18 on 32 x 32 at width 64: ReLUs left by the code of the culled stages, full and thinned.
TABLE = {
    "": (491_520, 245_760), "23": (294_912, 147_456), "234": (262_144, 131_072),
    "1": (229_376, 114_688), "14": (196_608, 98_304), "13": (163_840, 81_920),
    "134": (131_072, 65_536), "12": (98_304, 49_152), "124": (65_536, 32_768),
    "123": (32_768, 16_384),
}  # fmt: skip


def configuration(code, thinned=False, scale=1.0):
    return Configuration(tuple(map(int, code)), thinned, scale)


def make(**changes):
    """A hasty study of digits."""
    parameters = {
        "dataset": "digits", "target": "auto", "groups": "auto", "keep": "paper",
        "keep_in_test": False, "size": 0, "arch": "resnet18", "width": 2, "methods": ["deepreduce"],
        "budgets": [0.5], "seeds": [0], "schedule": "ci",
        "training": {"teacher_epochs": 1, "student_epochs": 1}, "workers": 1,
    }  # fmt: skip
    return AccuracyDrops(**parameters | changes)


def masked(arch, width=4, size=32):
    net = models.build(arch, classes=2, channels=1, width=width)
    return tracing.masked(net, (1, size, size))


@pytest.fixture(scope="module")
def counts():
    """All configurations of the paper's ResNet-18, at one and a quarter of its channels."""
    return deepreduce.configurations("resnet18", 64, 3, 32, scales=(1.0, 0.25))


def test_the_table_of_the_released_code(counts):
    """Full, thinned, and the linear network."""
    for code, (full, thinned) in TABLE.items():
        assert counts[configuration(code)] == full
        assert counts[configuration(code, thinned=True)] == thinned
        assert counts[configuration(code, scale=0.25)] == full // 4
    assert counts[configuration("1234")] == 0
    assert configuration("1234", thinned=True) not in counts
    assert len(counts) == 2 * (2 * 16 - 1)


@pytest.mark.parametrize(
    ("arch", "stages"),
    [
        ("resnet34", (393_216, 262_144, 196_608, 49_152)),
        ("wideresnet22_8", (671_744, 458_752, 229_376)),
        ("vgg19", (131_072, 65_536, 65_536, 32_768, 8_192)),
    ],
)
def test_single_stages(arch, stages):
    """What is left if all stages but one are culled, at a sixteenth of the paper's width."""
    counts = deepreduce.configurations(arch, 4, 3, 32)
    everything = set(range(1, len(stages) + 1))
    for stage, relus in enumerate(stages, start=1):
        assert counts[Configuration(tuple(sorted(everything - {stage})))] == relus // 16


@pytest.mark.parametrize(
    ("arch", "stays"), [("resnet18", "relu1"), ("resnet34", "relu1"), ("wideresnet22_8", "relu2")]
)
def test_thinning_keeps_the_relu_between_the_convolutions(arch, stays):
    """And drops the one after the sum: first in a block of a WideResNet, last in a ResNet's."""
    kept = deepreduce.kept(masked(arch, size=16), Configuration(thinned=True))
    assert {name: bool(k.all()) for name, k in kept.items()} == {
        name: name.endswith(stays) for name in kept
    }
    assert not [name for name, k in kept.items() if k.any() != k.all()]


def test_thinning_a_vgg_drops_every_second():
    """Counted within a stage, the first stays."""
    net = masked("vgg19", size=16)
    kept = deepreduce.kept(net, Configuration((2,), thinned=True))
    found = [
        [bool(kept[name].all()) for name in names] for names in deepreduce.stages(net).values()
    ]
    assert found == [[True, False], [False, False], *[[True, False] * 2] * 3]


@pytest.mark.parametrize("arch", ["resnet18", "wideresnet22_8", "vgg19"])
def test_a_culled_stage_is_linear_and_the_rest_is_not_touched(arch):
    """Frozen, the network has exactly as many ReLUs as the table says, and where it says."""
    counts, net = deepreduce.configurations(arch, 4, 1, 16), masked(arch, size=16)
    for configuration in (Configuration((2, 3)), Configuration((1,), thinned=True)):
        kept = deepreduce.kept(net, configuration)
        other = masks.freeze(copy.deepcopy(net), kept)
        assert masks.count(other) == counts[configuration] > 0
        for name, site in masks.sites(other).items():
            culled = int(name[len("layer")]) in configuration.culled
            assert torch.equal(site.alpha, kept[name].float())
            assert not (culled and site.alpha.any())
            assert culled or configuration.thinned or site.alpha.all()


def test_the_largest_that_a_budget_allows(counts):
    """At the budgets of the study; ties go to more channels, then to the one that is not thinned."""
    full = {c: n for c, n in counts.items() if c.scale == 1}
    chosen = {
        units: str(deepreduce.largest(full, units))
        for units in (491_520, 245_760, 98_304, 49_152, 24_576, 9_830, 0)
    }
    assert chosen == {
        491_520: "none", 245_760: "none thinned", 98_304: "12", 49_152: "12 thinned",
        24_576: "123 thinned", 9_830: "None", 0: "1234",
    }  # fmt: skip
    assert str(deepreduce.largest(counts, 9_830)) == "123 ×0.25"
    assert str(deepreduce.largest(counts, 4_915)) == "123 thinned ×0.25"
    assert deepreduce.largest(counts, 4_095) is None


@settings(max_examples=200)
@given(st.integers(0, 500_000))
def test_no_allowed_configuration_is_larger(counts, units):
    """By exhaustion; and of equally large ones, the least is done to the network."""
    best = deepreduce.largest(counts, units)
    allowed = {c: n for c, n in counts.items() if n <= units and (n > 0) == (units > 0)}
    if best is None:
        assert not allowed
        return
    assert counts[best] == max(allowed.values())
    rivals = [c for c, n in allowed.items() if n == counts[best]]
    assert best.scale == max(c.scale for c in rivals)
    rivals = [c for c in rivals if c.scale == best.scale]
    assert best.thinned == all(c.thinned for c in rivals)
    rivals = [c for c in rivals if c.thinned == best.thinned]
    assert len(best.culled) == min(len(c.culled) for c in rivals)


def test_ties_go_to_the_network_that_is_changed_least():
    """Channels first, then thinning, then the number of stages."""
    order = [
        Configuration((1, 2, 3), thinned=True), Configuration((1,), thinned=True),
        Configuration((2, 3)), Configuration((4,)),
    ]  # fmt: skip
    counts = {Configuration(scale=0.5): 10}
    for configuration in order:
        counts[configuration] = 10
        assert deepreduce.largest(counts, 11) == configuration


def test_the_choice_does_not_hang_on_the_order(counts):
    """A table read backwards gives the same."""
    backwards = dict(reversed(counts.items()))
    for units in sorted(set(counts.values())):
        assert deepreduce.largest(counts, units) == deepreduce.largest(backwards, units)


def test_code_names():
    """As in the paper's figures."""
    names = [Configuration(), Configuration((1, 2, 3)), Configuration((1,), True, 0.5)]
    assert list(map(str, names)) == ["none", "123", "1 thinned ×0.5"]


def test_criticality_is_its_formula():
    """Accuracy per ReLU to the 0.07, by hand; the largest is 1, and order does not matter."""
    relus = {1: 262_144, 2: 131_072, 3: 65_536, 4: 32_768}
    found = deepreduce.criticality({1: 0.50, 2: 0.60, 3: 0.65, 4: 0.40}, 0.40, relus)
    raw = [0.10 / 262_144**0.07, 0.20 / 131_072**0.07, 0.25 / 65_536**0.07, 0.0]
    assert found == pytest.approx({k + 1: c / raw[2] for k, c in enumerate(raw)})
    assert max(found.values()) == 1
    # Twice the ReLUs for the same accuracy: worth 2 ** -0.07 as much.
    assert deepreduce.criticality({1: 0.5, 2: 0.5}, 0.4, relus)[1] == pytest.approx(2**-0.07)


def test_without_a_gain_over_the_linear_network_there_is_no_criticality():
    """A largest one of 1 would say that it matters most, of what does nothing or harm."""
    relus = {1: 2, 2: 1}
    for accuracies in ({1: 0.4, 2: 0.3}, {1: 0.2, 2: 0.3}):
        found = deepreduce.criticality(accuracies, 0.4, relus)
        assert list(found) == [1, 2] and np.isnan(list(found.values())).all()
    assert deepreduce.criticality({1: 0.5, 2: 0.3}, 0.4, relus)[2] < 0


@pytest.fixture(scope="module")
def valued(tmp_path_factory):
    """A study with a finished criticality, its store and the table."""
    store = Store(tmp_path_factory.mktemp("store"))
    # At a tenth stages 1 and 2 are culled, the rest thinned; 256 ReLUs are stage 4's alone.
    study = make(methods=["deepreduce"], budgets=[0.1, 256 / 3840], seeds=[0, 1])
    return study, store, study.criticality(store=store)


def test_the_criticality_of_a_study(valued):
    """By hand, from the stored networks and the validation images."""
    study, store, table = valued
    assert (
        table["stage"].tolist() == [1, 2, 3, 4] * 2 and table["seed"].tolist() == [0] * 4 + [1] * 4
    )
    assert table["relus"].tolist() == [2048, 1024, 512, 256] * 2
    for run, (_, own) in zip(study.runs(), table.groupby("seed"), strict=True):
        pipe = OneStage(run, store, None)
        right = {}
        for stage in range(5):
            net = pipe.net(stage)
            left = {
                name[len("layer")] for name, site in masks.sites(net).items() if site.alpha.any()
            }
            assert left == ({str(stage)} if stage else set())
            assert masks.count(net) == (2048 >> stage - 1 if stage else 0)
            part = pipe.part("validation")
            right[stage] = (logits(net, part).argmax(1) == part.labels).double().mean().item()
        linear = right.pop(0)
        assert own["accuracy"].tolist() == pytest.approx(list(right.values()))
        assert own["linear"].tolist() == pytest.approx([linear] * 4)
        relus = dict(zip(own["stage"], own["relus"], strict=True))
        expected = deepreduce.criticality(right, linear, relus)
        assert own["criticality"].tolist() == pytest.approx(list(expected.values()), nan_ok=True)


def test_the_choice_by_count_stands_beside_it(valued):
    """By budget, the stages that the largest configuration culls."""
    _, _, table = valued
    tenth, last = 0.1, 256 / 3840
    assert table["culled_at"].tolist() == [[tenth, last], [tenth, last], [last], []] * 2


def test_criticality_and_budgets_share_their_students(valued, monkeypatch):
    """Nothing is trained twice, nor by a study of other methods and budgets."""
    study, store, table = valued
    monkeypatch.setattr(training, "fit", None)
    changes = {"methods": ["snl"], "budgets": [0.5]}
    columns = ["seed", "stage", "relus", "accuracy", "linear", "criticality"]
    again = replace(study, **changes).criticality(store=store)
    pd.testing.assert_frame_equal(again[columns], table[columns])
    tally = replace(study, budgets=[256 / 3840, 0.0]).run(store=store)
    assert sorted(set(tally["relus"])) == [0, 256, 3840]


def test_a_student_is_trained_as_the_network_that_it_becomes(tmp_path, monkeypatch):
    """Plain while it trains, with masks ever after, and the same function: culled, and thinned."""
    trained, fit = [], training.fit

    def watching(net, *args, **kwargs):
        trained.append(net)
        return fit(net, *args, **kwargs)

    monkeypatch.setattr(training, "fit", watching)
    (run,) = make(budgets=[0.1]).runs()
    x = torch.randn(8, 1, 16, 16)
    for kind, of in ((OneStage, 3), (DeepReDuce, 384)):
        pipe = kind(run, Store(tmp_path), None)
        student = pipe.linearized(pipe.linear(of)).eval()
        assert masks.sites(student) and not masks.sites(trained[-1])
        assert torch.equal(trained[-1].eval()(x), student(x))


@pytest.mark.parametrize(("arch", "stages"), [("vgg19", 5), ("wideresnet22_8", 3)])
def test_every_network_has_its_stages(tmp_path, arch, stages):
    """VGG-19 has five, a WideResNet three."""
    study = make(arch=arch, width=4 if arch == "wideresnet22_8" else 1)
    table = study.criticality(store=Store(tmp_path))
    assert table["stage"].tolist() == list(range(1, stages + 1))
    assert table["relus"].sum() == masks.total(masked(arch, study.width, 16))
    assert len(report.criticality(table)) == stages + 1


def worth(*rows):
    """A table of two stages; a row a seed: accuracy with stage 1, with stage 2, with none."""
    tables = []
    for seed, (*right, linear) in enumerate(rows):
        found = deepreduce.criticality({1: right[0], 2: right[1]}, linear, {1: 1, 2: 1})
        tables.append(pd.DataFrame({
            "seed": seed, "stage": [1, 2], "relus": [200, 100], "accuracy": right, "linear": linear,
            "criticality": found.values(), "culled_at": [[0.5, 0.1], []],
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def test_the_table_for_people_has_means_and_ranges():
    """And the order by criticality beside the budgets that cull a stage by its count."""
    shown = report.criticality(worth((0.9, 0.8, 0.7), (0.8, 0.85, 0.75)))
    assert shown.columns.name == "n = 2 seeds" and shown["ReLUs"].tolist() == [200, 100, 0]
    assert shown["validation accuracy (%)"].tolist() == [
        "85.0 [80.0, 90.0]", "82.5 [80.0, 85.0]", "72.5 [70.0, 75.0]",
    ]  # fmt: skip
    assert shown["criticality"].tolist() == ["0.75 [0.50, 1.00]", "0.75 [0.50, 1.00]", ""]
    assert shown["culled by count"].tolist() == ["at 50 %, 10 %", "never", ""]
    shown = report.criticality(worth((0.9, 0.8, 0.7)))
    assert shown["culled by criticality"].tolist() == ["2.", "1.", ""]


def test_the_words_on_criticality():
    """What would go first, in how many seeds, and where nothing says so."""
    both = report.least_critical(worth((0.9, 0.8, 0.7), (0.9, 0.75, 0.7), (0.80, 0.85, 0.75)))
    assert "stage 2 would be culled first" in both and "in 2 of 3 seeds" in both
    assert "nothing" not in both
    some = report.least_critical(worth((0.9, 0.8, 0.7), (0.6, 0.7, 0.7)))
    assert "stage 2 would be culled first" in some and "in 1 of 1 seed." in some
    assert "In 1 of 2 seeds (1) no stage's ReLUs bring anything" in some
    none = worth((0.6, 0.7, 0.7))
    assert report.least_critical(none).startswith("In 1 of 1 seed (0) no stage's ReLUs")
    shown = report.criticality(none)
    assert (
        shown["criticality"].tolist() == shown["culled by criticality"].tolist() == ["—", "—", ""]
    )


def test_what_cannot_be_is_refused():
    """Other networks, stages that are not there, and fractions of a channel."""
    with pytest.raises(ValueError, match="MLP has no stages to cull: allowed are ResNet, VGG"):
        deepreduce.kept(tracing.masked(models.MLP(2, (3,), 2), (2,)), Configuration())
    with pytest.raises(ValueError, match=r"culled=\(4,\): allowed are 1, 2, 3$"):
        deepreduce.kept(masked("wideresnet22_8", size=16), Configuration((4,)))
    with pytest.raises(ValueError, match="scale=0.3: must make a whole number of the width 64"):
        deepreduce.configurations("resnet18", 64, 3, 32, scales=(1, 0.3))
    with pytest.raises(ValueError, match="width=2: .*multiple of 4"):
        deepreduce.configurations("wideresnet22_8", 4, 3, 32, scales=(0.5,))
