"""One function a figure kind: a tidy table in, a matplotlib figure out.

Groups keep their colour and marker in all figures of a page: in order of their size in the training
set, largest first, from a palette that colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from relufair import groups, theory

MARKERS = "osD^vPX*<>"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "svg.hashsalt": "relufair",
}


def styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, marker and label (with sizes) of each group of a tally, largest first."""
    sizes = table.groupby("group", sort=False)[["train_n", "n"]].mean().round().astype(int)
    sizes = sizes.sort_values("train_n", ascending=False, kind="stable")
    palette = sns.color_palette("colorblind", max(len(sizes), 3))
    return {
        group: {
            "color": palette[i],
            "marker": MARKERS[i % len(MARKERS)],
            "label": f"{group} ({row.train_n:,} train, {row.n:,} test)",
        }
        for i, (group, row) in enumerate(sizes.iterrows())
    }


def percent(share: float) -> str:
    """A share in percent, as short as it can be said.

    >>> percent(0.02), percent(0.001), percent(1.0)
    ('2 %', '0.1 %', '100 %')
    """
    return f"{100 * share:.3g} %"


def _figure(panels: int, note: str, height: float = 3.6) -> tuple[Figure, Sequence[Axes]]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, panels, figsize=(8, height), layout="constrained", squeeze=False
        )
    if note:
        figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left", wrap=True)
    return figure, axes[0]


def _legend(figure: Figure, axis: Axes, columns: int = 2) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8
    )


def _by_budget(axis: Axes, budgets: Sequence[float]) -> dict[float, int]:
    """Label the horizontal axis with the budgets, all ReLUs first; their places."""
    places = {budget: i for i, budget in enumerate(sorted(budgets, reverse=True))}
    axis.set_xticks(list(places.values()), [percent(b) for b in places])
    axis.set_xlabel("ReLUs kept")
    return places


def group_accuracy(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy of each group at each budget, as bars with 95 % intervals (the paper's Fig. 1)."""
    figure, (axis,) = _figure(1, note)
    summary = groups.by_group(table).query("measure == 'accuracy'")
    places, looks = _by_budget(axis, summary["budget"].unique()), styles(table)
    width = 0.8 / len(looks)
    for i, (group, look) in enumerate(looks.items()):
        own = summary[summary["group"] == group]
        x = own["budget"].map(places) + (i - (len(looks) - 1) / 2) * width
        axis.bar(x, own["value"], width, color=look["color"], label=look["label"])
        axis.errorbar(
            x, own["value"], _errors(own), fmt="none", ecolor="0.2", elinewidth=1, capsize=2
        )
    axis.set(ylabel="test accuracy (%)", ylim=(0, 100))
    axis.grid(axis="x", visible=False)
    _legend(figure, axis)
    return figure


def drops(table: pd.DataFrame, note: str = "") -> Figure:
    """What each group loses at each budget, relative and in points (Fig. 6), with 95 % intervals."""
    figure, axes = _figure(2, note)
    titles = {"relative_drop": "relative drop (%)", "drop_points": "drop (percentage points)"}
    summary = groups.by_group(table)
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        own = summary[(summary["measure"] == measure) & (summary["budget"] < 1)]
        places, looks = _by_budget(axis, own["budget"].unique()), styles(table)
        for i, (group, look) in enumerate(looks.items()):
            line = own[own["group"] == group].sort_values("budget", ascending=False)
            x = line["budget"].map(places) + (i - (len(looks) - 1) / 2) * 0.06
            axis.errorbar(x, line["value"], _errors(line), capsize=2, lw=1.5, ms=5, **look)
        axis.axhline(0, color="0.2", lw=0.8)
        axis.set_ylabel(title)
    _legend(figure, axes[0])
    return figure


def overall(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy on all test images, and of the worst group, by budget (Fig. 5)."""
    figure, (axis,) = _figure(1, note, height=3.2)
    mean = groups.by_group(table).query("measure == 'accuracy' and group == @groups.ALL")
    worst = groups.disparity(table).query("measure == 'worst_accuracy'")
    blue, _, orange = sns.color_palette("colorblind", 3)
    places = _by_budget(axis, mean["budget"].unique())
    lines = {"all test images": (mean, blue, "o"), "worst group": (worst, orange, "s")}
    for label, (line, color, marker) in lines.items():
        line = line.sort_values("budget", ascending=False)
        axis.errorbar(
            line["budget"].map(places), line["value"], _errors(line),
            color=color, marker=marker, capsize=2, label=label,
        )  # fmt: skip
        axis.axhline(line["value"].iloc[0], color=color, lw=0.8, ls="--")
    axis.set_ylabel("test accuracy (%)")
    _legend(figure, axis)
    return figure


def _errors(rows: pd.DataFrame) -> np.ndarray:
    """Distances from the value to the ends of its interval (2, n); bootstrap ends can cross it."""
    ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    return np.clip(np.stack(ends), 0, None)


def boundaries(toy: theory.Toy, budgets: Sequence[float], note: str = "") -> Figure:
    """The toy problem's points, the true boundary and what networks have learned (Fig. 2)."""
    figure, axes = _figure(len(budgets), note, height=4)
    side = np.linspace(-1, 1, 301)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    blue, _, _, red = sns.color_palette("colorblind", 4)
    for axis, kept in zip(axes, budgets, strict=True):
        above = toy.labels == 1
        for chosen, color, marker, name in (
            (~above, blue, ".", theory.CLASSES[0]),
            (above, red, "x", theory.CLASSES[1]),
        ):
            label = f"{name}, n = {chosen.sum():,}"
            axis.scatter(
                *toy.points[chosen].T, s=9, color=color, marker=marker, lw=0.8, label=label
            )
        score = toy.score(kept, grid).reshape(301, 301)
        axis.contour(side, side, score, [0], colors="black", linewidths=2)
        axis.plot(side, theory.curve(side), "k:", lw=1.5, label="true boundary")
        axis.plot([], [], "k-", lw=2, label="learned boundary")
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.set_title("all ReLUs" if kept == 1 else f"{percent(kept)} of the ReLUs", fontsize=10)
        axis.grid(visible=False)
    _legend(figure, axes[0], columns=4)
    return figure
