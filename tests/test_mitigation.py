"""The studies of the remedies: shared masks, fair tuning, and what is said of the results."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_study import PARAMETERS, QUICK

from relufair import groups, pipeline, plots, report, training
from relufair.config import PLAIN, REMEDIES, Remedy
from relufair.methods import PIPELINES
from relufair.mitigation import CURES, Ablation, Comparison, Mitigation
from relufair.objectives import Batch, Distillation
from relufair.store import Store

ABOUT = PARAMETERS | {"training": QUICK | {"finetune_epochs": 3}, "budgets": [0.1]}
CURE = Remedy("algorithm1", 0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all studies here, so that teacher and masks are trained once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def mitigated(store):
    """The study of Algorithm 1 and its tally."""
    study = Mitigation(**ABOUT, mu=CURE.strength)
    return study, study.tally(study.cures(), store=store)


def test_a_remedy_is_compared_with_the_network_without_it(mitigated):
    """At each budget the base of the one is the other's count; the teacher is the same."""
    _, table = mitigated
    plain, cured = (table[table["remedy"] == str(c)].set_index("budget") for c in (PLAIN, CURE))
    assert cured["base"].loc[0.1].tolist() == plain["correct"].loc[0.1].tolist()
    assert cured["correct"].loc[1.0].tolist() == plain["correct"].loc[1.0].tolist()
    assert plain["base"].loc[0.1].tolist() == plain["base"].loc[1.0].tolist()
    assert set(plain["study"]).isdisjoint(cured["study"])


def test_only_the_last_training_differs(mitigated, store):
    """The same masks, other weights, and one teacher and one search in the store."""
    study, _ = mitigated
    one, other = (PIPELINES["snl"](r, store, None) for r in study.remedied(study.cures()))
    (units,) = one.units
    a, b = one.linear(units).arrays, other.linear(units).arrays
    assert all(np.array_equal(a[k], b[k]) for k in a if k.endswith(".alpha"))
    assert not np.array_equal(a["fc.weight"], b["fc.weight"])
    assert len(list(store.root.glob("teacher/*"))) == 1


def test_multipliers_grow_by_mu_times_the_violations(mitigated, store):
    """Zero in the first epoch; each step is the one before plus the logged violation times mu."""
    study, _ = mitigated
    paths = study.paths(study.cures(), store=store)
    assert set(paths["remedy"]) == {str(CURE)}  # plain training logs no groups
    wide = paths.pivot_table("value", ["quantity", "group"], "epoch")
    used, off = wide.loc["multiplier"].to_numpy(), wide.loc["violation"].to_numpy()
    assert (used[:, 0] == 0).all() and (used[:, 1:] > 0).any()
    np.testing.assert_allclose(np.diff(used, axis=1), CURE.strength * off[:, :-1], rtol=1e-5)


def test_geometry_before_and_after(mitigated, store):
    """Both remedies' networks, every group, both sets; gradients are not the same."""
    study, table = mitigated
    found = study.geometry(store=store)
    assert set(found["remedy"]) == set(map(str, study.cures()))
    wide = found.pivot_table("value", ["split", "group"], ["measure", "remedy"])
    assert wide.shape == (4, 10) and wide.notna().all(axis=None)
    assert (wide["gradient"]["plain"] != wide["gradient"][str(CURE)]).all()
    assert len(plots.before_after(found, table).axes) == 3


def test_zero_is_plain_finetuning(store):
    """With a step of zero the predictions are those of plain finetuning, to the bit."""
    study = Ablation(**ABOUT, mus=[0.0])
    (run,) = study.remedied(study.cures())
    pipe = PIPELINES["snl"](run, store, None)
    (units,) = pipe.units
    ours, plain = pipe.linear(units).arrays, pipe.plain.linear(units).arrays
    assert all(np.array_equal(ours[k], plain[k]) for k in plain)
    table = study.tally(study.cures(), store=store)
    assert (table["correct"] == table["both"]).all() and (table["base"] == table["both"]).all()


def test_the_lag_is_between_the_log_and_a_pass(store):
    """One column is the log's last row, the other the finished network's own mean losses."""
    study = Ablation(**ABOUT, mus=[0.0, 0.5])
    lag = study.lag(store=store)
    paths = study.paths(study.cures(), store=store).query("quantity == 'loss' and epoch == 3")
    assert sorted(lag["own"]) == sorted(paths["value"])
    pipe = PIPELINES["snl"](study.remedied(study.cures())[1], store, None)
    (units,) = pipe.units
    taught, whole = pipe.taught, lag.query("remedy == 'algorithm1 0.5'").set_index("group")["whole"]
    z = training.logits(pipe.net(units), taught)
    for place, group in enumerate(pipe.splits.train.group_names):
        own = taught.groups == place
        batch = Batch(z[own], taught.labels[own], own, own, taught.teacher[0, own])
        expected = Distillation(temperature=4.0).loss(batch).item()
        assert whole[group] == pytest.approx(expected, rel=1e-5)


