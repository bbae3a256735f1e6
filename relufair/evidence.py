"""The tests of the ledger: what number in which table speaks for or against a claim.

A test gets the rows of one table and returns its number: on a tally as an array (1 + draws,), of which
the first is the number as counted and the others are redrawn, or (1 + draws, k) where the largest of k
numbers counts; in a :func:`quotient` as a logarithm a seed; in a :func:`correlation` with its interval.
:mod:`relufair.claims` makes intervals and verdicts of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import stats

from relufair import bounds, groups
from relufair.explain import rank_correlation

FEWEST = 2  # seeds, below which nothing is said
FEWEST_GROUPS = 5  # below which even perfect order is no evidence of one
# Of each test's number; those not named here are differences in points.
RELATIVE = "points of relative drop"
UNITS = {"images": "images", "changed": "images", "ratio": "times", "quotient": "times", "order": "",
         "correlation": "", "excess": RELATIVE}  # fmt: skip


class NotRun(Exception):
    """The rows that a test needs are not there."""


class NoNumber(NotRun):
    """The rows are there, and no such number: a group is never right, or all its runs are odd."""


# Tests on a tally ---------------------------------------------------------------------------------


def _redrawn(rows: pd.DataFrame, budgets: Sequence[float]) -> tuple[np.ndarray, list[str]]:
    """Counts (1 + draws, budgets, seeds, groups + 1, 4), first as they are, and the names.

    With one budget, these are the draws of :mod:`relufair.groups`. Those of the second of two tables
    (column ``turn``) take the same seeds, and other images: drawn by the same numbers, two tables
    would err together, and their difference too little.
    """
    parts = [groups.cells(rows[rows["budget"] == budget]) for budget in budgets]
    flat = np.concatenate([counts[:, :-1] for counts, _ in parts], axis=1)
    flat = np.concatenate([flat, flat.sum(1, keepdims=True)], axis=1)
    turn = rows["turn"].iloc[0] if "turn" in rows else 0
    rng, images = np.random.default_rng(0), np.random.default_rng(turn)
    if turn:  # the seeds are drawn by the first, the images by the other
        rng = SimpleNamespace(integers=rng.integers, multinomial=images.multinomial)
    every = np.concatenate([flat[None], groups.resample(flat, rng)])
    every = every[:, :, :-1].reshape(*every.shape[:2], len(budgets), -1, 4).swapaxes(1, 2)
    return np.concatenate([every, every.sum(3, keepdims=True)], axis=3), parts[0][1]


def _measured(rows: pd.DataFrame, measure: str, budgets: Sequence[float]) -> dict[str, np.ndarray]:
    """``measure`` (1 + draws, budgets) of each group, of all, of the largest and of the smallest."""
    counts, names = _redrawn(rows, budgets)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.moveaxis(groups.MEASURES[measure](counts), -1, 0)
    found = dict(zip(names, values, strict=True))
    large, small = groups.extremes(rows)
    return found | {"largest": found[large], "smallest": found[small]}


def level(
    rows: pd.DataFrame, group: str, budget: float, measure: str = "relative_drop"
) -> np.ndarray:
    """A measure of one group (a name, ``smallest``, ``largest`` or ``all``) at a budget."""
    return _measured(rows, measure, [budget])[group][:, 0]


def ratio(rows: pd.DataFrame, group: str, budget: float, since: float) -> np.ndarray:
    """Relative drop of a group at a budget, in multiples of that at ``since``.

    Where it had none there, a drop is infinitely many times as large, and none is 0 times.
    """
    after, before = _measured(rows, "relative_drop", [budget, since])[group].T
    grown = np.where(after > 0, np.inf, 0)
    times = np.where(before > 0, after / np.where(before > 0, before, 1), grown)
    return np.where(np.isnan(after + before), np.nan, times)


def excess(
    rows: pd.DataFrame, budget: float, since: float | None = None, ends: int = 1
) -> np.ndarray:
    """Relative drop of the smallest group minus that of the largest, or what it rose by ``since``.

    With ``ends``, of so many groups at either end, averaged.
    """
    own = _measured(rows, "relative_drop", [budget] if since is None else [budget, since])
    order = groups.large_enough(rows)
    small, large = (np.mean([own[g] for g in side], axis=0) for side in
                    (order[-ends:], order[:ends]))  # fmt: skip
    apart = small - large
    return apart[:, 0] if since is None else apart[:, 0] - apart[:, 1]


def order(rows: pd.DataFrame, budget: float) -> np.ndarray:
    """Rank correlation, over groups, of relative drop and size in training."""
    own, names = _measured(rows, "relative_drop", [budget]), groups.large_enough(rows)
    drops = np.stack([own[name][:, 0] for name in names], axis=-1)
    return _spearman(drops, groups.sizes(rows)["train_n"][names].to_numpy())


def worst(rows: pd.DataFrame, budgets: Sequence[float]) -> np.ndarray:
    """Drops, in points, of every group at every budget, of which the largest counts."""
    own = _measured(rows, "drop_points", budgets)
    return np.concatenate([own[name] for name in groups.large_enough(rows)], axis=-1)


def gap(rows: pd.DataFrame, budget: float) -> np.ndarray:
    """By how many points the best and the worst group are farther apart than in the base."""
    after, lost = (_measured(rows, m, [budget]) for m in ("accuracy", "drop_points"))
    order = groups.large_enough(rows)
    after, lost = (np.stack([own[g][:, 0] for g in order]) for own in (after, lost))
    return np.ptp(after, axis=0) - np.ptp(after + lost, axis=0)


def jump(rows: pd.DataFrame, budgets: Sequence[float]) -> np.ndarray:
    """The largest change of accuracy on everyone, in points, between neighbouring budgets.

    Which change that is, and its sign, are those of the counts: draws of a size alone are never
    below zero, and would call a change settled where there is none.
    """
    steps = np.diff(_measured(rows, "accuracy", budgets)[groups.ALL])
    largest = np.abs(steps[0]).argmax()
    return steps[:, largest] * (-1 if steps[0, largest] < 0 else 1)


def apart(rows: pd.DataFrame, budget: float, accuracies: dict[str, float]) -> np.ndarray:
    """How far, in points, groups' accuracies are from the given ones; the farthest counts."""
    own = _measured(rows, "accuracy", [budget])
    return np.stack([np.abs(own[g][:, 0] - said) for g, said in accuracies.items()], axis=-1)


