"""The pipeline of stages: what is computed, what is taken from the store, and its keys."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from relufair import cli, config, masks, pipeline
from relufair.data import Choice
from relufair.methods import PIPELINES
from relufair.pipeline import VERSIONS, Run, Snl
from relufair.store import Store, key_of, project_root
from relufair.study import AccuracyDrops, fact_by_budget, identity, words

# Few steps, and a descent that still passes its budgets one after the other.
QUICK = {
    "teacher_epochs": 1, "masks_lr": 0.01, "lasso_growth": 1.4, "finetune_epochs": 1,
}  # fmt: skip
PARAMETERS = {
    "dataset": "digits", "target": "auto", "groups": "auto", "keep": "paper",
    "keep_in_test": False, "size": 0, "arch": "resnet18", "width": 2, "methods": ["snl"],
    "budgets": [0.5, 0.1], "seeds": [0], "schedule": "ci", "training": QUICK, "workers": 1,
}  # fmt: skip

GOLDEN = {
    "teacher": [1.899],
    "snapshot": [85, 117],
    "finetune": [1.121, 1.178],
    "predictions": [0.1922],
}
# Relative. Rounding differs between processors, and each stage starts from what that has made of the
# one before: instructions for AVX2 instead of AVX-512 moved the last number by a quarter.
APART = {"teacher": 0.05, "snapshot": 0.1, "finetune": 0.2, "predictions": 0.5}
PINNED = ("4988e6724cf308c4304c4a43", "47a771379cb5")


def make(**changes):
    return AccuracyDrops(**PARAMETERS | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with one finished study, and its tally."""
    store = Store(tmp_path_factory.mktemp("store"))
    return store, make().run(store=store)


def written(store):
    """Time of writing of every artifact."""
    return {
        p.parent: json.loads(p.read_text())["facts"]["written"]
        for p in store.root.glob("*/*/config.json")
    }


def test_a_fact_that_is_not_known_is_said():
    """As the commit, where the package is no clone: it is kept as None."""
    facts = {None: {"commit": None}, 12: {"commit": "abc"}, 5: {}}
    pipe = SimpleNamespace(
        units={12: 0.5, 5: 0.1}, reached={12: 12, 5: 5},
        predictions=lambda units: SimpleNamespace(facts=facts[units]),
    )  # fmt: skip
    known = {1.0: "unknown", 0.5: "abc", 0.1: "unknown"}
    assert fact_by_budget(pipe, "commit", "unknown") == known