def test_the_lag_is_that_of_each_methods_own_last_epoch(monkeypatch):
    """DeepReDuce's students may train for more epochs than a finetune."""
    keys = {"remedy": "algorithm1 0.1", "seed": 0, "budget": 0.1, "group": "a"}
    epochs = {"snl": 2, "deepreduce": 3}
    logs = [
        keys | {"method": m, "epoch": e, "quantity": "loss", "value": float(e)}
        for m, last in epochs.items()
        for e in range(1, last + 1)
    ]
    whole = pd.DataFrame([keys | {"method": m, "whole": 0.0} for m in epochs])
    monkeypatch.setattr(Ablation, "paths", lambda *_: pd.DataFrame(logs))
    monkeypatch.setattr(Ablation, "_pipelines", lambda *_: [])
    monkeypatch.setattr(Ablation, "_in_turn", lambda *_: [whole])
    lag = Ablation(**ABOUT, mus=[0.1]).lag().set_index("method")["own"]
    assert lag.to_dict() == {"snl": 2.0, "deepreduce": 3.0}


def test_strengths_are_chosen_on_validation_of_other_seeds(store, monkeypatch):
    """The strength with the best worst group there wins; the reported seeds are not looked at."""
    study = Comparison(**ABOUT, remedies=["inverse_frequency", "cvar"], tuning_seeds=[105])
    asked = []
    tally = Comparison.tally
    monkeypatch.setattr(Comparison, "tally", lambda *a, **k: asked.append(k) or tally(*a, **k))
    tuned = study.tuned(store=store)
    assert asked == [{"seeds": [105], "split": "validation"}]
    assert tuned["strength"].tolist() == [*REMEDIES["inverse_frequency"], *REMEDIES["cvar"]]
    for _, grid in tuned.groupby("remedy"):
        (chosen,) = grid[grid["chosen"]].index
        best = grid[grid["worst"] == grid["worst"].max()]
        assert chosen in best.index and grid.loc[chosen, "accuracy"] == best["accuracy"].max()
    cures = study.chosen(tuned)
    assert cures[0] == PLAIN and [c.name for c in cures[1:]] == ["inverse_frequency", "cvar"]
    costs = study.costs([PLAIN, cures[1]], store=store, rounds=1)
    assert costs.loc["plain", "epoch"] == 1 and (costs["epoch"] > 0).all()


def test_the_score_is_of_the_validation_set(store):
    """By hand from the stored predictions."""
    study = Comparison(**ABOUT, remedies=["cvar"], tuning_seeds=[105])
    tuned = study.tuned(store=store).set_index("strength")
    cure = Remedy("cvar", 0.5)
    (run,) = study.remedied([cure], [105])
    pipe = PIPELINES["snl"](run, store, None)
    (units,) = pipe.units
    images = pipe.predictions(units).tables["images"].query("split == 'validation'")
    right = (images["label"] == images["prediction"]).groupby(pipe.splits.validation.groups)
    assert tuned.loc[0.5, "worst"] == pytest.approx(100 * right.mean().min())