def changed(rows: pd.DataFrame, budget: float) -> np.ndarray:
    """Test images, over all seeds, that are right in just one of network and base."""
    counts, _ = _redrawn(rows, [budget])
    return counts[:, 0, :, -1, 1:3].sum((1, 2))


def shares(rows: pd.DataFrame, shares: dict[str, float]) -> np.ndarray:
    """How far, in points, a group's share of the training set is from the given ones; at most."""
    found = groups.sizes(rows)["train_n"]
    found = 100 * found / found.sum()
    return np.full(2, max(abs(found[group] - said) for group, said in shares.items()))


# Tests on other tables ------------------------------------------------------------------------------


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis of ``a`` (..., n) and ``b`` (..., n); nan if constant."""
    a, b = (stats.rankdata(x, axis=-1) for x in (a, b))
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def _by_seed(rows: pd.DataFrame, measure: str, split: str, budget: float) -> pd.DataFrame:
    """The measure, a row a seed and a column a group."""
    own = rows[(rows["measure"] == measure) & (rows["split"] == split) & (rows["budget"] == budget)]
    wide = own.pivot(index="seed", columns="group", values="value")
    if len(wide) < FEWEST:
        raise NotRun
    return wide


def quotient(
    rows: pd.DataFrame, measure: str, budget: float, group: str, to: str | None = None,
    since: float | None = None, split: str = "train",
) -> pd.Series:  # fmt: skip
    """Logarithm, by seed, of a measure of one group; over that of group ``to``, or of ``since``."""
    sizes = rows[(rows["split"] == "train") & (rows["group"] != groups.ALL)]
    sizes = sizes[sizes["measure"] == "gradient"].groupby("group")["n"].first()
    ends = {"largest": sizes.idxmax(), "smallest": sizes.idxmin()}
    own = np.log(_by_seed(rows, measure, split, budget)[ends.get(group, group)])
    if to is None and since is None:
        return own
    other = _by_seed(rows, measure, split, budget if since is None else since)[
        ends.get(to or group, to or group)
    ]
    return (own - np.log(other)).dropna()


def correlation(
    rows: pd.DataFrame, measure: str, budget: float, outcome: str, at: float | None = None,
    split: str = "train",
) -> np.ndarray:  # fmt: skip
    """Rank correlation over groups of a measure with an outcome at a budget.

    Args:
        rows: the long table of :mod:`relufair.explain`, with the outcomes of
            :func:`relufair.claims.published`.
        measure, split: of it.
        budget: of the outcome, and of the measure unless ``at`` is given.
        outcome: ``accuracy``, ``relative_drop``, or ``size`` in training.
        at: budget of the measure.

    Returns:
        The number and the ends of its interval, by :func:`relufair.explain.rank_correlation`.
    """
    x = _by_seed(rows, measure, split, budget if at is None else at)
    own = rows[rows["budget"] == budget].groupby(["seed", "group"])[outcome].first()
    y = own.dropna().unstack("group")
    seeds = x.index.intersection(y.index)
    if len(seeds) < FEWEST or y.shape[1] < FEWEST_GROUPS:
        raise NotRun
    found = np.array(list(rank_correlation(x.loc[seeds], y.loc[seeds].mean()).values()))
    if np.isnan(found).any():
        raise NoNumber("the groups do not differ")
    return found


def holds(rows: pd.DataFrame, statements: Sequence[str], expected: str = "holds") -> pd.DataFrame:
    """The rows of :attr:`relufair.bounds.Theory.checks` with ``as_expected``."""
    rows = rows.set_index(["section", "statement"])
    own = rows.loc[[bounds.STATEMENTS[name][:2] for name in statements]]
    return own.assign(as_expected=own["verdict"] == expected)


def images(rows: pd.DataFrame, source: str) -> np.ndarray:
    """Usable images of a data set as it is distributed."""
    return np.full(2, rows.set_index("source").loc[source, "images"])


_ON_TALLIES = (level, ratio, excess, order, worst, gap, jump, apart, changed, shares)
TESTS: dict[str, dict[str, Callable]] = {
    "tally": {test.__name__: test for test in _ON_TALLIES},
    "toy": {test.__name__: test for test in _ON_TALLIES},
    "geometry": {"quotient": quotient, "correlation": correlation},
    "theory": {"holds": holds},
    "sources": {"images": images},
}
