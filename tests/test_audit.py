"""The audit of the released code: each experiment isolates its point, and says what it found."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from relufair import audit, config, geometry, methods, pipeline, plots, report, training
from relufair.audit import Audit, Watched
from relufair.config import PLAIN, Remedy
from relufair.groups import ALL
from relufair.objectives import CrossEntropy
from relufair.store import Store

# Two epochs of finetuning, for the multipliers are zero in the first.
QUICK = {
    "teacher_epochs": 1, "masks_lr": 0.01, "lasso_growth": 1.4, "finetune_epochs": 2,
    "student_epochs": 1,
}  # fmt: skip
PARAMETERS = {
    "dataset": "digits", "target": "auto", "groups": "auto", "keep": "paper",
    "keep_in_test": False, "size": 0, "arch": "resnet18", "width": 2, "methods": ["snl"],
    "budgets": [0.5], "seeds": [0], "schedule": "ci", "training": QUICK, "workers": 1,
    "mu": 1.0,
}  # fmt: skip
LARGE, SMALL = "classes 0–4", "classes 5–9"
EXPERIMENTS = ("penalties", "twins", "epochs", "leakage", "thinning", "students")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A store, a study, and the tables of all its experiments by name."""
    store, study = Store(tmp_path_factory.mktemp("store")), Audit(**PARAMETERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "SIZES", {"gradient": 3, "eigenvalue": 2})
        patch.setattr(audit, "DRAWS", {"gradient": 2, "eigenvalue": 1})
        return store, study, {name: getattr(study, name)(store=store) for name in EXPERIMENTS}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def pipe(audited):
    """The plain run."""
    store, study, _ = audited
    return methods.pipeline(study.runs()[0], store, None)


def test_all_is_taken_from_the_store(audited, monkeypatch):
    """A second time nothing is trained or measured."""
    store, study, tables = audited
    for name in ("fit", "logits"):
        monkeypatch.setattr(pipeline.training, name, None)
    monkeypatch.setattr(audit, "_measured", None)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(getattr(study, name)(store=store), table)


# Penalties ------------------------------------------------------------------------------------------


def test_the_detached_penalty_changes_no_bit_and_the_live_one_does(audited):
    twins = audited[2]["twins"].set_index(["distillation", "penalty"])
    assert len(twins) == 4
    for weight in ("1", "1/C"):
        assert twins.loc[(weight, "detached"), ["same", "apart"]].tolist() == [True, 0]
        assert not twins.loc[(weight, "live"), "same"] and twins.loc[(weight, "live"), "apart"] > 0


def test_one_bit_is_a_difference():
    """Also where subtraction would hide it."""
    zero = {"w": np.zeros(2, np.float32)}
    assert audit._apart(zero, {"w": zero["w"].copy()}) == {"same": True, "apart": 0.0}
    assert audit._apart(zero, {"w": -zero["w"]}) == {"same": False, "apart": 0.0}
    assert audit._apart(zero, {"w": zero["w"] + 2}) == {"same": False, "apart": 2.0}


def test_the_penalties_are_six_trainings_of_the_same_masks(audited):
    store, study, tables = audited
    table = tables["penalties"]
    settings = table.groupby(["distillation", "penalty"])["remedy"].unique().map(list).to_dict()
    assert settings == {
        ("1", "none"): ["plain"], ("1", "detached"): ["detached 1"],
        ("1", "live"): ["algorithm1 1"], ("1/C", "none"): ["plain, KD/C"],
        ("1/C", "detached"): ["detached 1, KD/C"], ("1/C", "live"): ["algorithm1 1, KD/C"],
    }  # fmt: skip
    assert set(table["budget"]) == {0.5} and len(table) == 12
    right = table.pivot_table("correct", "group", ["distillation", "penalty"])
    for weight in ("1", "1/C"):
        assert (right[weight, "detached"] == right[weight, "none"]).all()
    masks = [
        {k: v for k, v in pipe.linear(min(pipe.units)).arrays.items() if "alpha" in k}
        for cure in study.cures()
        for pipe in study._pipelines([cure], None, store)
    ]
    assert all(np.array_equal(m[k], masks[0][k]) for m in masks for k in masks[0])


