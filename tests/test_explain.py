"""The long table of measures, and what is made of it."""

import itertools

import numpy as np
import pandas as pd
import pytest

from relufair import explain, geometry, methods, plots, report
from relufair.groups import ALL
from relufair.store import Store
from relufair.study import GradientsAndCurvature

QUICK = {"teacher_epochs": 1, "masks_lr": 0.01, "lasso_growth": 1.4, "finetune_epochs": 1}
PARAMETERS = {
    "dataset": "digits", "target": "auto", "groups": "auto", "keep": "paper",
    "keep_in_test": False, "size": 0, "arch": "resnet18", "width": 2, "methods": ["snl", "narrower"],
    "budgets": [0.5], "seeds": [0], "schedule": "ci", "training": QUICK, "workers": 1,
    "sample": 6,
}  # fmt: skip
LARGE, SMALL = "classes 0–4", "classes 5–9"


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """A store, a study, its tally and its long table."""
    store = Store(tmp_path_factory.mktemp("store"))
    study = GradientsAndCurvature(**PARAMETERS)
    return store, study, study.run(store=store), study.explain(store=store)


def value(table, measure, group, budget=1.0, split="train"):
    row = table[
        (table["measure"] == measure) & (table["group"] == group)
        & (table["budget"] == budget) & (table["split"] == split)
    ]  # fmt: skip
    return row["value"].item()


def test_the_table_has_every_measure_of_every_network_once(explained):
    """Both sets, both groups; the narrower network has other weights and is left out."""
    _, _, _, table = explained
    keys = ["seed", "method", "budget", "split", "group", "measure"]
    assert not table.duplicated(keys).any() and not table["value"].isna().all()
    assert table["method"].unique().tolist() == ["snl"] and set(table["budget"]) == {1.0, 0.5}
    both = {"loss", "gradient", "scaled_gradient", "gap", "margin", "linear", "refined"}
    for (_, split, _), own in table[table["group"] != ALL].groupby(["budget", "split", "group"]):
        assert both <= set(own["measure"]), split
    teacher = table[table["budget"] == 1]
    only = {"eigenvalue", "thinned_gradient", "released_gradient", "released_eigenvalue"}
    assert only <= set(teacher["measure"]) and not only & set(table[table["budget"] < 1]["measure"])


def test_the_numbers_are_those_of_geometry(explained):
    """Gradient, loss and curvature of the teacher, and the way of the weights, computed again."""
    store, study, _, table = explained
    pipe = methods.pipeline(study.runs()[0], store, None)
    net, train = pipe.teacher_net, pipe.samples
    norms = geometry.gradient_norms(net, train)["gradient"]
    assert value(table, "gradient", SMALL) == pytest.approx(norms[1], rel=1e-4)
    assert value(table, "loss", LARGE) == pytest.approx(geometry.losses(net, train)[0], rel=1e-4)
    few = geometry.subsample(geometry.members(train)[1], 6, seed=0)
    top = geometry.top_eigenvalue(net, train, few, explain.TOLERANCE)
    assert value(table, "eigenvalue", SMALL) == pytest.approx(top.value, rel=1e-4)
    assert 0 < value(table, "error", SMALL) <= explain.TOLERANCE * top.value
    converged = geometry.top_eigenvalue(net, train, few, 1e-6).value
    assert value(table, "eigenvalue", SMALL) == pytest.approx(converged, rel=2e-3)
    (units,) = pipe.units
    moved = geometry.weight_change(net, pipe.net(units))["change"].iloc[-1]
    assert value(table, "change", ALL, 0.5) == pytest.approx(moved, rel=1e-5)
    layers = geometry.layer_norms(net, train).query("group == 0 and layer != @ALL")
    scaled = np.sqrt((layers["product"] ** 2).sum())
    assert value(table, "scaled_gradient", LARGE) == pytest.approx(scaled, rel=1e-4)


def test_the_account_adds_up_to_the_excess_loss(explained, monkeypatch):
    """Within its tolerance, at the lowest budget, on the images it says; and it is kept."""
    store, study, _, _ = explained
    table = study.account(store=store)
    pipe = methods.pipeline(study.runs()[0], store, None)
    train, (units,) = pipe.samples, pipe.units
    before, after = (geometry.losses(net, train) for net in (pipe.teacher_net, pipe.net(units)))
    excess = pd.Series({name: after[g] - before[g] for g, name in enumerate((LARGE, SMALL))})
    tolerance = max(explain.CLOSING * excess.abs().max(), 1e-3)
    own = table.groupby("group")
    assert own["excess"].first().to_dict() == pytest.approx(excess.to_dict(), abs=1e-6)
    assert (own["value"].sum() - excess).abs().max() <= tolerance + 1e-5
    assert own["n"].first().to_dict() == pipe.splits.train.sizes()
    assert set(table["method"]) == {"snl"} and set(table["budget"]) == {0.5}
    parts = table.groupby("part")["value"].apply(lambda values: values.abs().sum())
    assert set(parts.index) == {"weights", "slopes", "buffers"} and (parts > tolerance).all()
    monkeypatch.setattr(explain.exact, "line_integral", None)
    pd.testing.assert_frame_equal(study.account(store=store), table)
    monkeypatch.undo()
    monkeypatch.setattr(explain, "MOST", 5)
    few = explain._account(pipe, units, store.root).tables["account"]
    assert set(few["n"]) == {5} and not np.isclose(few["excess"], table["excess"]).any()


