"""The toy problem."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from relufair import groups, masks
from relufair.theory import CLASSES, DecisionBoundary, curve, sample, spread, train_together

SMALL = {
    "budgets": [0.5, 0.0], "minority": 0.1, "samples": 200, "hidden": [4], "steps": 30,
    "lr": 0.01, "seeds": [0, 1],
}  # fmt: skip


def test_points_lie_where_their_labels_say():
    """Ten percent above the curve, the others below, all in the square."""
    points, labels = sample(2000, 0.1, np.random.default_rng(0))
    assert labels.sum() == 200
    assert ((points[:, 1] > curve(points[:, 0])) == (labels == 1)).all()
    assert np.abs(points).max() <= 1
    again, _ = sample(2000, 0.1, np.random.default_rng(0))
    assert np.array_equal(points, again)


@given(st.integers(1, 100), st.floats(0, 1))
def test_kept_units_are_evenly_spread(units, kept):
    """As many as the budget allows, and never two more in one half than in the other."""
    chosen = spread(units, kept)
    assert chosen.sum() == np.floor(units * kept + 1e-9)
    half = units // 2
    assert abs(int(chosen[:half].sum()) - int(chosen[units - half :].sum())) <= 1


def test_networks_start_alike_and_train_as_if_alone():
    """The batched training equals a plain loop over one network."""
    study = DecisionBoundary(**SMALL)
    start, reference = study._network(0.5, 0), study._network(0.5, 0)
    full = study._network(1.0, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(start.parameters(), full.parameters(), strict=True)
    )
    data = [sample(200, 0.1, np.random.default_rng(s)) for s in (0, 1)]
    x, y = (torch.from_numpy(np.stack([d[i] for d in data])) for i in (0, 1))
    (trained, _) = train_together([start, study._network(1.0, 1)], x, y, steps=30, lr=0.01)
    optimizer = torch.optim.Adam(reference.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(reference(x[0]), y[0]).backward()
        optimizer.step()
    for ours, alone in zip(trained.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)
    assert masks.count(trained) == 2


def test_a_linear_network_draws_a_straight_line():
    """With no ReLU the score is an affine function of the point."""
    toy = DecisionBoundary(**SMALL).toys()[0]
    a, b = np.array([[-0.7, 0.2]]), np.array([[0.5, -0.9]])
    middle = toy.score(0.0, (a + b) / 2)
    np.testing.assert_allclose(middle, (toy.score(0.0, a) + toy.score(0.0, b)) / 2, rtol=1e-4)


def test_tally_of_the_toy():
    """20,000 fresh points a seed; the base is the network with all ReLUs."""
    study = DecisionBoundary(**SMALL)
    table = study.measure(study.toys())
    assert table.groupby(["seed", "budget"])["n"].sum().unique() == [20_000]
    assert table.groupby("group")["train_n"].first().to_dict() == dict(
        zip(CLASSES, (180, 20), strict=True)
    )
    full = table[table["budget"] == 1]
    assert (full["correct"] == full["base"]).all() and (full["correct"] == full["both"]).all()
    assert groups.by_group(table)["value"].notna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": [1.5]}, "budget=1.5.*between 0 and 1"),
        ({"budgets": [0.01]}, "would leave none of the 4 ReLUs"),
        ({"hidden": [8, 2], "budgets": [0.25]}, "would leave none of the 2 ReLUs"),
        ({"budgets": []}, "budgets=.*at least one"),
        ({"seeds": [0, 0]}, "seeds=.*none twice"),
        ({"seeds": [-1]}, "seeds=-1"),
        ({"minority": 0.7}, "minority=0.7.*at most 0.5"),
        ({"samples": 20, "minority": 0.01}, "leaves no minority"),
        ({"hidden": []}, "hidden"),
        ({"hidden": [2.5]}, "hidden=2.5.*whole"),
        ({"seeds": [-1]}, "seeds=-1: .* at least 0"),
        ({"seeds": [2**32]}, "seeds=4294967296: .* at least 0 and at most 4294967295"),
        ({"steps": 0}, "steps=0"),
        ({"lr": 0}, "lr=0"),
    ],
)
def test_impossible_values_are_named(change, message):
    """Parameter, value, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        DecisionBoundary(**SMALL | change)
