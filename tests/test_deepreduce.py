"""DeepReDuce's configurations against the counts of the released code, and the choice by budget."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relufair import masks, models
from relufair.linearize import deepreduce
from relufair.linearize.deepreduce import Configuration

# ResNet-18 on 32 x 32 at width 64: ReLUs left by the code of the culled stages, full and thinned.
TABLE = {
    "": (491_520, 245_760), "23": (294_912, 147_456), "234": (262_144, 131_072),
    "1": (229_376, 114_688), "14": (196_608, 98_304), "13": (163_840, 81_920),
    "134": (131_072, 65_536), "12": (98_304, 49_152), "124": (65_536, 32_768),
    "123": (32_768, 16_384),
}  # fmt: skip


def configuration(code, thinned=False, scale=1.0):
    return Configuration(tuple(map(int, code)), thinned, scale)


def masked(arch, width=4, size=32):
    net = models.build(arch, classes=2, channels=1, width=width)
    return masks.masked(net, (1, size, size))


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
    with pytest.raises(ValueError, match="none is above that of linear=0.4"):
        deepreduce.criticality({1: 0.4, 2: 0.3}, 0.4, relus)


def test_what_cannot_be_is_refused():
    """Other networks, stages that are not there, and fractions of a channel."""
    with pytest.raises(ValueError, match="MLP has no stages to cull: allowed are ResNet, VGG"):
        deepreduce.kept(masks.masked(models.MLP(2, (3,), 2), (2,)), Configuration())
    with pytest.raises(ValueError, match=r"culled=\(4,\): allowed are 1, 2, 3$"):
        deepreduce.kept(masked("wideresnet22_8", size=16), Configuration((4,)))
    with pytest.raises(ValueError, match="scale=0.3: must make a whole number of the width 64"):
        deepreduce.configurations("resnet18", 64, 3, 32, scales=(1, 0.3))
    with pytest.raises(ValueError, match="width=2: .*multiple of 4"):
        deepreduce.configurations("wideresnet22_8", 4, 3, 32, scales=(0.5,))