def test_the_tally_is_complete_and_exact(finished):
    """Every group at every budget; counts of ReLUs and images as they are."""
    _, table = finished
    assert table[["budget", "group"]].drop_duplicates().shape[0] == len(table) == 6
    assert table["budget"].unique().tolist() == [1.0, 0.5, 0.1]
    total = 491_520 // 32 // 4  # width 2 instead of 64, 16 x 16 instead of 32 x 32
    assert table["relus"].unique().tolist() == [total, total // 2, total // 10]
    assert table.groupby("budget")["n"].sum().unique() == [360]
    assert (table["both"] <= table[["correct", "base"]].min(axis=1)).all()
    full = table[table["budget"] == 1]
    assert (full["correct"] == full["base"]).all()


def test_the_networks_have_exactly_the_masks_of_the_budget(finished):
    """Teacher with all ReLUs; finetuned networks with the snapshot's masks and other weights."""
    store, _ = finished
    run = Snl(make().runs()[0], store, None)
    for units in run.units:
        snapshot, finetuned = run.snapshots[units], run.linear(units)
        net = run.linearized(finetuned)
        assert masks.count(net) == units
        alphas = [name for name in snapshot.arrays if name.endswith(".alpha")]
        assert alphas and all(
            np.array_equal(snapshot.arrays[a] > 0, finetuned.arrays[a] > 0) for a in alphas
        )
        assert not np.array_equal(snapshot.arrays["fc.weight"], finetuned.arrays["fc.weight"])


def test_predictions_and_tally_agree(finished):
    """The per-image predictions, counted by hand, give the tally."""
    store, table = finished
    run = Snl(make().runs()[0], store, None)
    images = run.predictions(None).tables["images"]
    assert set(images["split"]) == {"validation", "test"} and images["margin"].between(0, 1).all()
    test = images[images["split"] == "test"]
    assert (test["row"].to_numpy() == run.splits.test.rows).all()
    right = (test["label"] == test["prediction"]).to_numpy()
    low = run.splits.test.labels < 5
    counted = table[table["budget"] == 1].set_index("group")["correct"]
    assert counted.to_dict() == {"classes 0–4": right[low].sum(), "classes 5–9": right[~low].sum()}


def test_a_second_run_trains_nothing(finished, monkeypatch):
    """All is taken from the store; nothing is rewritten."""
    store, table = finished
    before = written(store)
    monkeypatch.setattr(pipeline.training, "fit", None)
    pd.testing.assert_frame_equal(make().run(store=store), table)
    assert written(store) == before


def test_other_groups_and_fewer_budgets_train_nothing(finished, monkeypatch):
    """The networks do not depend on whom one compares, nor on the other budgets."""
    store, table = finished
    monkeypatch.setattr(pipeline.training, "fit", None)
    by_class = make(groups="label", budgets=[0.1]).run(store=store)
    assert by_class["group"].nunique() == 10
    total = by_class.groupby("budget")["correct"].sum()
    assert total.to_dict() == table.groupby("budget")["correct"].sum().loc[[0.1, 1.0]].to_dict()


def test_a_lower_budget_goes_on_where_the_descent_ended(finished, monkeypatch):
    """And finds what a descent that knew of it from the start finds."""
    store, _ = finished
    starts, fit = [], pipeline.training.fit

    def watching(*args, **kwargs):
        if isinstance(args[2], pipeline.snl.Descent):
            starts.append(kwargs["checkpoint"].exists())
        return fit(*args, **kwargs)

    monkeypatch.setattr(pipeline.training, "fit", watching)
    later = make(budgets=[0.02]).run(store=store)
    assert starts == [True]
    at_once = make(budgets=[0.5, 0.1, 0.02]).run(store=Store(store.root.parent / "other"))
    lowest = at_once[at_once["budget"] == 0.02].reset_index(drop=True)
    pd.testing.assert_frame_equal(later[later["budget"] == 0.02].reset_index(drop=True), lowest)


def test_a_budget_in_between_starts_over(finished, monkeypatch):
    """The ended descent is past it, so it is run again, and agrees with its stored snapshots."""
    store, _ = finished
    run = Snl(make(budgets=[0.5, 0.25, 0.1]).runs()[0], store, None)
    old = {u: run._snapshot(u).facts["step"] for u in (1920, 384)}
    steps = {u: s.facts["step"] for u, s in run.snapshots.items()}
    assert old[1920] < steps[960] < old[384]


def test_a_run_killed_in_the_middle_loses_at_most_an_epoch(tmp_path, finished):
    """Kill -9 during the search; the next run goes on and ends with the same numbers."""
    _, table = finished
    code = (
        f"from relufair.study import AccuracyDrops; import warnings, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"warnings.simplefilter('ignore'); AccuracyDrops(**{PARAMETERS!r}).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    store, deadline = Store(), time.time() + 60
    while not list(store.root.glob("work/descent-*/checkpoint")):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(store.root.glob("finetune/*"))
    again = make().run(store=store)
    same = [c for c in table.columns if c != "date"]
    pd.testing.assert_frame_equal(again[same], table[same])


def test_an_executor_gets_one_call_a_run(finished):
    """As that of a cluster would; what is in the store is not computed again."""
    store, table = finished
    done = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function, /, *arguments, **named):
            done.append(arguments)
            return super().submit(function, *arguments, **named)

    with Counting(1) as pool:
        pd.testing.assert_frame_equal(make().run(store=store, pool=pool), table)
    assert [run.seed for (run,) in done] == [0]


def test_processes_give_the_same_table(tmp_path):
    """Two seeds in two processes: the tally of two seeds here."""
    quick = QUICK | {"finetune_epochs": 1}
    here = make(seeds=[0, 1], budgets=[0.5], training=quick).run(store=Store(tmp_path / "a"))
    there = make(seeds=[0, 1], budgets=[0.5], training=quick, workers=2)
    table = there.run(store=Store(tmp_path / "b"))
    assert table["seed"].unique().tolist() == [0, 1]
    counts = ["train_n", "n", "relus", "seed", "budget", "group"]
    pd.testing.assert_frame_equal(table[counts], here[counts])


def test_a_search_that_ends_too_early_names_what_to_raise(tmp_path):
    """Budget, epochs, and the settings that help."""
    slow = make(training=QUICK | {"search_max_epochs": 1})
    with pytest.raises(RuntimeError, match=r"budgets=\[0.5, 0.1\]: not reached in 1 epochs.*Raise"):
        slow.run(store=Store(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet19"}, "arch='resnet19': allowed are resnet18, resnet34"),
        ({"methods": ["magic"]}, "methods='magic': allowed are snl, deepreduce"),
        ({"methods": []}, "methods=.*at least one"),
        ({"dataset": "mnist"}, "dataset='mnist': allowed are digits"),
        ({"budgets": [1.5]}, "budget=1.5"),
        ({"budgets": [1e-6]}, "would leave none of the 3840 ReLUs"),
        ({"budgets": [0.1, 0.1]}, "budgets=.*none twice"),
        ({"budgets": [0.5, 0.50001]}, "two of them keep as many ReLUs: \\[1920, 1920\\]"),
        ({"training": {"teacher_lr": float("inf")}}, "teacher_lr=inf"),
        ({"training": {"masks_lr": 0.02}}, "masks_lr.*at most 0.01"),
        ({"training": {"flip": 1}}, "flip=1: must be true or false"),
        ({"seeds": []}, "seeds=.*at least one"),
        ({"seeds": [0.5]}, "seeds=0.5.*whole"),
        ({"seeds": [2**32]}, "seeds=4294967296: .* at least 0 and at most 4294967295"),
        ({"width": 0}, "width=0"),
        ({"workers": 0}, "workers=0"),
        ({"size": 8}, "size=8.*16"),
        ({"schedule": "night"}, "schedule='night': allowed are ci, laptop, paper"),
        ({"training": {"epochs": 3}}, "training='epochs': allowed are teacher_epochs"),
        ({"training": {"teacher_epochs": 0}}, "teacher_epochs=0"),
        ({"training": {"growth_rule": "x"}}, "growth_rule='x': allowed are stagnation, every"),
        ({"keep": "0.5,2"}, "keep='0.5,2'"),
    ],
)
def test_impossible_values_are_named(change, message):
    """Parameter, value, and what is allowed, before anything is computed."""
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_zero_is_the_fully_linear_network(tmp_path):
    """Allowed where it is asked for."""
    study = make(budgets=[0.0])
    table = study.run(store=Store(tmp_path))
    assert table["relus"].unique().tolist() == [3840, 0]
    run = Snl(study.runs()[0], Store(tmp_path), None)
    net = run.linearized(run.linear(0)).double().eval()
    a, b = torch.rand(2, 1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net((a + b) / 2), (net(a) + net(b)) / 2)


def test_keys_hold_what_matters_and_nothing_else():
    """Each stage's key changes with its own settings and its parents', and with no others."""
    store = Store("unused")

    def keys(**changes):
        plan = config.schedule("ci", changes.pop("training", {}))
        run = Snl(
            Run(Choice("digits").resolve(), "resnet18", 2, "snl", (0.5,), plan, 0), store, None
        )
        run.__dict__["splits"] = type("Splits", (), {"digest": "d"})
        stages = {
            "teacher": run.teacher_config, "descent": run.descent_config,
            "snapshot": run.snapshot_config(9), "finetune": run.linear_config(9),
        }  # fmt: skip
        return {k: key_of(k, VERSIONS[k], v) for k, v in stages.items()}

    usual = keys()
    expected = {
        "teacher_epochs": {"teacher", "descent", "snapshot", "finetune"},
        "weight_decay": {"teacher", "descent", "snapshot", "finetune"},
        "lasso": {"descent", "snapshot", "finetune"},
        "threshold": {"descent", "snapshot", "finetune"},
        "finetune_lr": {"finetune"},
        "search_max_epochs": set(),
    }
    for name, touched in expected.items():
        now = getattr(config.SCHEDULES["ci"], name)
        changed = keys(training={name: now + 1 if isinstance(now, int) else now * 2})
        assert {stage for stage in usual if usual[stage] != changed[stage]} == touched, name


def test_stages_behave_as_their_versions_say(finished):
    """What each stage computes, to what other processors may round differently.

    If this fails after a change of the code, and the change is meant, raise the version of each stage
    whose numbers moved in ``VERSIONS``, and renew the numbers.
    """
    store, _ = finished
    run = Snl(make().runs()[0], store, None)
    half, tenth = run.units
    found = {
        "teacher": run.teacher().tables["log"]["loss"].tolist(),
        "snapshot": [run.snapshots[u].facts["step"] for u in (half, tenth)],
        "finetune": [run.linear(u).tables["log"]["loss"][0] for u in (half, tenth)],
        "predictions": [run.predictions(half).tables["images"]["margin"].mean()],
    }
    for stage, numbers in GOLDEN.items():
        assert found[stage] == pytest.approx(numbers, rel=APART[stage]), stage
    assert VERSIONS == {
        "teacher": 1, "descent": 1, "snapshot": 1, "finetune": 1, "student": 1, "narrow": 1,
        "predictions": 1,
    }  # fmt: skip
    pinned = key_of("descent", 1, run.descent_config), run.splits.digest[:12]
    assert pinned == PINNED


@pytest.fixture(scope="module")
def all_methods(finished):
    """The tally of every method, in the store of the finished study."""
    store, _ = finished
    plan = QUICK | {"student_epochs": 1}
    table = make(methods=list(config.METHODS), budgets=[0.5, 0.1, 0.02], training=plan).run(
        store=store
    )
    return store, table.set_index(["method", "budget"])


def test_every_method_has_a_pipeline():
    assert set(PIPELINES) == set(config.METHODS)


def test_each_method_keeps_the_relus_that_it_says(all_methods):
    """Exactly the budget, the largest configuration not above it, all, or a narrower network's."""
    _, table = all_methods
    relus = table["relus"].groupby(["method", "budget"]).first()
    exact = {0.5: 1920, 0.1: 384, 0.02: 76}
    for method in ("snl", "random", "smallest_effect"):
        assert relus[method].drop(1.0).to_dict() == exact
    assert relus["all_kept"].unique().tolist() == [3840]
    assert set(relus["narrower"].drop(1.0)) == {1920}  # width 1, the only narrower one
    # Half is met by thinning every stage, a tenth by culling 1 and 2 and thinning the rest.
    assert relus["deepreduce"].to_dict() == {1.0: 3840, 0.5: 1920, 0.1: 384}


def test_the_controls_share_the_teacher_and_differ_in_the_masks(all_methods):
    """As many ReLUs, chosen otherwise, on the same teacher."""
    store, _ = all_methods
    (run,) = make(methods=["random"]).runs()
    chosen = {}
    for method in ("snl", "random", "smallest_effect"):
        found = PIPELINES[method](replace(run, method=method), store, None)
        arrays = found.snapshot(384).arrays
        chosen[method] = np.concatenate([a.ravel() > 0 for n, a in arrays.items() if "alpha" in n])
        assert chosen[method].sum() == 384
    assert all((chosen["snl"] != chosen[m]).any() for m in ("random", "smallest_effect"))


def test_all_kept_trains_as_many_steps_as_the_search(all_methods):
    store, _ = all_methods
    (run,) = make(methods=["all_kept"]).runs()
    found = PIPELINES["all_kept"](run, store, None)
    for units in found.units:
        snapshot = found.snapshot(units)
        assert snapshot.facts["step"] == found.search.snapshot(units).facts["step"] > 0
        assert all((a == 1).all() for n, a in snapshot.arrays.items() if n.endswith(".alpha"))
        assert not np.array_equal(snapshot.arrays["fc.weight"], found.teacher().arrays["fc.weight"])


def test_a_control_that_may_not_train_as_long_is_refused(all_methods, tmp_path):
    """It would be the teacher, under the control's name. What SNL needs is taken from a store."""
    shared = Store(shutil.copytree(all_methods[0].root, tmp_path / "store"))
    (run,) = make(methods=["all_kept"]).runs()
    found = PIPELINES["all_kept"](run, shared, None)
    for units in found.units:
        configs = {"snapshot": found.snapshot_config(units), "finetune": found.linear_config(units)}
        for kind, own in configs.items():
            shutil.rmtree(shared.path(kind, VERSIONS[kind], own))
        shutil.rmtree(shared.root / "predictions" / found.key(units))
    capped = make(methods=["all_kept"], training=QUICK | {"search_max_epochs": 1})
    with pytest.raises(RuntimeError, match=r"search_max_epochs=1: \d+ steps, and SNL took \d+"):
        capped.run(store=shared)


def test_what_stands_under_a_figure_names_what_is_not_usual():
    """The test set and the size of the images, if they are other ones."""
    usual, other = (
        words(make(**own).runs()[0]) for own in ({}, {"keep_in_test": True, "size": 32})
    )
    assert usual == "digits, digit by half · resnet18, width 2"
    assert other == "digits, digit by half, thinned test, 32 pixels · resnet18, width 2"


def test_a_whole_number_is_the_same_setting():
    first, second = (
        make(training=QUICK | {"temperature": t, "lasso_growth": g}).runs()[0]
        for t, g in ((4, 2), (4.0, 2.0))
    )
    assert identity(first) == identity(second)


def test_a_control_can_be_the_base(all_methods):
    """Then an image counts as lost that the control's network of this budget and seed gets right."""
    store, table = all_methods
    plan, budgets = QUICK | {"student_epochs": 1}, [0.5, 0.1, 0.02]
    study = make(methods=["snl"], budgets=budgets, training=plan)
    found = study.run(store=store, base="all_kept").set_index("budget")
    assert found["correct"].tolist() == table.loc["snl", "correct"].tolist()
    assert found["base"].tolist() == table.loc["all_kept", "correct"].tolist()
    (run,) = study.runs()
    for units, budget in PIPELINES["snl"](run, store, None).units.items():
        right = [
            (images["prediction"] == images["label"])[images["split"] == "test"].to_numpy()
            for name in ("snl", "all_kept")
            for images in [
                PIPELINES[name](replace(run, method=name), store, None)
                .predictions(units).tables["images"]
            ]
        ]  # fmt: skip
        assert found.loc[budget, "both"].sum() == (right[0] & right[1]).sum()
    with pytest.raises(ValueError, match="base='deepreduce'.*all_kept"):
        study.run(store=store, base="deepreduce")


@pytest.mark.parametrize(
    "pair", [("deepreduce_untaught", "deepreduce"), ("deepreduce", "deepreduce_untaught")]
)
def test_a_student_can_be_the_base_of_another(all_methods, pair):
    """They have the same ReLUs; of SNL, whose budgets they may miss, they cannot be."""
    store, table = all_methods
    method, base = pair
    plan = QUICK | {"student_epochs": 1}
    study = make(methods=[method], budgets=[0.5, 0.1, 0.02], training=plan)
    found = study.run(store=store, base=base).set_index("budget")
    assert found["base"].tolist() == table.loc[base, "correct"].tolist()
    assert found["correct"].tolist() == table.loc[method, "correct"].tolist()
    (run,) = study.runs()
    pipes = [PIPELINES[name](replace(run, method=name), store, None) for name in pair]
    for units in pipes[0].reached:
        images = [
            pipe.predictions(units).tables["images"].query("split == 'test'") for pipe in pipes
        ]
        right = [(own["prediction"] == own["label"]).to_numpy() for own in images]
        assert found.loc[pipes[0].units[units], "both"].sum() == (right[0] & right[1]).sum()
    with pytest.raises(ValueError, match=f"base='{base}'"):
        replace(study, methods=[method, "snl"]).run(store=store, base=base)


def test_all_methods_are_taken_from_the_store(all_methods, monkeypatch):
    store, table = all_methods
    monkeypatch.setattr(pipeline.training, "fit", None)
    plan = QUICK | {"student_epochs": 1}
    again = make(methods=list(config.METHODS), budgets=[0.5, 0.1, 0.02], training=plan)
    pd.testing.assert_frame_equal(again.run(store=store).set_index(["method", "budget"]), table)


def test_a_study_is_known_by_what_its_method_depends_on():
    """DeepReDuce does not depend on SNL's search, nor SNL on the student's training."""
    both = [
        make(training=QUICK | {"student_epochs": n}, methods=["snl", "deepreduce"]) for n in (1, 3)
    ]
    (snl, reduced), (again, longer) = ([identity(run) for run in s.runs()] for s in both)
    assert snl == again and reduced != longer


def test_the_command_names_what_is_not_usual():
    """Nothing of the notebook's own parameters; the data folder where there must be one."""
    path = cli.notebooks(project_root())["accuracy_drops"]
    assert AccuracyDrops(**cli.defaults(path)).command() == "relufair run accuracy_drops"
    faces = AccuracyDrops(**cli.defaults(path) | {"dataset": "utkface", "budgets": [0.1, 0.02]})
    assert faces.command() == (
        """relufair run accuracy_drops -p 'dataset="utkface"' -p 'budgets=[0.1, 0.02]' --data DIR"""
    )
    shown = faces.rerun()
    assert f"```bash\n{faces.command()}\n```" in shown.replace(" \\\n    -p", " -p")
    assert max(map(len, shown.splitlines())) < 80