def test_the_distillation_over_c_is_another_training(audited, pipe):
    """A tenth of the distillation: its weights differ from those of the whole."""
    store, study, _ = audited
    (other,) = study._pipelines([Remedy(per_class=True)], None, store)
    (units,) = pipe.units
    assert other.objective(pipe.fresh(units), units).soft == pytest.approx(0.1)
    assert not audit._apart(pipe.linear(units).arrays, other.linear(units).arrays)["same"]


# Selection ------------------------------------------------------------------------------------------


def samples(n=24):
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (n, 1, 4, 4)).astype(np.uint8))
    labels = torch.arange(n) % 2
    return training.Samples(images, labels, labels, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, 2),
    )  # fmt: skip


def trained(watch, checkpoint=None, epochs=3):
    """Weights, log and the global generator's state after training, watched or not."""
    net, data, modes = small(), samples(), []

    def look(seen):
        modes.append(seen.training)
        return {"right": training.logits(seen, data).argmax(1).eq(data.labels).sum().item()}

    objective = Watched(CrossEntropy(), net, look) if watch else CrossEntropy()
    log = training.fit(net, data, objective, training.sgd(net, 0.1, 0.0), epochs=epochs, batch=8,
                       seed=(0,), checkpoint=checkpoint)  # fmt: skip
    assert not watch or (net.training and modes and all(modes))
    return pipeline.arrays(net), log, torch.get_rng_state()


def test_watching_leaves_the_training_as_it_is():
    """Weights, statistics of batch norm, mode, losses and the generator, to the bit."""
    (plain, log, state), (watched, seen, after) = trained(False), trained(True)
    assert audit._apart(plain, watched)["same"] and torch.equal(state, after)
    assert "right" in seen and "right" not in log
    pd.testing.assert_frame_equal(seen.drop(columns="right"), log)


def test_what_is_seen_is_the_network_as_it_then_is():
    data = samples()
    _, log, _ = trained(True)
    for epochs in (1, 3):
        arrays, _, _ = trained(True, epochs=epochs)
        net = small()
        net.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
        right = training.logits(net, data).argmax(1).eq(data.labels).sum().item()
        assert log["right"][epochs - 1] == right


def test_a_watched_objective_passes_everything_on():
    """State, restoring and the call after each step, as SNL's search needs them."""

    class Inner(CrossEntropy):
        steps = 0

        def after_step(self):
            self.steps += 1
            return self.steps == 2

        def state(self):
            return {"steps": self.steps}

        def restore(self, state):
            self.steps = state["steps"]

    inner = Inner()
    watched = Watched(inner, small(), lambda net: {})
    assert [watched.after_step(), watched.after_step()] == [False, True]
    assert watched.state() == {"steps": 2}
    watched.restore({"steps": 7})
    assert inner.steps == 7


def test_the_watched_finetune_ends_as_the_stored_one(audited, pipe):
    """And its last epoch is the study's own tally."""
    table = audited[2]["epochs"]
    assert table["same"].all() and sorted(table["epoch"].unique()) == [1, 2]
    assert len(table) == 2 * 2 * 2
    tally = pipe.measure().query("budget < 1").set_index("group")
    last = table[(table["epoch"] == 2) & (table["split"] == "test")].set_index("group")
    assert last["correct"].to_dict() == tally["correct"].to_dict()
    assert last["n"].to_dict() == tally["n"].to_dict()


def test_another_network_is_not_the_same(audited, pipe, monkeypatch, tmp_path):
    """The comparison behind ``same`` can fail."""
    (units,) = pipe.units
    monkeypatch.setitem(pipeline.SEEDS, "finetune", 9)
    other = methods.pipeline(pipe.run, pipe.store, None)
    assert not audit._watch(other, units, tmp_path)["same"].any()