def test_workers_share_the_measures(explained):
    """Two processes find in the store what one has put there."""
    store, _, _, table = explained
    pair = GradientsAndCurvature(**PARAMETERS | {"workers": 2})
    pd.testing.assert_frame_equal(pair.explain(store=store), table)


def shared(rows):
    return pd.DataFrame(rows, columns=["seed", "group", "n", "part", "layer", "value", "excess"])


ACCOUNT = shared([
    (seed, group, n, part, layer, value, excess)
    for seed, group, n, excess, values in [
        (0, "a", 30, 1.2, (2.0, 1.0, -2.0)), (1, "a", 10, 0.9, (1.0, 0.0, 0.0)),
        (0, "b", 90, 1234.0, (1000.0, 234.0, 0.0)),
    ]
    for part, layer, value in zip(("weights", "weights", "slopes"),
                                  ("fc", "layer1.0.conv1", "layer1.0.relu1"), values, strict=True)
])  # fmt: skip


def test_the_account_for_people():
    """Means over seeds, the largest error, sizes; three digits and no exponent."""
    shown = report.account(ACCOUNT)
    assert shown.loc["a"].to_dict() == {
        "images": 20, "weights": "2", "slopes": "−1", "sum": "1", "excess loss": "1.05",
        "largest error": "0.2",
    }  # fmt: skip
    assert shown.loc["b", "weights"] == "1,230"


def test_the_bars_of_the_account_add_up():
    """Largest group first; what is gained lies above zero, what is lost below."""
    parts, stages = plots.account_by_group(ACCOUNT).axes
    bars = [(bar.get_y(), bar.get_height()) for bar in parts.patches]
    assert bars == [(0, 1234), (0, 2), (0, 0), (0, -1)]
    bars = [(bar.get_y(), bar.get_height()) for bar in stages.patches]
    assert bars == [(0, 1000), (0, 1.5), (1000, 234), (0, -0.5)]
    labels = [label.get_text() for label in parts.get_xticklabels()]
    assert labels == ["b\n90", "a\n20"]
    assert parts.lines[0].get_ydata() == pytest.approx([1234, 1.05])


def test_the_largest_group_is_thinned_to_the_size_of_the_smallest(explained):
    _, _, tally, table = explained
    row = table[table["measure"] == "thinned_gradient"].iloc[0]
    assert (row["group"], row["n"]) == (LARGE, tally.set_index("group")["train_n"][SMALL].iloc[0])
    shown = report.thinned(table)
    assert shown["group"].tolist() == [LARGE, LARGE, SMALL]
    assert shown["images"].iloc[1] == shown["images"].iloc[2]


def test_a_second_time_nothing_is_measured(explained, monkeypatch):
    store, study, _, table = explained
    monkeypatch.setattr(explain, "_split", None)
    pd.testing.assert_frame_equal(study.explain(store=store), table)


def test_the_halves_change_places(explained):
    """The rotated study thins the other half; a data set without halves has none."""
    store, study, tally, _ = explained
    rotated = study.turned(store=store)
    assert rotated.set_index("group")["train_n"][LARGE].iloc[0] < 100
    assert set(rotated["method"]) == {"snl"}
    first, second = report.both_ways(tally, rotated).split("\n\n")
    for said, own, opening in (
        (first, tally, "As in the paper: "), (second, rotated, "Halves changed: "),
    ):  # fmt: skip
        # One epoch may leave a half that is never right, which the sentence then says instead.
        assert said == opening + report.verdict(report.halves(own))
        assert (LARGE in said and SMALL in said) or "never right" in said
    assert "no halves" in report.both_ways(tally, None)


def long(rows):
    columns = ["seed", "budget", "group", "measure", "value"]
    return pd.DataFrame(rows, columns=columns).assign(method="snl", split="train", n=10)


