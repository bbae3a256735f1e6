"""Linear pieces: how well n of them follow a curve, and how many a network can make.

Propositions 4.1 to 4.3 of the paper and its Appendix B.1 as things to compute. Everything is in double
precision, and the pieces of a network are counted in exact fractions.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import nn

from relufair import masks, tracing
from relufair.models import MLP
from relufair.theory import spread

# Best approximation by n pieces (Proposition 4.1) ------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A strictly convex function on an interval, with its derivative."""

    f: Callable[[float], float]
    slope: Callable[[float], float]
    low: float
    high: float


CURVES = {
    "square": Curve(lambda x: x * x, lambda x: 2 * x, 0, 1),
    "exp": Curve(math.exp, math.exp, -2, 2),
    "quartic": Curve(lambda x: x**4 + x * x, lambda x: 4 * x**3 + 2 * x, -1, 2),
    "softplus": Curve(lambda x: math.log1p(math.exp(x)), lambda x: 1 / (1 + math.exp(-x)), -6, 6),
    "steep": Curve(lambda x: -math.sqrt(x), lambda x: -0.5 / math.sqrt(x), 0, 1),
}


def one_piece(curve: Curve, start: float, end: float) -> float:
    """Largest distance from ``curve`` of its best straight line: half of the gap under the chord."""
    rise = (curve.f(end) - curve.f(start)) / (end - start)
    found = minimize_scalar(
        lambda x: curve.f(x) - curve.f(start) - rise * (x - start),
        bounds=(start, end), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    return -found.fun / 2


def longest_piece(curve: Curve, start: float, error: float) -> float:
    """Where the longest line that stays within ``error`` of ``curve`` ends, if it has room.

    It begins ``error`` below the curve, touches the curve raised by ``error``, and ends ``error``
    below it: from the tangent at the point of touch, both ends are ``2 * error`` away.
    """

    def above(x: float, touch: float) -> float:
        tangent = curve.slope(touch) * (x - touch) if x != touch else 0.0
        return curve.f(x) - curve.f(touch) - tangent - 2 * error

    if above(start, curve.high) <= 0:
        return curve.high
    touch = brentq(lambda p: above(start, p), start, curve.high, xtol=1e-300)
    if above(curve.high, touch) <= 0:
        return curve.high
    return brentq(lambda x: above(x, touch), touch, curve.high, xtol=1e-300)


def best_knots(curve: Curve, n: int) -> tuple[float, list[float]]:
    """The best approximation of ``curve`` by ``n`` linear pieces in the largest distance.

    In it all pieces err alike. Of any other ``n`` pieces, one covers one of these, so none does
    better, even with jumps. And these do not jump: all ends lie ``error`` below the curve.

    Returns:
        The error, and the ``n + 1`` knots from end to end.
    """

    def march(error: float) -> list[float]:
        knots = [curve.low]
        while len(knots) < n and knots[-1] < curve.high:
            knots.append(longest_piece(curve, knots[-1], error))
        return knots

    def excess(log_error: float) -> float:  # of the last piece over the others
        last = march(math.exp(log_error))[-1]
        own = one_piece(curve, last, curve.high) if last < curve.high else 0.0
        return own - math.exp(log_error)

    alone = math.log(one_piece(curve, curve.low, curve.high))
    low = alone - 2 * math.log(n) - 4  # well below the errors of these curves
    error = math.exp(brentq(excess, low, alone, xtol=1e-14) if n > 1 else alone)
    return error, [*march(error)[:n], curve.high]


def rates(names: Sequence[str], most: int) -> pd.DataFrame:
    """Errors for 1, 2, 4, … up to ``most`` pieces.

    Returns:
        A row a function and number of pieces, with ``function``, ``n``, ``best`` (the least error)
        and ``even`` (the least with pieces of equal length).
    """
    rows = []
    for name, n in itertools.product(names, [2**i for i in range(most.bit_length())]):
        curve = CURVES[name]
        ends = itertools.pairwise(np.linspace(curve.low, curve.high, n + 1).tolist())
        even = max(one_piece(curve, *pair) for pair in ends)
        rows.append({"function": name, "n": n, "best": best_knots(curve, n)[0], "even": even})
    return pd.DataFrame(rows)


def exponent(x: Collection[float], y: Collection[float]) -> float:
    """The slope of log ``y`` against log ``x``, by least squares.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 12)
    2.0
    """
    return float(np.polyfit(np.log(np.array(x)), np.log(np.array(y)), 1)[0])


# Pieces of a network (Proposition 4.2, Appendix B.1) ---------------------------------------------


def masked_mlp(
    inputs: int, hidden: Sequence[int], outputs: int, kept: Sequence[int], seed: int
) -> nn.Module:
    """An MLP in double precision, its weights drawn from ``seed``, that keeps ``kept`` ReLUs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(inputs, tuple(hidden), outputs).double()
    return linearized(tracing.masked(net, (inputs,)), kept)


def linearized(net: nn.Module, kept: Sequence[int]) -> nn.Module:
    """A copy of a masked MLP that keeps ``kept[i]`` ReLUs of layer i, evenly spread."""
    net = copy.deepcopy(net).eval()
    chosen = {
        name: spread(len(site.alpha), units / len(site.alpha))
        for (name, site), units in zip(masks.sites(net).items(), kept, strict=True)
    }
    return masks.freeze(net, chosen)


def most_pieces(kept: Sequence[int]) -> int:
    r"""Most linear pieces along a line of a network with :math:`r_i` ReLUs left in layer i.

    .. math:: \prod_i (r_i + 1)

    Before the ReLUs of layer i all units are linear on each of the p pieces so far, so one ReLU
    bends at most once in a piece, and :math:`r_i` of them make at most :math:`p + r_i p`. Linear units
    bend nowhere. :func:`sawtooth` attains it, and it never exceeds :func:`arora`.
    """
    return math.prod(units + 1 for units in kept)


def arora(widths: Sequence[int]) -> int:
    r"""The bound :math:`2^{k-1}(w_1+1)w_2\cdots w_k` of Proposition 4.2 (Arora et al., 2018)."""
    return 2 ** (len(widths) - 1) * (widths[0] + 1) * math.prod(widths[1:])


def sawtooth(kept: Sequence[int]) -> nn.Module:
    """A network R → R with ``kept[i]`` ReLUs and a linear unit in layer i, and the most pieces.

    Each layer folds its input into a zigzag whose teeth all span the kinks of the next layer.
    """
    net = masked_mlp(1, [r + 1 for r in kept], 1, [0] * len(kept), seed=0)
    zigzag = torch.ones(1, 1, dtype=torch.float64)
    linear = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    for i, site in enumerate(masks.sites(net).values()):
        units = torch.arange(kept[i] + 1)
        site.freeze(units > 0)
        linear[i].weight.data = (kept[i] + 1) * zigzag.repeat(len(units), 1)
        linear[i].bias.data = -units.double()
        zigzag = torch.where(units > 0, 2.0 * (-1.0) ** units, 1.0).double()[None]
    linear[-1].weight.data = zigzag
    return net


_exact = np.vectorize(Fraction, otypes=[object])


def breakpoints(net: nn.Module, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Where the network bends along a line: all t at which ``net(point + t * direction)`` has a kink.

    The kinks are carried from layer to layer as exact fractions, not looked for on a grid: these are
    the kinks of the network with exactly these weights. There is one more piece than kinks.

    Args:
        net: an MLP, masked or not.
        point, direction: (inputs,).

    Raises:
        ValueError: for a layer that is neither linear nor a ReLU.
    """
    # On piece i the units of a layer are start[i] + t * slope[i].
    start, slope, knots = _exact(point)[None], _exact(direction)[None], []
    for layer in net.layers:
        if isinstance(layer, nn.Linear):
            weight, bias = (_exact(p.detach().numpy()) for p in (layer.weight, layer.bias))
            start, slope = start @ weight.T + bias, slope @ weight.T
        elif isinstance(layer, nn.ReLU | masks.MaskedReLU):
            alpha = getattr(layer, "alpha", torch.ones(slope.shape[1])).detach().numpy()
            start, slope, knots = _bend(start, slope, knots, 1 - _exact(alpha))
        else:
            raise ValueError(f"layer={layer}: must be linear or a ReLU")
    bends = (slope[1:] != slope[:-1]).any(1)
    return np.array([float(t) for t, bend in zip(knots, bends, strict=True) if bend])


def _bend(start: np.ndarray, slope: np.ndarray, knots: list, below: np.ndarray) -> tuple:
    """Split pieces where a unit changes sign, and multiply units by ``below`` where negative."""
    zeros = set(knots)
    for i, (low, high) in enumerate(itertools.pairwise([-math.inf, *knots, math.inf])):
        bent = (below != 1) & (slope[i] != 0)
        zeros.update(t for t in -start[i, bent] / slope[i, bent] if low < t < high)
    finer = sorted(zeros)
    ends = [finer[0] - 2, *finer, finer[-1] + 2] if finer else [-1, 1]
    inside = np.array([(a + b) / 2 for a, b in itertools.pairwise(ends)], dtype=object)
    piece = [bisect.bisect(knots, t) for t in inside]
    start, slope = start[piece], slope[piece]
    factor = np.where(start + slope * inside[:, None] < 0, below, 1)
    return start * factor, slope * factor, finer


# Best fits to a sample (Proposition 4.3) ---------------------------------------------------------


def best_fit(x: np.ndarray, y: np.ndarray, candidates: Sequence[float], n: int) -> np.ndarray:
    """Values at ``x`` of the least-squares fit by ``n`` linear pieces that meet at ``candidates``.

    All choices of ``n - 1`` candidates are tried, so it is the optimum, and since the slope need not
    change at a knot, ``n + 1`` pieces fit no worse. It is the best that a network with a hidden layer
    of a linear unit and ``n - 1`` ReLUs can do if these bend at candidates.
    """

    def fit(knots: tuple[float, ...]) -> np.ndarray:
        basis = np.stack([np.ones_like(x), x, *(np.maximum(x - k, 0) for k in knots)], 1)
        return basis @ np.linalg.lstsq(basis, y, rcond=None)[0]

    fits = map(fit, itertools.combinations(candidates, n - 1))
    return min(fits, key=lambda values: float(((values - y) ** 2).sum()))
