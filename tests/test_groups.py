"""Tallies, measures and intervals against hand computations and simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relufair import groups


def table(cells, budget=0.1, train=(900, 100)):
    """A tally from (seeds, groups, 4) counts: both, only base, only linearized, neither."""
    rows = []
    for seed, per_group in enumerate(cells):
        for g, (both, base, right, neither) in enumerate(per_group):
            rows.append({
                "method": "snl", "seed": seed, "budget": budget, "group": "ab"[g],
                "train_n": train[g], "n": both + base + right + neither, "correct": both + right,
                "base": both + base, "both": both,
            })  # fmt: skip
    return pd.DataFrame(rows)


CELLS = [[(80, 10, 5, 5), (6, 2, 0, 2)], [(70, 20, 0, 10), (4, 4, 1, 1)]]


def values(summary, measure):
    return summary[summary["measure"] == measure].set_index("group")["value"]


def test_measures_by_hand():
    """Accuracies averaged over seeds, then drops; everyone is the sum of the groups."""
    summary = groups.by_group(table(CELLS))
    base_a, base_b = (0.90 + 0.90) / 2, (0.8 + 0.8) / 2
    right_a, right_b = (0.85 + 0.70) / 2, (0.6 + 0.5) / 2
    right_all = (91 / 110 + 75 / 110) / 2
    accuracy = values(summary, "accuracy")
    assert accuracy.to_dict() == pytest.approx(
        {"a": 100 * right_a, "b": 100 * right_b, "all": 100 * right_all}
    )
    assert values(summary, "drop_points")["b"] == pytest.approx(100 * (base_b - right_b))
    assert values(summary, "gain")["b"] == pytest.approx(100 * (right_b - base_b))
    assert values(summary, "relative_drop")["a"] == pytest.approx(100 * (1 - right_a / base_a))
    assert summary.query("group == 'all'")["n"].unique() == [110]
    assert summary["seeds"].unique() == [2]
    unequal = groups.disparity(table(CELLS)).set_index("measure")["value"]
    assert unequal["worst_accuracy"] == pytest.approx(100 * right_b)
    assert unequal["gap"] == pytest.approx(100 * (right_a - right_b))
    assert unequal["excess"] == pytest.approx(100 * (right_a / base_a - right_b / base_b))


def test_the_smallest_group_is_the_smallest_in_training():
    """Not the smallest in the test set."""
    swapped = groups.disparity(table(CELLS, train=(100, 900))).set_index("measure")["value"]
    usual = groups.disparity(table(CELLS)).set_index("measure")["value"]
    assert swapped["excess"] == pytest.approx(-usual["excess"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.tuples(*[st.integers(0, 30)] * 4)] * 2), min_size=1, max_size=4
    ).filter(lambda cells: all(sum(g) for s in cells for g in s))
)  # fmt: skip
def test_intervals_are_ordered_seeded_and_cells_survive(cells):
    """Counts go through the table unchanged; low <= high; same seed, same interval."""
    counts, names = groups.cells(table(cells))
    assert names == ["a", "b", "all"]
    np.testing.assert_array_equal(counts[:, :2], np.array(cells))
    np.testing.assert_array_equal(counts[:, 2], np.array(cells).sum(1))
    one, two = (groups.by_group(table(cells), seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert not (one["low"] > one["high"]).any()


def test_bootstrap_keeps_pairs_and_sizes():
    """A group in which nothing changed for any image has a drop of exactly zero in every draw."""
    counts, _ = groups.cells(table([[(90, 0, 0, 10), (3, 2, 0, 5)]] * 3))
    drawn = groups.resample(counts, np.random.default_rng(0), draws=500)
    assert (groups.relative_drop(drawn)[:, 0] == 0).all()
    assert (drawn.sum(-1) == counts.sum(-1)).all()
    assert groups.relative_drop(drawn)[:, 1].std() > 0


def test_bootstrap_has_the_binomials_width():
    """One seed, one group: the interval of an accuracy is the binomial's."""
    counts, _ = groups.cells(table([[(800, 0, 0, 200), (8, 0, 0, 2)]]))
    drawn = groups.accuracy(groups.resample(counts, np.random.default_rng(0), draws=4000))
    assert drawn[:, 0].std() == pytest.approx(100 * np.sqrt(0.8 * 0.2 / 1000), rel=0.05)


def test_a_group_that_is_called_as_everyone_is_refused():
    with pytest.raises(ValueError, match="group='all': this name stands for everyone"):
        groups.tally(np.ones(2, bool), np.ones(2, bool), np.array([0, 1]), ("all", "b"))


def test_bootstrap_covers_the_truth():
    """Of 200 simulated studies of ten seeds, about 95 % of the intervals contain the true drop."""
    rng = np.random.default_rng(0)
    shares = np.array([0.6, 0.2, 0.05, 0.15])
    true = 100 * (1 - (shares[0] + shares[2]) / (shares[0] + shares[1]))
    hits = 0
    for study in range(200):
        cells = rng.multinomial(100, shares, size=(10, 2))
        summary = groups.by_group(table(cells.tolist()), seed=study)
        row = summary[(summary["measure"] == "relative_drop") & (summary["group"] == "a")].iloc[0]
        hits += row["low"] <= true <= row["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_seeds_that_differ_widen_the_interval():
    """The same pooled counts, once alike over seeds and once spread: the second is wider."""
    alike = [[(50, 20, 0, 30), (5, 2, 0, 3)]] * 4
    apart = [[(50 + d, 20 - d, 0, 30), (5, 2, 0, 3)] for d in (-20, -20, 20, 20)]
    widths = [
        (s["high"] - s["low"])[(s["measure"] == "accuracy") & (s["group"] == "a")].item()
        for s in (groups.by_group(table(c)) for c in (alike, apart))
    ]
    assert widths[1] > 2 * widths[0]


def test_a_group_missing_in_one_seed_neither_fails_nor_counts():
    """A seed whose test set has none of the group leaves its mean to the others."""
    full = table(CELLS)
    part = full[~((full["seed"] == 1) & (full["group"] == "b"))]
    assert values(groups.by_group(part), "accuracy")["b"] == pytest.approx(60)


def test_tally_counts_every_image_once():
    """Also a group without any image."""
    right = np.array([True, True, False, False])
    base = np.array([True, False, True, False])
    counted = groups.tally(right, base, np.array([0, 0, 2, 2]), ("a", "b", "c"))
    assert counted["n"].tolist() == [2, 0, 2]
    assert counted["correct"].tolist() == [2, 0, 0]
    assert counted["base"].tolist() == [1, 0, 1]
    assert counted["both"].tolist() == [1, 0, 0]


def test_methods_are_kept_apart():
    """Two methods in one tally: the summary of each is that of its own rows."""
    one, two = table(CELLS), table(CELLS[::-1]).assign(method="random")
    both = groups.by_group(pd.concat([one, two]))
    for method, own in (("snl", one), ("random", two)):
        rows = both[both["method"] == method].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, groups.by_group(own))


def test_groups_with_too_few_test_images_decide_nothing():
    """Of three groups the smallest has 10 test images: the verdict is about the other two."""
    three = table([[(80, 10, 5, 5), (60, 20, 0, 20)]])
    tiny = three[three["group"] == "b"].assign(
        group="c", train_n=5, n=10, correct=5, base=6, both=5
    )
    assert groups.extremes(pd.concat([three, tiny])) == ("a", "b")
    assert groups.extremes(table(CELLS)) == ("a", "b")  # but one must have something to say
