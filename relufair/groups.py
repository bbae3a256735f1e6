"""What each group loses: accuracies, drops and gaps, with intervals.

Everything is computed from one small *tally*, a row a run × budget × group, with the columns

============== ===================================================================================
``method``     how the budget is met
``seed``       of the run: of its split, its weights and its batches
``budget``     share of the ReLUs kept
``group``      name
``n``          test images of the group
``correct``    of these, classified correctly by the linearized network
``base``       of these, classified correctly by the network with all its ReLUs
``both``       of these, classified correctly by both
============== ===================================================================================

Intervals are 95 % percentile bootstrap intervals over seeds and, within a seed and group, over images;
an image keeps its two predictions, so that differences are paired. With few seeds they are too narrow
as far as the spread between seeds goes; the number of seeds stands beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

DRAWS = 2000
ENOUGH = 6  # seeds, below which the smallest p of a signed-rank test is above 5 %
FEWEST = 30  # test images of a group, below which its accuracy is not shown
ALL = "all"


def tally(
    correct: np.ndarray, base: np.ndarray, groups: np.ndarray, names: tuple[str, ...]
) -> pd.DataFrame:
    """Count, by group, the images that the linearized and the original network get right.

    Args:
        correct, base: (n,), booleans.
        groups: (n,), places in ``names``.
        names: of the groups.

    Raises:
        ValueError: if a group has the name that stands for everyone.

    >>> right, base = np.array([True, False, False]), np.array([True, True, False])
    >>> tally(right, base, np.array([0, 0, 1]), ("a", "b"))
      group  n  correct  base  both
    0     a  2        1     2     1
    1     b  1        0     0     0
    """
    if ALL in names:
        raise ValueError(f"group={ALL!r}: this name stands for everyone; give the group another")
    flags = {"n": np.ones_like(correct), "correct": correct, "base": base, "both": correct & base}
    counts = {
        name: np.bincount(groups, flag, minlength=len(names)).astype(int)
        for name, flag in flags.items()
    }
    return pd.DataFrame({"group": names, **counts})


def cells(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """The tally of one budget as paired counts, and the groups' names; the last group is everyone.

    Returns:
        Counts (seeds, groups + 1, 4) of the images that are right in both networks, only in the
        original, only in the linearized, in neither.
    """
    order = list(dict.fromkeys(table["group"]))
    wide = table.set_index(["seed", "group"])
    wide = wide[["both", "base", "correct", "n"]]
    wide = wide.reindex(pd.MultiIndex.from_product([wide.index.levels[0], order])).fillna(0)
    both, base, right, n = wide.to_numpy().T
    counts = np.stack([both, base - both, right - both, n - base - right + both], -1)
    counts = counts.reshape(-1, len(order), 4).astype(int)
    return np.concatenate([counts, counts.sum(1, keepdims=True)], 1), [*order, ALL]


def resample(counts: np.ndarray, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Bootstrap over seeds and images: ``counts`` (S, G + 1, 4) to (draws, S, G + 1, 4)."""
    seeds = rng.integers(len(counts), size=(draws, len(counts)))
    groups = counts[seeds, :-1]
    n = groups.sum(-1)
    drawn = rng.multinomial(n, groups / np.maximum(n, 1)[..., None])
    return np.concatenate([drawn, drawn.sum(2, keepdims=True)], 2)


def _accuracies(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy over seeds (..., G) of the original and the linearized network."""
    n = counts.sum(-1)
    present = n > 0  # a seed whose test set lacks the group leaves its mean to the others

    def mean(right: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (right / np.maximum(n, 1)).sum(-2) / present.sum(-2)

    return mean(counts[..., 0] + counts[..., 1]), mean(counts[..., 0] + counts[..., 2])


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Accuracy of the linearized network by group (..., G), in %, averaged over seeds."""
    return 100 * _accuracies(counts)[1]


def drop_points(counts: np.ndarray) -> np.ndarray:
    """Accuracy lost by group, in percentage points."""
    base, right = _accuracies(counts)
    return 100 * (base - right)


def gain(counts: np.ndarray) -> np.ndarray:
    """Accuracy won by group, in percentage points."""
    base, right = _accuracies(counts)
    return 100 * (right - base)


def relative_drop(counts: np.ndarray) -> np.ndarray:
    """Accuracy lost by group, in % of what it was (Section 5 of the paper).

    The accuracies are averaged over seeds first.
    """
    base, right = _accuracies(counts)
    return 100 * (base - right) / np.where(base > 0, base, np.nan)


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "drop_points": drop_points,
    "gain": gain,
    "relative_drop": relative_drop,
}


def _interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():  # a group never right in any network has no relative drop
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return low, high


