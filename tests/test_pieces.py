"""Linear pieces: closed forms, optimality against any other knots, exact counts against evaluation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from relufair import masks, pieces, tracing
from relufair.models import MLP

SECOND = {
    "square": lambda x: 2.0,
    "exp": np.exp,
    "quartic": lambda x: 12 * x**2 + 2,
    "softplus": lambda x: 1 / (2 + np.exp(x) + np.exp(-x)),
    "steep": lambda x: x**-1.5 / 4,
}
curves = st.sampled_from(sorted(pieces.CURVES))
kept = st.lists(st.integers(0, 4), min_size=1, max_size=3)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 32])
def test_the_parabola_in_closed_form(n):
    """Even knots, and an error of 1/(8n²)."""
    error, knots = pieces.best_knots(pieces.CURVES["square"], n)
    assert error == pytest.approx(1 / (8 * n**2), rel=1e-12)
    np.testing.assert_allclose(knots, np.linspace(0, 1, n + 1), atol=1e-12)


@pytest.mark.parametrize("name", pieces.CURVES)
def test_the_constant_of_the_rate(name):
    """n² times the error tends to (∫ √f'')² / 16."""
    curve = pieces.CURVES[name]
    integral, _ = quad(lambda x: np.sqrt(SECOND[name](x)), curve.low, curve.high)
    error, _ = pieces.best_knots(curve, 128)
    assert 128**2 * error == pytest.approx(integral**2 / 16, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(curves, st.integers(1, 12), st.data())
def test_all_pieces_err_alike_and_no_other_knots_do_better(name, n, data):
    curve = pieces.CURVES[name]
    error, knots = pieces.best_knots(curve, n)
    assert len(knots) == n + 1 and (knots[0], knots[-1]) == (curve.low, curve.high)
    own = [pieces.one_piece(curve, *ends) for ends in itertools.pairwise(knots)]
    np.testing.assert_allclose(own, error, rtol=1e-6)
    drawn = data.draw(st.lists(st.integers(1, 999), min_size=n - 1, max_size=n - 1, unique=True))
    ends = curve.low + (curve.high - curve.low) * np.array([0, *sorted(drawn), 1000]) / 1000
    other = max(pieces.one_piece(curve, *pair) for pair in itertools.pairwise(ends.tolist()))
    assert other >= error * (1 - 1e-9)


def test_the_pieces_meet_and_reach_the_error():
    """Joined through the points ``error`` below the curve, they are nowhere further away."""
    curve = pieces.CURVES["exp"]
    error, knots = pieces.best_knots(curve, 5)
    x = np.linspace(curve.low, curve.high, 20_001)
    apart = np.interp(x, knots, np.exp(knots) - error) - np.exp(x)
    assert np.abs(apart).max() == pytest.approx(error, rel=1e-5)


def test_the_table_of_rates():
    """Doubling from one to the most; the best is the best."""
    table = pieces.rates(["exp", "steep"], 20)
    assert table["n"].tolist() == [1, 2, 4, 8, 16] * 2
    assert (table["best"] <= table["even"] * (1 + 1e-9)).all()
    steep = table[table["function"] == "steep"]
    assert pieces.exponent(steep["n"], steep["even"]) == pytest.approx(-0.5, abs=1e-6)


# Networks ----------------------------------------------------------------------------------------


def along(net, point, direction, t):
    with torch.no_grad():
        return net(torch.from_numpy(point + np.asarray(t)[:, None] * direction)).numpy()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 10**6))
def test_the_breakpoints_are_all_the_kinks(data, seed):
    """Straight between two of them, bent at each; and never more than the bound."""
    hidden = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    left = [data.draw(st.integers(0, width)) for width in hidden]
    net = pieces.masked_mlp(2, hidden, 2, left, seed)
    rng = np.random.default_rng(seed)
    ray = rng.normal(size=2), rng.normal(size=2)
    kinks = pieces.breakpoints(net, *ray)
    assert len(kinks) + 1 <= pieces.most_pieces(left) <= pieces.arora(hidden)
    ends = np.array([-50.0, *kinks, 50.0]) if len(kinks) else np.array([-50.0, 50.0])
    assume(np.abs(kinks).max(initial=0) < 49 and np.diff(ends).min() > 1e-4)
    low, high = ends[:-1, None], ends[1:, None]
    share = np.array([0.0, 0.1, 0.45, 0.8, 1.0])
    t = (low + (high - low) * share).ravel()
    values = along(net, *ray, t).reshape(len(ends) - 1, 5, 2)
    straight = values[:, :1] + share[:, None] * (values[:, -1:] - values[:, :1])
    np.testing.assert_allclose(values, straight, atol=1e-9)
    slopes = (values[:, -1] - values[:, 0]) / (high - low)
    assert (np.abs(np.diff(slopes, axis=0)).max(1) > 0).all()


@given(kept)
@settings(max_examples=20, deadline=None)
def test_a_sawtooth_attains_the_bound(left):
    """The bound is sharp for any numbers of ReLUs, none included."""
    net = pieces.sawtooth(left)
    kinks = pieces.breakpoints(net, np.zeros(1), np.ones(1))
    assert len(kinks) + 1 == pieces.most_pieces(left)
    assert [int(site.alpha.sum()) for site in masks.sites(net).values()] == left


def test_counts_by_hand():
    """|x| - 1, folded once more, is a W; units that cancel each other leave no kink."""
    net = MLP(1, (2, 2), 1).double()
    for linear, weight, bias in zip(
        net.layers[::2],
        ([[1.0], [-1.0]], [[1.0, 1], [-1, -1]], [[1.0, 1]]),
        ([0.0, 0], [-1.0, 1], [0.0]),
        strict=True,
    ):
        linear.weight.data, linear.bias.data = (
            torch.tensor(weight).double(),
            torch.tensor(bias).double(),
        )
    np.testing.assert_array_equal(pieces.breakpoints(net, [0.0], [1.0]), [-1, 0, 1])
    np.testing.assert_array_equal(pieces.breakpoints(net, [0.0], [0.5]), [-2, 0, 2])
    net.layers[2].weight.data = torch.tensor([[1.0, 1], [1, 1]]).double()
    net.layers[2].bias.data = torch.ones(2).double()
    net.layers[4].weight.data = torch.tensor([[1.0, -1]]).double()
    assert len(pieces.breakpoints(net, [0.0], [1.0])) == 0


def test_masked_and_plain_networks_and_half_masks():
    """All masks at one is the plain network; half a mask still bends."""
    plain = MLP(1, (5,), 1)
    net = tracing.masked(plain, (1,))
    kinks = pieces.breakpoints(plain, [0.0], [1.0])
    assert len(kinks) == 5
    np.testing.assert_array_equal(pieces.breakpoints(net, [0.0], [1.0]), kinks)
    net.layers[1].alpha.data[:3] = 0.5
    np.testing.assert_array_equal(pieces.breakpoints(net, [0.0], [1.0]), kinks)
    net.layers[1].alpha.data[:3] = 0
    assert len(pieces.breakpoints(net, [0.0], [1.0])) == 2
    plain.layers[1] = nn.Tanh()
    with pytest.raises(ValueError, match=r"layer=Tanh\(\): must be linear or a ReLU"):
        pieces.breakpoints(plain, [0.0], [1.0])


# Fits --------------------------------------------------------------------------------------------


def test_best_fits_are_optimal_and_nested():
    """One piece is the regression line; of two, no knot anywhere does better; more are no worse."""
    x = np.arange(-9, 10, 2) / 10
    y = x**2
    knots = np.arange(-6, 7, 2) / 10
    line = np.polyval(np.polyfit(x, y, 1), x)
    np.testing.assert_allclose(pieces.best_fit(x, y, knots, 1), line, atol=1e-12)
    errors = [((pieces.best_fit(x, y, knots, n) - y) ** 2).sum() for n in range(1, 6)]
    assert (np.diff(errors) < 0).all()

    def bent(knot):
        basis = np.stack([np.ones_like(x), x, np.abs(x - knot)], 1)
        return np.linalg.lstsq(basis, y, rcond=None)[1].item()

    assert min(map(bent, np.linspace(-0.9, 0.9, 181)[1:-1])) == pytest.approx(errors[1])
    assert errors[4] < 1e-2 * errors[0]