def logged(test, validation):
    """One network of two groups: what it gets right, by epoch."""
    rows = [
        {"method": "snl", "seed": 0, "budget": 0.1, "epoch": epoch + 1, "split": split,
         "group": group, "n": 100, "correct": count}
        for split, counts in (("test", test), ("validation", validation))
        for epoch, pair in enumerate(counts)
        for group, count in zip("ab", pair, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_rules_choose_as_they_say():
    """Best over all groups; of equals the first; the numbers are the test set's at that epoch."""
    table = logged(
        [(90, 40), (80, 70), (85, 60), (75, 75)], [(50, 50), (40, 40), (60, 45), (52, 53)]
    )
    found = audit.chosen(table).set_index(["rule", "group"])
    assert found["epoch"].groupby(level=0).unique().map(list).to_dict() == {
        "last": [4], "validation": [3], "test": [2],
    }  # fmt: skip
    assert found.loc[("test", "a"), ["n", "correct", "last"]].tolist() == [100, 80, 75]
    assert found.loc[("validation", "b"), ["n", "correct", "last"]].tolist() == [100, 60, 75]
    assert found.loc[("test", ALL), ["n", "correct", "last"]].tolist() == [200, 150, 150]
    said = report.selections_said(audit.chosen(table))
    assert "Over 1 networks" in said and "+5.0 for *a*, −5.0 for *b*, +0.0 for everyone" in said
    assert "**validation**: +10.0 for *a*, −15.0 for *b*, −2.5 for everyone" in said
    shown = report.selections(audit.chosen(table))
    assert shown.loc[("SNL", "10 %", "best on test")].tolist() == ["2", 80.0, 70.0, 75.0]


# Leakage --------------------------------------------------------------------------------------------


def test_leaked_images_are_those_of_the_training_set(audited, pipe):
    """Counted by hand, at both networks; the own test set is the tally's."""
    table = audited[2]["leakage"].set_index(["budget", "images", "group"]).sort_index()
    other = methods.pipeline(replace(pipe.run, seed=1), pipe.store, None).splits.test
    train = set(pipe.splits.train.rows)
    assert not train & set(pipe.splits.test.rows)
    seen = np.array([row in train for row in other.rows])
    low = other.labels < 5
    tally = pipe.measure().set_index(["budget", "group"]).sort_index()
    for budget in (1.0, 0.5):
        n = table.loc[budget]["n"]
        assert n["seen"].to_dict() == {LARGE: (seen & low).sum(), SMALL: (seen & ~low).sum()}
        assert n["other"].to_dict() == {LARGE: low.sum(), SMALL: (~low).sum()}
        own = table.loc[budget, "own"]
        assert own["correct"].to_dict() == tally.loc[budget]["correct"].to_dict()
        net = pipe.net(None if budget == 1 else min(pipe.units))
        part = training.Samples.put(other, pipe.splits.train, pipe.device)
        right = (training.logits(net, part).argmax(1) == part.labels).numpy()
        assert table.loc[budget, "seen", LARGE]["correct"] == (right & seen & low).sum()
        assert table.loc[budget, "other", SMALL]["correct"] == (right & ~low).sum()
    # 90 % of 72 % of the classes 0–4 are trained on, 10 % of 72 % of the others.
    assert 0.5 < n["seen"][LARGE] / n["other"][LARGE] < 0.8
    assert 0 < n["seen"][SMALL] / n["other"][SMALL] < 0.15


def test_leakage_is_said_by_group():
    """And that there is none, where the test set is the same for all seeds."""
    found = {"a": [(50, 40), (100, 90), (60, 60)], "b": [(50, 20), (50, 15), (0, 0)]}
    rows = [
        {"budget": budget, "group": group, "images": images, "n": n, "correct": right}
        for budget in (1.0, 0.1)
        for group, counts in found.items()
        for images, (n, right) in zip(("own", "other", "seen"), counts, strict=True)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    said = report.leakage_said(table)
    assert "60 % of *a*, 0 % of *b*" in said and "With 10 % of the ReLUs" in said
    assert said.count("+10.0 for *a*, −10.0 for *b*, +10.0 for *everyone*") == 2
    none = table.assign(n=table["n"].where(table["images"] != "seen", 0))
    assert report.leakage_said(none).startswith("No image leaks here")


# Size -----------------------------------------------------------------------------------------------


def test_the_largest_class_is_thinned_to_the_smallest(audited, pipe):
    """From all its images to as many as the smallest class has, in draws."""
    table = audited[2]["thinning"]
    sizes = torch.bincount(pipe.samples.labels)
    most, least = sizes.max().item(), sizes.min().item()
    few = table[table["class"] == "largest"]
    gradient = few[(few["measure"] == "gradient") & (few["way"] == "exact")]
    middle = round((most * least) ** 0.5)
    assert gradient.groupby("n").size().to_dict() == {most: 1, middle: 2, least: 2}
    small = table[table["class"] == "smallest"]
    assert set(small["n"]) == {least} and len(small) == 4
    whole = few[few["n"] == most].iloc[0]
    assert whole["batch"] == round(256 * most / len(pipe.samples))
    left = len(pipe.samples) - most + least
    assert few[few["n"] == least]["batch"].unique().tolist() == [round(256 * least / left)]


def test_the_exact_numbers_are_those_of_the_images_left(audited, pipe):
    table = audited[2]["thinning"].set_index(["class", "measure", "way", "n", "draw"])["value"]
    by_class = replace(pipe.samples, groups=pipe.samples.labels)
    every = geometry.members(by_class)
    largest = max(every, key=lambda g: len(every[g]))
    net, n = pipe.teacher_net, min(map(len, every.values()))
    norms = geometry.gradient_norms(net, by_class).set_index("group")
    expected = norms.loc[largest, "gradient"]
    most = len(every[largest])
    assert table["largest", "gradient", "exact", most, 0] == pytest.approx(expected, rel=1e-4)
    index = geometry.subsample(every[largest], n, seed=1)
    expected = geometry.gradient_norms(net, by_class.take(index))["gradient"].item()
    assert table["largest", "gradient", "exact", n, 1] == pytest.approx(expected, rel=1e-4)
    index = geometry.subsample(every[largest], n, seed=0)
    top = geometry.top_eigenvalue(net, by_class, index, tol=1e-3).value
    assert table["largest", "eigenvalue", "exact", n, 0] == pytest.approx(top, rel=0.05)


def test_the_released_numbers_are_those_of_its_mini_batches(pipe):
    """Drawn from the class alone they are, on average, what mini-batches of everyone give."""
    by_class = replace(pipe.samples, groups=pipe.samples.labels)
    every = geometry.members(by_class)
    own = max(every, key=lambda g: len(every[g]))
    alone = audit._measured(pipe.teacher_net, by_class, every[own], len(by_class), "gradient")
    mixed = [
        geometry.released_gradient_norm(pipe.teacher_net, by_class, 256, seed).set_index("group")
        for seed in range(2)
    ]
    mean = np.mean([table.loc[own, "value"] for table in mixed])
    assert alone["released"] == pytest.approx(mean, rel=0.15)


def test_size_is_said_with_factors_of_the_table():
    rows = [
        {"class": name, "n": n, "draw": 0, "measure": measure, "way": way, "value": value * scale}
        for measure, scale in (("gradient", 1), ("eigenvalue", 10))
        for way, values in {"released": (2, 6, 20), "exact": (1, 2, 30)}.items()
        for (name, n), value in zip(
            (("largest", 100), ("largest", 10), ("smallest", 10)), values, strict=True
        )
    ]
    said = report.thinning_said(pd.DataFrame(rows)).splitlines()
    for line in said:
        assert "from 100 to 10 images" in line and "of 3 as released and of 2 taken exactly" in line
        assert "10 times the largest's as released, 30 times exactly" in line
    assert len(said) == 2


# A random teacher -----------------------------------------------------------------------------------


def test_the_untaught_student_has_a_random_teacher_and_nothing_else(audited, pipe):
    """Same configuration, start, batches and teacher to be compared with; another key."""
    store, _, tables = audited
    taught, untaught = (
        methods.pipeline(replace(pipe.run, method=method), store, None) for method in audit.STUDENTS
    )
    (units,) = pipe.units
    assert taught.chosen == untaught.chosen and taught.recipe == untaught.recipe
    assert audit._apart(*(pipeline.arrays(p.fresh(units)) for p in (taught, untaught)))["same"]
    assert not audit._apart(*(p.linear(units).arrays for p in (taught, untaught)))["same"]
    assert taught.identity(units) != untaught.identity(units)
    assert taught.identity(None) == untaught.identity(None)
    table = tables["students"].query("budget == 1").pivot_table("correct", "group", "method")
    assert (table["deepreduce"] == table["deepreduce_untaught"]).all()  # both: the teacher's


def test_the_random_teacher_is_neither_the_teacher_nor_the_student(audited, pipe):
    """Its logits know nothing of the labels, and are not those of the student's first weights."""
    store, _, _ = audited
    run = replace(pipe.run, method="deepreduce_untaught")
    untaught = methods.pipeline(run, store, None)
    logits, labels = untaught.taught.teacher, untaught.samples.labels
    assert logits.shape == pipe.taught.teacher.shape
    assert not torch.equal(logits, pipe.taught.teacher)
    start = training.logits(untaught.network(masked=True), untaught.samples)
    assert not torch.allclose(logits[0], start)
    assert (logits[0].argmax(1) == labels).float().mean() < 0.4
    flipped = replace(run, schedule=replace(run.schedule, flip=True))
    assert len(methods.pipeline(flipped, store, None).taught.teacher) == 2


# What is said and drawn -----------------------------------------------------------------------------


def test_the_penalties_are_said_as_counted(audited):
    _, _, tables = audited
    table, twins = tables["penalties"], tables["twins"]
    said = report.penalties_said(table, twins)
    assert said.startswith("**2 of 2 networks") and "With the live one it is 0 of 2." in said
    own = table[(table["penalty"] == "detached") & (table["distillation"] == "1/C")]
    own = own.set_index("group").loc[SMALL]
    gain = 100 * (own["correct"] - own["base"]) / own["n"]
    assert f"{round(gain, 1) + 0.0:.1f} [".replace("-", "−") in said
    broken = twins.assign(same=twins["same"] & (twins["distillation"] == "1"))
    assert report.penalties_said(table, broken).startswith("**1 of 2 networks")
    shown = report.penalties(table)
    for weight in ("1", "1/C"):  # the same networks, so also the same intervals
        pair = (shown.loc[("50 %", weight, penalty)].tolist() for penalty in ("none", "detached"))
        assert len({tuple(cells) for cells in pair}) == 1


def test_the_figures_show_what_the_tables_hold(audited, pipe):
    """Zero for the detached penalty; bars of leakage; the smallest class as a star."""
    _, study, tables = audited
    figure = plots.penalties(tables["penalties"])
    (points,) = (line.get_xdata() for line in figure.axes[2].lines if line.get_marker() == "o")
    assert len(points) == len(plots.RUNGS)
    assert points[-1] == 0 and points[0] == pytest.approx(
        -100 * _drop(tables["penalties"], "1/C", "live")
    )
    tally = study.run(store=audited[0])
    heights = [bar.get_height() for bar in plots.leakage(tables["leakage"], tally).axes[0].patches]
    own = tables["leakage"].query("budget == 1 and images == 'own' and group == @LARGE").iloc[0]
    assert heights[0] == pytest.approx(100 * own["correct"] / own["n"])
    axis = plots.thinning(tables["thinning"]).axes[0]
    stars = [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "*"]
    small = tables["thinning"].query("measure == 'gradient'")
    assert stars == small[small["class"] == "smallest"].sort_values("way")["value"].tolist()


def _drop(table, weight, penalty):
    own = table[(table["distillation"] == weight) & (table["penalty"] == penalty)]
    return (own["base"].sum() - own["correct"].sum()) / own["n"].sum()


# The study ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": -1.0}, "strength of detached=-1.0.*at least 0"),
        ({"methods": ["narrower"]}, "methods='narrower': allowed are snl, deepreduce"),
        ({"training": QUICK | {"student_scale": 0.1}}, "scale=0.1: must make a whole number"),
    ],
)
def test_impossible_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Audit(**PARAMETERS | change)


def test_the_audit_has_versions_and_keys_of_its_own(audited):
    """The kinds it stores, and that other groups do not share their counts."""
    store, _, _ = audited
    kinds = {path.name for path in store.root.iterdir()}
    assert set(audit.VERSIONS) <= kinds and not set(audit.VERSIONS) & set(pipeline.VERSIONS)
    counts = {k: len(list((store.root / k).glob("[0-9a-f]*"))) for k in audit.VERSIONS}
    assert counts == {"twins": 4, "epochs": 1, "leakage": 2, "thinning": 1}
    by_class = Audit(**PARAMETERS | {"groups": "label"}).leakage(store=store)
    assert by_class["group"].nunique() == 10


def test_the_next_seed_is_another_one_and_possible():
    assert config.another(3) == 4
    assert config.another(config.LARGEST_SEED) == 0
    assert Audit(**PARAMETERS).cures()[0] == PLAIN