def by_group(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy and drops of every group, and of all images, at every budget.

    Args:
        table: a tally, see above.
        seed: of the bootstrap.

    Returns:
        A row a method × budget × group × measure, with the columns ``method``, ``budget``,
        ``group``, ``measure`` (``accuracy`` in %, ``drop_points``, their negative ``gain``, and
        ``relative_drop`` in %), ``value``, ``low``, ``high`` (95 %), ``n`` (test images, averaged
        over seeds) and ``seeds``.
    """
    rows = []
    for (method, budget), part in table.groupby(["method", "budget"], sort=False):
        counts, names = cells(part)
        drawn = resample(counts, np.random.default_rng(seed))
        n = counts.sum(-1).mean(0).round().astype(int)
        for measure, function in MEASURES.items():
            low, high = _interval(function(drawn))
            about = {
                "method": method,
                "budget": budget,
                "group": names,
                "measure": measure,
                "value": function(counts),
            }
            interval = {"low": low, "high": high, "n": n, "seeds": len(counts)}
            rows.append(pd.DataFrame(about | interval))
    return pd.concat(rows, ignore_index=True)


def sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Images of each group in training and test, averaged over seeds, largest first."""
    means = table.groupby("group", sort=False)[["train_n", "n"]].mean().round().astype(int)
    return means.sort_values("train_n", ascending=False, kind="stable")


def large_enough(table: pd.DataFrame) -> list[str]:
    """The groups with at least ``FEWEST`` test images, largest first; all, if fewer than two have."""
    every = sizes(table)
    enough = every[every["n"] >= FEWEST]
    return list((enough if len(enough) > 1 else every).index)


def extremes(table: pd.DataFrame) -> tuple[str, str]:
    """The largest and the smallest group of the training set, of those that are large enough."""
    order = large_enough(table)
    return order[0], order[-1]


def disparity(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How unequal the groups that are large enough are at every budget.

    Returns:
        A row a method × budget × measure with ``value``, ``low``, ``high`` and ``seeds``; the
        measures are ``worst_accuracy`` (the lowest of a group), ``gap`` (highest minus lowest
        accuracy, in points), ``excess`` (relative drop of the smallest group in the training set
        minus that of the largest, by the order of the tally's ``train_n``; in points), and
        ``worst_gain`` and ``gap_growth``, how much larger the first two are than in the base.
    """
    order, rows = large_enough(table), []
    for (method, budget), part in table.groupby(["method", "budget"], sort=False):
        counts, names = cells(part)
        places = [names.index(group) for group in order]
        low, high = _interval(_gaps(resample(counts, np.random.default_rng(seed)), places))
        about = {"method": method, "budget": budget}
        about |= {"measure": ["worst_accuracy", "gap", "excess", "worst_gain", "gap_growth"]}
        interval = {"value": _gaps(counts, places), "low": low, "high": high, "seeds": len(counts)}
        rows.append(pd.DataFrame(about | interval))
    return pd.concat(rows, ignore_index=True)


def _gaps(counts: np.ndarray, places: list[int]) -> np.ndarray:
    """Worst accuracy, gap, excess of the last group at ``places`` over the first, changes (..., 5)."""
    (before, after), relative = _accuracies(counts[..., places, :]), relative_drop(counts)
    worst, best = 100 * np.nanmin(after, -1), 100 * np.nanmax(after, -1)
    lowest, highest = 100 * np.nanmin(before, -1), 100 * np.nanmax(before, -1)
    gap, excess = best - worst, relative[..., places[-1]] - relative[..., places[0]]
    return np.stack([worst, gap, excess, worst - lowest, gap - (highest - lowest)], -1)


def by_remedy(table: pd.DataFrame) -> pd.DataFrame:
    """The tally with method and remedy in the one column ``method``.

    So every function here, and every figure and table of drops, takes each remedy for itself.

    >>> rows = {"method": ["snl"], "remedy": ["cvar 0.5"]}
    >>> by_remedy(pd.DataFrame(rows))["method"].item()
    'snl, cvar 0.5'
    """
    return table.assign(method=table["method"] + ", " + table["remedy"])


def signed_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Wilcoxon's signed-rank test, over seeds, of each group's gain over the base.

    Returns:
        A row a method × budget × group (and all) with ``gain`` (points, averaged over seeds),
        ``seeds``, ``better`` (seeds in which the group gains) and ``p`` (two-sided; nan with fewer
        than ``ENOUGH`` seeds, where no outcome could be significant at 5 %).
    """
    from scipy.stats import wilcoxon

    rows = []
    for (method, budget), part in table.groupby(["method", "budget"], sort=False):
        counts, names = cells(part)
        n = counts.sum(-1)
        gains = 100 * (counts[..., 2] - counts[..., 1]) / np.where(n > 0, n, np.nan)
        for group, every in zip(names, gains.T, strict=True):
            own = every[~np.isnan(every)]
            about = {"method": method, "budget": budget, "group": group, "gain": own.mean()}
            p = wilcoxon(own).pvalue if len(own) >= ENOUGH and own.any() else np.nan
            rows.append(about | {"seeds": len(own), "better": int((own > 0).sum()), "p": p})
    return pd.DataFrame(rows)