def test_without_tuning_seeds_the_middle_strength_is_taken(monkeypatch):
    """Nothing is trained."""
    monkeypatch.setattr(pipeline.training, "fit", None)
    study = Comparison(**ABOUT, remedies=list(CURES), tuning_seeds=[])
    chosen = study.chosen(study.tuned())
    assert [c.strength for c in chosen[1:]] == [REMEDIES[name][1] for name in CURES]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remedies": ["focal"]}, "remedies='focal': allowed are algorithm1"),
        ({"remedies": []}, "remedies="),
        ({"tuning_seeds": [100], "seeds": [0, 100]}, r"tuning_seeds=\[100\]: 100 is among seeds"),
        ({"tuning_seeds": [105, 105]}, "tuning_seeds="),
        ({"tuning_seeds": [99]}, "tuning_seeds=99: must be a whole number of at least 100"),
        ({"methods": ["narrower"]}, "methods='narrower': allowed are snl"),
    ],
)
def test_impossible_comparisons_are_refused(changes, message):
    """With the parameter, the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        Comparison(**ABOUT | {"remedies": ["cvar"], "tuning_seeds": [105]} | changes)


@pytest.mark.parametrize("mus", [[], [0.1, 0.1], [-0.1]])
def test_impossible_steps_are_refused(mus):
    """None, the same twice, below zero."""
    with pytest.raises(ValueError, match=r"mus=|algorithm1=-0.1"):
        Ablation(**ABOUT, mus=mus)


# What is said of a table -----------------------------------------------------------------------


def tally(few=(10, 20), many=(90, 90), n=100, seeds=1, budget=0.1):
    """Two groups of ``n`` test images: right in the base, and with the remedy."""
    rows = [
        {"group": g, "train_n": size, "n": n, "base": b, "correct": c, "both": min(b, c)}
        for g, size, (b, c) in (("many", 900, many), ("few", 100, few))
    ]
    about = {"method": "snl", "remedy": "cvar 0.5", "budget": budget}
    return pd.concat([pd.DataFrame(rows).assign(seed=s, **about) for s in range(seeds)])


def test_gains_of_the_worst_group_and_of_the_gap():
    """Few goes from 10 to 20 %, many stays at 90 %: ten points up, the gap ten points smaller."""
    found = groups.disparity(tally()).set_index("measure")["value"]
    assert found["worst_accuracy"] == 20 and found["gap"] == 70
    assert found["worst_gain"] == pytest.approx(10) and found["gap_growth"] == pytest.approx(-10)
    turned = groups.disparity(tally(few=(10, 95), many=(90, 50))).set_index("measure")["value"]
    assert turned["worst_gain"] == pytest.approx(40)  # another group is the worst now


def test_signed_ranks_only_from_six_seeds():
    """All six seeds better: p = 2 / 2^6. With five, nothing is tested."""
    for seeds, p in ((6, 2 / 2**6), (5, np.nan)):
        found = groups.signed_ranks(tally(seeds=seeds)).set_index("group")
        assert found.loc["few", "p"] == pytest.approx(p, nan_ok=True)
        assert found.loc["few", "better"] == seeds and found.loc["few", "gain"] == 10
        assert np.isnan(found.loc["many", "p"])  # no difference, nothing to rank
    assert "none below 6 seeds" in report.ranks(tally(seeds=5)).to_string()
    assert "0.031" in report.ranks(tally(seeds=6)).to_string()


def test_words_follow_the_intervals():
    """A gain is only said where the whole interval is on one side."""
    clear = report.helped(tally(few=(100, 400), many=(900, 700), n=1000, seeds=3))
    assert "*few* (smallest group) **gains** 30.0" in clear
    assert "*many* (largest group) **loses** 20.0" in clear and "**shrinks** by" in clear
    vague = report.helped(tally(few=(10, 11), many=(90, 89)))
    assert "neither clearly gains nor loses: 1.0" in vague and "**" not in vague
    assert report.helped(tally(budget=1.0)) == ""


def test_effects_have_a_row_a_remedy_and_budget():
    """Gains have the sign of gains, and the intervals are turned with them."""
    table = pd.concat([tally(), tally(budget=0.02), tally(budget=1.0)])
    found = report.effects(table)
    assert found.index.tolist() == [("CVaR (0.5)", "10 %"), ("CVaR (0.5)", "2 %")]
    both = report.effects(pd.concat([table, table.assign(method="deepreduce")]))
    named = {("SNL, CVaR (0.5)", "2 %"), ("DeepReDuce, CVaR (0.5)", "2 %")}
    assert named <= set(both.index)  # where there are two methods
    text = found["gain: few (smallest)"].iloc[0]
    value, low, high = map(
        float, text.replace("−", "-").translate(str.maketrans("[],", "   ")).split()
    )
    assert value == 10 and low < value < high


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    """Against a loop."""
    x, y = np.array(points).T

    def beaten(i):
        return any(
            x[j] >= x[i] and y[j] >= y[i] and (x[j] > x[i] or y[j] > y[i]) for j in range(len(x))
        )

    front = plots.pareto(x, y)
    assert sorted(front) == [i for i in range(len(x)) if not beaten(i)]
    assert (np.diff(x[front]) >= 0).all()


def test_figures_of_remedies():
    """They are drawn, with a mark a remedy and the sizes of the groups."""
    table = pd.concat([tally(), tally().assign(remedy="jtt 5"), tally(budget=0.02),
                       tally(budget=0.02).assign(remedy="jtt 5")])  # fmt: skip
    for figure in (plots.gains(table), plots.tradeoff(table), plots.tradeoff(table, joined=True)):
        assert len(figure.axes) == 2
        assert {"10 % of the ReLUs", "2 % of the ReLUs"} == {a.get_title() for a in figure.axes}
    for draw in (plots.gains, plots.tradeoff):  # a method that reaches no budget
        with pytest.raises(ValueError, match="none of these budgets is within"):
            draw(tally(budget=1.0))
    labels = [t.get_text() for t in plots.gains(table).axes[0].get_yticklabels()]
    assert sorted(labels) == ["CVaR (0.5)", "JTT (5)"]
    logs = pd.DataFrame({"method": "snl", "remedy": "cvar 0.5", "seed": [0, 0, 1, 1],
        "budget": 0.1, "epoch": [1, 2, 1, 2], "group": "few", "quantity": "loss",
        "value": [2.0, 1.0, 4.0, 3.0]})  # fmt: skip
    (axis,) = plots.paths(logs, table, "loss").axes
    mean = [line for line in axis.lines if line.get_linewidth() == 2 and len(line.get_ydata())]
    assert [3.0, 2.0] in [list(line.get_ydata()) for line in mean]


def test_budgets_that_no_method_reaches_are_refused(tmp_path):
    """By name, and before any training."""
    study = Mitigation(**ABOUT | {"methods": ["deepreduce"], "budgets": [0.001]}, mu=0.1)
    with pytest.raises(ValueError, match=r"budgets=\[0.001\]: \['deepreduce'\] can reach none"):
        study.geometry(store=Store(tmp_path))