def test_the_bound_is_gradient_times_way_plus_half_the_curvature_times_its_square():
    table = long([
        (0, 1.0, "a", "loss", 0.1), (0, 1.0, "a", "gradient", 3.0), (0, 1.0, "a", "eigenvalue", 8.0),
        (0, 1.0, ALL, "change", 0.0), (0, 0.5, ALL, "change", 2.0), (0, 0.5, "a", "loss", 30.1),
        (0, 0.1, ALL, "change", 1.0), (0, 0.1, "a", "loss", 2.1),
        *((0, b, "b", m, 1.0) for b in (1.0, 0.1) for m in ("loss", "gradient", "eigenvalue")),
    ])  # fmt: skip
    found = explain.bounds(table).loc[0.5].iloc[0]
    assert found.to_dict() == pytest.approx(
        {
            "excess loss": 30.0,
            "gradient term": 6.0,
            "curvature term": 16.0,
            "bound": 22.0,
            "holds": 0,
        }
    )
    assert explain.bounds(table).loc[(0.1, "a"), "holds"] == 1
    sizes = pd.DataFrame({"group": ["a", "b"], "train_n": [1, 2], "n": 10})
    shown = report.bounds(explain.bounds(table), sizes)
    assert list(shown.index) == [("50 %", "a"), ("10 %", "b"), ("10 %", "a")]  # by size
    assert shown.loc[("10 %", "a"), "factor"] == "3.5"
    assert shown.loc[("50 %", "a"), "holds in, of seeds"] == "0 %"


def test_correlations_are_spearmans():
    """Perfect order gives one, the reverse minus one; the interval is seeded and contains it."""
    names = [f"g{i}" for i in range(8)]
    rows = [(s, 1.0, g, m, v * (s + 1)) for s in (0, 1) for i, g in enumerate(names)
            for m, v in (("gradient", i), ("refined", -i), ("gap", (i * 5) % 8),
                         ("scaled_gradient", i**2), ("eigenvalue", i), ("margin", -i))]  # fmt: skip
    tally = pd.DataFrame([
        {"method": "snl", "seed": s, "budget": b, "group": g, "train_n": 10, "n": 100,
         "correct": 90 - 5 * i * (b < 1), "base": 90, "both": 90 - 5 * i * (b < 1)}
        for s in (0, 1) for b in (1.0, 0.1) for i, g in enumerate(names)
    ])  # fmt: skip
    found = explain.correlations(long(rows), tally, 0.1).set_index(["outcome", "measure"])
    assert found.loc[("relative_drop", "gradient"), "value"] == pytest.approx(1)
    assert found.loc[("accuracy", "gradient"), "value"] == pytest.approx(-1)
    assert found.loc[("relative_drop", "refined"), "value"] == pytest.approx(-1)
    mixed = found.loc[("relative_drop", "gap")]
    expected = pd.Series([(i * 5) % 8 for i in range(8)]).corr(pd.Series(range(8)), "spearman")
    assert (
        mixed["value"] == pytest.approx(expected) and mixed["low"] < mixed["value"] < mixed["high"]
    )
    assert len(report.correlations(found.reset_index())) == len(explain.TELLING)


@pytest.mark.parametrize("n", [5, 6, 7])
def test_an_order_of_groups_is_settled_as_by_the_exact_test(n):
    """The interval leaves out zero where 5 % of all orders are as far from none, or nearly so."""
    every = np.array(list(itertools.permutations(range(n))))
    ranks = pd.DataFrame(every - every.mean())
    values = (ranks.to_numpy() * (np.arange(n) - (n - 1) / 2)).sum(1) / ((n**3 - n) / 12)
    for value in np.unique(values.round(6)):
        order = every[np.isclose(values, value, atol=1e-5)][:1]
        found = explain.rank_correlation(pd.DataFrame(order), pd.Series(range(n)))
        assert found["value"] == pytest.approx(value, abs=1e-5)
        share = (np.abs(values) >= abs(value) - 1e-5).mean()
        if share > 0.065:
            assert found["low"] < 0 < found["high"]
        elif share < 0.035:
            assert found["low"] * found["high"] > 0


def test_the_figures_show_the_table(explained):
    """Every group's mean is a point or a bar at its value."""
    _, _, tally, table = explained
    figure = plots.geometry_by_budget(table, tally, ["gradient"], "note")
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
    for budget in (1.0, 0.5):
        assert np.isclose(drawn, value(table, "gradient", SMALL, budget)).any()
    bars = plots.geometry_by_group(table, tally, [("eigenvalue", "train")]).axes[0].patches
    heights = [bar.get_height() for bar in bars]
    assert heights == pytest.approx([value(table, "eigenvalue", g) for g in (LARGE, SMALL)])
    way = plots.weight_change(table).axes[0].lines[-1].get_ydata()
    assert way == pytest.approx([value(table, "change", ALL, 0.5)])
    points = plots.accuracy_against(table, tally, ["gradient"], 0.5).axes[0].lines
    xs = np.concatenate([np.atleast_1d(line.get_xdata()) for line in points])
    assert np.isclose(xs, value(table, "gradient", LARGE, 0.5)).any()
    more = pd.concat([tally, tally.assign(seed=9)])  # a seed without measures
    again = plots.accuracy_against(table, more, ["gradient"], 0.5).axes[0].lines
    assert len(again) == len(points)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="sample=1: must be a whole number of at least 2"):
        GradientsAndCurvature(**PARAMETERS | {"sample": 1})
    with pytest.raises(ValueError, match=r"methods=\['deepreduce'\]: .*snl, random"):
        GradientsAndCurvature(**PARAMETERS | {"methods": ["deepreduce"]})
