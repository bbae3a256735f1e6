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
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from relufair import groups, theory
from relufair.words import kept, named, percent

MARKERS = "osD^vPX*<>ph"
MOST = 10  # groups in a figure with a line each
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "svg.hashsalt": "relufair",
}


def styles(table: pd.DataFrame, every: bool = False) -> dict[str, dict[str, Any]]:
    """Colour, marker and label (with sizes) of the groups to draw, largest first.

    Args:
        table: a tally.
        every: draw all groups. Otherwise, of more than ten, the two largest and the two smallest,
            in the colours that they have among all.

    Groups with fewer than ``groups.FEWEST`` test images are never drawn.
    """
    sizes = groups.sizes(table)
    sizes = sizes[sizes["n"] >= groups.FEWEST]
    palette = sns.color_palette("colorblind", max(len(sizes), 3))
    looks = {
        group: {
            "color": palette[i],
            "marker": MARKERS[i % len(MARKERS)],
            "label": f"{group} ({row.train_n:,} train, {row.n:,} test)",
        }
        for i, (group, row) in enumerate(sizes.iterrows())
    }
    few = list(looks) if every or len(looks) <= MOST else [*looks][:2] + [*looks][-2:]
    return {group: looks[group] for group in few}


def _of_methods(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, marker and label of each method."""
    names = table["method"].unique()
    looks = zip(names, sns.color_palette("colorblind", len(names)), MARKERS, strict=False)
    return {m: {"color": c, "marker": marker, "label": named(m)} for m, c, marker in looks}


def left_out(table: pd.DataFrame) -> str:
    """Which groups are too small to be drawn, with their test images; empty if none is."""
    small = groups.sizes(table).query("n < @groups.FEWEST")["n"]
    if small.empty:
        return ""
    names = ", ".join(f"{group} ({n})" for group, n in small.items())
    return f"Not drawn, fewer than {groups.FEWEST} test images: {names}"


def _figure(
    columns: int, note: str, height: float = 3.6, rows: int = 1, sharey: str | bool = "col"
) -> tuple[Figure, np.ndarray]:
    """A figure with axes (rows, columns), each row of this height in inches.

    Raises:
        ValueError: for none, which is what a method has that reaches no budget.
    """
    if not rows * columns:
        raise ValueError("nothing to draw: none of these budgets is within the method's reach")
    size = {"figsize": (8, height * rows), "layout": "constrained"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, squeeze=False, sharey=sharey, **size)
    if note:
        figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left", wrap=True)
    return figure, axes


def _dodge(n: int, width: float) -> np.ndarray:
    """Shifts (n,) of what stands side by side at one place and shares this ``width``."""
    return (np.arange(n) - (n - 1) / 2) * width / max(n, 1)


def _lines(
    axis: Axes, rows: pd.DataFrame, by: str, looks: dict[str, dict[str, Any]],
    places: dict[float, int], **how: Any,
) -> None:  # fmt: skip
    """A line with intervals for each value of the column ``by``, by budget at its place."""
    n = len(looks)
    for shift, (name, look) in zip(_dodge(n, 0.06 * n), looks.items(), strict=True):
        own = rows[rows[by] == name].sort_values("budget", ascending=False)
        x = own["budget"].map(places) + shift
        axis.errorbar(x, own["value"], _errors(own), capsize=2, **look, **how)


def _legend(figure: Figure, axis: Axes, columns: int = 2) -> None:
    """The legend of ``axis`` above all panels, each label once."""
    found = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    how = {"loc": "outside upper center", "ncols": columns, "frameon": False, "fontsize": 8}
    figure.legend(found.values(), found, **how)


def _by_budget(axis: Axes, budgets: Sequence[float]) -> dict[float, int]:
    """Label the horizontal axis with the budgets, all ReLUs first; their places."""
    places = {budget: i for i, budget in enumerate(sorted(set(budgets), reverse=True))}
    axis.set_xticks(list(places.values()), [percent(b) for b in places])
    axis.set(xlabel="ReLUs kept", xlim=(-0.5, len(places) - 0.5))
    return places


def group_accuracy(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy of each group at each budget, as bars with 95 % intervals (the paper's Fig. 1)."""
    names = table["method"].unique()
    figure, axes = _figure(1, note, rows=len(names))
    summary, looks = groups.by_group(table).query("measure == 'accuracy'"), styles(table)
    width = 0.8 / max(len(looks), 1)
    for method, (axis,) in zip(names, axes, strict=True):
        places, mine = _by_budget(axis, table["budget"]), summary[summary["method"] == method]
        for shift, (group, look) in zip(_dodge(len(looks), 0.8), looks.items(), strict=True):
            own = mine[mine["group"] == group]
            axis.bar(
                own["budget"].map(places) + shift, own["value"], width, yerr=_errors(own), capsize=2,
                color=look["color"], label=look["label"], error_kw={"ecolor": "0.2", "elinewidth": 1},
            )  # fmt: skip
        axis.set(ylabel="test accuracy (%)", ylim=(0, 100))
        axis.grid(axis="x", visible=False)
        _entitle(axis, method, names)
    _legend(figure, axes[0, 0])
    return figure


def drops(table: pd.DataFrame, note: str = "") -> Figure:
    """What each group loses at each budget, relative and in points (Fig. 6), with 95 % intervals."""
    names = table["method"].unique()
    figure, grid = _figure(2, note, rows=len(names))
    titles = {"relative_drop": "relative drop (%)", "drop_points": "drop (percentage points)"}
    summary, looks = groups.by_group(table).query("budget < 1"), styles(table)
    for method, axes in zip(names, grid, strict=True):
        for axis, (measure, title) in zip(axes, titles.items(), strict=True):
            own = summary[(summary["measure"] == measure) & (summary["method"] == method)]
            places = _by_budget(axis, summary["budget"])
            _lines(axis, own, "group", looks, places, lw=1.5, ms=5)
            axis.axhline(0, color="0.2", lw=0.8)
            axis.set_ylabel(title)
            _entitle(axis, method, names)
    _legend(figure, grid[0, 0])
    return figure


def overall(table: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy on all test images, and of the worst group, by budget and method (Fig. 5)."""
    figure, (axes,) = _figure(2, note, height=3.2)
    mean = groups.by_group(table).query("measure == 'accuracy' and group == @groups.ALL")
    worst = groups.disparity(table).query("measure == 'worst_accuracy'")
    panels = {"all test images": mean, "worst group": worst}
    looks = _of_methods(table)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        _lines(axis, rows, "method", looks, _by_budget(axis, table["budget"]))
        whole = rows.loc[rows["budget"].idxmax(), "value"]
        axis.axhline(whole, color="0.2", lw=0.8, ls="--", label="all ReLUs")
        axis.set_ylabel("test accuracy (%)")
        axis.set_title(title, fontsize=10)
    _legend(figure, axes[0], columns=4)
    return figure


def before_after(table: pd.DataFrame, tally: pd.DataFrame, note: str = "") -> Figure:
    """Gradient norm and margin of each group without and with a remedy (Fig. 13, 14).

    Args:
        table: of :func:`relufair.explain.first_order`, one method, two remedies.
        tally: of the same runs.
        note: to stand below.
    """
    measures = {"gradient": "gradient norm", "margin": "logit margin", "gap": "softmax margin"}
    looks = styles(tally, every=True)
    figure, (axes,) = _figure(len(measures), note)
    budgets = sorted(table["budget"].unique(), reverse=True)
    means = table[table["split"] == "train"].groupby(["measure", "budget", "group", "remedy"])
    means = means["value"].mean().unstack("remedy")[list(table["remedy"].unique())]
    arrow = {"arrowstyle": "->", "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        places = _by_budget(axis, budgets)
        for shift, (group, look) in zip(_dodge(len(looks), 0.8), looks.items(), strict=True):
            for budget, place in places.items():
                x, (before, after) = place + shift, means.loc[measure, budget, group]
                arrow["color"] = look["color"]
                axis.annotate("", (x, after), (x, before), arrowprops=arrow)
                axis.plot(x, before, ls="", ms=5, **look)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.1 * means.loc[measure].max(axis=None))
    _legend(figure, axes[0])
    return figure


def paths(table: pd.DataFrame, tally: pd.DataFrame, quantity: str, note: str = "") -> Figure:
    """What the last training logged of each group, epoch by epoch; a panel a remedy.

    Thick lines are means over seeds, thin ones single seeds.

    Args:
        table: of ``paths`` in :mod:`relufair.mitigation`, one method and budget.
        tally: of the same runs.
        quantity: ``multiplier``, ``violation``, ``loss`` or ``weight``.
        note: to stand below.
    """
    own, looks = table[table["quantity"] == quantity], styles(tally, every=True)
    words = {"violation": "gap to everyone's loss"}.get(quantity, quantity)
    cures = own["remedy"].unique()
    rows = -(-len(cures) // 3)
    figure, grid = _figure(min(len(cures), 3), note, height=2.6, rows=rows, sharey=False)
    for axis in grid.flat[len(cures) :]:
        axis.set_visible(False)
    for axis, cure in zip(grid.flat, cures, strict=False):
        for group, look in looks.items():
            part = own[(own["remedy"] == cure) & (own["group"] == group)]
            by_seed = part.pivot_table("value", "epoch", "seed")
            axis.plot(by_seed, color=look["color"], lw=0.6, alpha=0.5)
            axis.plot(by_seed.mean(axis=1), color=look["color"], lw=2, label=look["label"])
        axis.set_title(named(cure), fontsize=9)
        axis.set(xlabel="epoch", ylabel=words, ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, grid[0, 0])
    return figure


def tradeoff(table: pd.DataFrame, note: str = "", joined: bool = False) -> Figure:
    """Worst group against everyone, a point a remedy, a panel a budget, with 95 % intervals.

    Args:
        table: a tally with one method and several remedies.
        note: to stand below.
        joined: join the remedies by a line, in their order; otherwise the Pareto front is drawn,
            those that no other beats in both.
    """
    own = table.assign(method=table["remedy"])
    budgets = sorted(set(own["budget"]) - {1.0}, reverse=True)
    figure, (axes,) = _figure(len(budgets), note, height=4.2)
    mean = groups.by_group(own).query("measure == 'accuracy' and group == @groups.ALL")
    worst = groups.disparity(own).query("measure == 'worst_accuracy'")
    palette = sns.color_palette("colorblind", own["method"].nunique())
    for axis, budget in zip(axes, budgets, strict=True):
        x, y = (part[part["budget"] == budget].set_index("method") for part in (mean, worst))
        points = np.stack([x["value"], y["value"]], 1)
        front = points if joined else points[pareto(*points.T)]
        axis.plot(*front.T, "-", color="0.6", lw=1, zorder=1)
        for i, cure in enumerate(x.index):
            errors = _errors(y.loc[[cure]]), _errors(x.loc[[cure]])
            axis.errorbar(*points[i], *errors, fmt=MARKERS[i % len(MARKERS)], color=palette[i],
                          elinewidth=0.6, ms=7, label=named(cure))  # fmt: skip
        axis.set(xlabel="accuracy on everyone (%)", ylabel="accuracy of the worst group (%)")
        axis.set_title(kept(budget), fontsize=10)
    _legend(figure, axes[0], columns=4)
    return figure


def pareto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Places of the points that no other beats in one coordinate and matches in the other, by x.

    >>> pareto(np.array([1, 2, 3, 1]), np.array([3, 2, 1, 1])).tolist()
    [0, 1, 2]
    """
    no_worse = (x[:, None] >= x) & (y[:, None] >= y)
    better = (x[:, None] > x) | (y[:, None] > y)
    on = np.flatnonzero(~(no_worse & better).any(0))
    return on[np.argsort(x[on], kind="stable")]


def gains(table: pd.DataFrame, note: str = "") -> Figure:
    """What each remedy wins over none for the worst group and costs everyone; a panel a budget.

    Args:
        table: a tally with one method and several remedies, ``plain`` left out.
        note: to stand below.
    """
    own = table.assign(method=table["remedy"])
    budgets = sorted(set(own["budget"]) - {1.0}, reverse=True)
    worst = groups.disparity(own).query("measure == 'worst_gain'")
    every = groups.by_group(own).query("measure == 'gain' and group == @groups.ALL")
    order = (
        worst[worst["budget"] == min(budgets, default=1)].sort_values("value")["method"].tolist()
    )
    figure, (axes,) = _figure(len(budgets), note, height=0.9 + 0.32 * len(order))
    for axis, budget in zip(axes, budgets, strict=True):
        parts = {"worst group": worst, "everyone": every}
        rows = {name: p[p["budget"] == budget].set_index("method") for name, p in parts.items()}
        _rows(axis, rows, dict(zip(order, map(named, order), strict=True)), axis is axes[0])
        axis.set(xlabel="gain over no remedy (points)")
        axis.set_title(kept(budget), fontsize=10)
    _legend(figure, axes[0])
    return figure


def _rows(
    axis: Axes, parts: dict[str, pd.DataFrame], names: dict[str, str], first: bool = True
) -> None:
    """A row a name, from below, a marker with its interval a part; names only in the first panel."""
    palette = sns.color_palette("colorblind", len(parts))
    looks = zip(parts.items(), _dodge(len(parts), -0.6), palette, MARKERS, strict=False)
    for (label, rows), shift, color, marker in looks:
        own, y = rows.reindex(list(names)), np.arange(len(names)) + shift
        axis.errorbar(own["value"], y, xerr=_errors(own), fmt=marker, color=color, capsize=2, ms=5,
                      label=label)  # fmt: skip
    axis.axvline(0, color="0.2", lw=0.8)
    axis.set_yticks(range(len(names)), names.values() if first else [""] * len(names))


def beside(table: pd.DataFrame, note: str = "") -> Figure:
    """How far a rerun lies from the published run, a row a group, a panel a budget.

    Args:
        table: of :func:`relufair.compare.beside`, one method and remedy.
        note: to stand below.
    """
    budgets = sorted(table["budget"].unique(), reverse=True)
    order = list(dict.fromkeys(table["group"]))[::-1]
    figure, (axes,) = _figure(len(budgets), note, height=1.2 + 0.3 * len(order))
    for axis, budget in zip(axes, budgets, strict=True):
        rows = table[table["budget"] == budget].set_index("group")
        rows = rows.rename(columns={"difference": "value"})
        spread = rows["spread"].reindex(order).fillna(0)
        axis.barh(range(len(order)), 2 * spread, 0.6, -spread, color="0.88",
                  label="± SD over published seeds")  # fmt: skip
        _rows(axis, {"rerun − published": rows}, {g: g for g in order}, axis is axes[0])
        axis.set(xlabel="difference (points)")
        axis.set_title(kept(budget), fontsize=10)
    _legend(figure, axes[0])
    return figure


def _entitle(axis: Axes, method: str, names: Sequence[str]) -> None:
    if len(names) > 1:
        axis.set_title(named(method), fontsize=10)


def _errors(rows: pd.DataFrame) -> np.ndarray:
    """Distances from the value to the ends of its interval (2, n); bootstrap ends can cross it."""
    ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    return np.clip(np.stack(ends), 0, None)


def boundaries(toy: theory.Toy, budgets: Sequence[float], note: str = "") -> Figure:
    """The toy problem's points, the true boundary and what networks have learned (Fig. 2)."""
    figure, (axes,) = _figure(len(budgets), note, height=4)
    side = np.linspace(-1, 1, 301)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    blue, _, _, red = sns.color_palette("colorblind", 4)
    for axis, budget in zip(axes, budgets, strict=True):
        above = toy.labels == 1
        for chosen, color, marker, name in (
            (~above, blue, ".", theory.CLASSES[0]),
            (above, red, "x", theory.CLASSES[1]),
        ):
            label = f"{name}, n = {chosen.sum():,}"
            axis.scatter(
                *toy.points[chosen].T, s=9, color=color, marker=marker, lw=0.8, label=label
            )
        score = toy.score(budget, grid).reshape(301, 301)
        axis.contour(side, side, score, [0], colors="black", linewidths=2)
        axis.plot(side, theory.curve(side), "k:", lw=1.5, label="true boundary")
        axis.plot([], [], "k-", lw=2, label="learned boundary")
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.set_title(kept(budget), fontsize=10)
        axis.grid(visible=False)
    _legend(figure, axes[0], columns=4)
    return figure


# Section 4 ---------------------------------------------------------------------------------------


def approximation(rates: pd.DataFrame, note: str = "") -> Figure:
    """Error by number of linear pieces, with the best knots and with even ones (Proposition 4.1)."""
    figure, (axes,) = _figure(2, note)
    titles = {"best": "best knots", "even": "pieces of equal length"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        palette = sns.color_palette("colorblind", rates["function"].nunique())
        curves = rates.groupby("function", sort=False)
        for color, marker, (name, own) in zip(palette, MARKERS, curves, strict=False):
            axis.loglog(own["n"], own[kind], marker + "-", color=color, ms=4, lw=1, label=name)
        guide = rates["best"].min() * (rates["n"].max() / own["n"]) ** 2 / 3
        axis.loglog(own["n"], guide, "k:", lw=1.5, label="1/n²")
        axis.set(title=title, xlabel="linear pieces n", ylabel="largest error")
        axis.set_xticks(own["n"], own["n"])
        axis.minorticks_off()
    axes[1].sharey(axes[0])
    _legend(figure, axes[0], columns=6)
    return figure


def network_pieces(profile: pd.DataFrame, counts: pd.DataFrame, note: str = "") -> Figure:
    """The pieces of networks along a line, and how many they are at most (Proposition 4.2)."""
    figure, ((left, right),) = _figure(2, note)
    palette = sns.color_palette("colorblind", 4)
    for color, (budget, own) in zip(palette, profile.groupby("budget", sort=False), strict=False):
        bends = own[own["bends"]]
        label = f"{percent(budget)} of the ReLUs: {len(bends) + 1} pieces here"
        left.plot(own["x"], own["z"], color=color, label=label)
        left.plot(bends["x"], bends["z"], "o", color=color, ms=4)
    left.set(xlabel="place along the line", ylabel="logit of the minority")
    left.legend(fontsize=7, frameon=False)
    for shift, (color, marker, (weights, own)) in enumerate(
        zip(palette, MARKERS, counts.groupby("weights"), strict=False)
    ):
        place = own["relus"] * (1 + 0.06 * (2 * shift - 1))
        right.loglog(place, own["pieces"], marker, color=color, alpha=0.4, ms=4, label=weights)
    for column, style, label in (
        ("most", "k-", "∏(r+1)"),
        ("arora", "k--", "Prop. 4.2, all ReLUs"),
    ):
        bound = counts.groupby("relus")[column].first()
        right.plot(bound.index, bound, style, lw=1, label=label)
    right.plot(bound.index, bound.index + 1, "k:", lw=1.5, label="ReLUs kept + 1")
    right.set(xlabel="ReLUs kept", ylabel="pieces along a line")
    right.set_xticks(bound.index, bound.index)
    right.minorticks_off()
    right.legend(fontsize=7, frameon=False)
    return figure


def best_fits(fits: pd.DataFrame, note: str = "") -> Figure:
    """The best fits of a parabola by one and two pieces, and the errors by n (Proposition 4.3)."""
    figure, ((left, right),) = _figure(2, note)
    blue, orange, green, red = sns.color_palette("colorblind", 4)
    for n, color, style in ((1, orange, "-"), (2, green, "--")):
        own = fits[fits["n"] == n].sort_values("x")
        left.plot(own["x"], own["fit"], style, color=color, label=f"best fit, n = {n}")
    for few, color, marker, name in ((False, blue, "o", "everyone"), (True, red, "X", "the group")):
        own = fits if not few else fits[fits["few"]]
        points = own[(own["n"] == 1) & (own["few"] == few)]
        left.plot(points["x"], points["y"], marker, color=color, ms=9 if few else 4, label=name)
        error = own.groupby("n")["error"].mean()
        right.plot(error.index, error, marker + "-", color=color, label=name)
    left.set(xlabel="x", ylabel="y = x²")
    left.legend(fontsize=8, frameon=False)
    right.set(xlabel="linear pieces n", ylabel="mean squared error", xticks=error.index)
    right.set_yscale("symlog", linthresh=1e-5)
    right.set_ylim(0, 0.2)
    right.legend(fontsize=8, frameon=False)
    return figure


def remainders(paths: pd.DataFrame, note: str = "") -> Figure:
    """What Theorem 4.4's expansion leaves over, by length of the step, smooth and with kinks."""
    figure, (axes,) = _figure(2, note)
    blue, _, _, red = sns.color_palette("colorblind", 4)
    for axis, (activation, own) in zip(axes, paths.groupby("activation", sort=False), strict=True):
        for (_, group), path in own.groupby(["seed", "group"]):
            label = theory.CLASSES[group]
            axis.loglog(
                path["t"], path["remainder"], ".-", color=(blue, red)[group], lw=0.8, label=label
            )
        axis.loglog(path["t"], path["t"] ** 3, "k:", lw=1.5, label="t³")
        axis.set(title=activation, xlabel="share t of the step", ylabel="remainder")
    axes[1].sharey(axes[0])
    _legend(figure, axes[0], columns=3)
    return figure


def account(shares: pd.DataFrame, note: str = "") -> Figure:
    """The excess loss of each group, shared out among a network's parts: means, and single seeds."""
    figure, ((axis,),) = _figure(1, note, height=3.2)
    sums = shares.groupby(["seed", "group"], as_index=False)["value"].sum()
    named = shares.assign(entry=shares["part"] + "\n" + shares["layer"])
    table = pd.concat([named, sums.assign(entry="sum:\nexcess loss")])
    table["class"] = table["group"].map(dict(enumerate(theory.CLASSES)))
    blue, _, _, red = sns.color_palette("colorblind", 4)
    how = {"x": "entry", "y": "value", "hue": "class", "hue_order": theory.CLASSES, "ax": axis}
    sns.barplot(
        table, **how, palette=[blue, red], errorbar=None, alpha=0.7, saturation=1, width=0.76
    )
    for bars in axis.containers:
        height = bars[-1].get_height()
        axis.bar_label(bars, [""] * (len(bars) - 1) + [f"{height:.3f}"], padding=6)
    sns.stripplot(table, **how, palette=["k", "k"], dodge=True, jitter=False, size=4, legend=False)
    axis.plot([], [], "k.", label="single seeds")
    axis.get_legend().remove()
    axis.axhline(0, color="0.2", lw=0.8)
    axis.set(xlabel="", ylabel="share of the excess loss")
    axis.margins(y=0.15)
    _legend(figure, axis, columns=3)
    return figure


# The long table of :mod:`relufair.explain` ---------------------------------------------------------

WORDS = {
    "gradient": "gradient norm of the group's loss",
    "scaled_gradient": "scale-free gradient norm",
    "eigenvalue": "largest Hessian eigenvalue",
    "refined": "distance to the boundary (image space)",
    "margin": "distance to the boundary (logit margin)",
    "gap": "distance to the boundary (softmax margin)",
    "change": "distance from the teacher's weights",
    "released_gradient": "released code's gradient norm",
    "released_eigenvalue": "released code's eigenvalue",
}


def _seeds(
    axis: Axes, rows: pd.DataFrame, by: str, looks: dict[str, dict[str, Any]],
    places: dict[float, int],
) -> None:  # fmt: skip
    """By budget, the mean of each value of the column ``by`` as a line, seeds as faint points."""
    for name, look in looks.items():
        own = rows[rows[by] == name].pivot(index="budget", columns="seed", values="value")
        x = own.index.map(places)
        axis.plot(x, own, look["marker"], color=look["color"], ms=3, alpha=0.4)
        axis.plot(x, own.mean(axis=1), "-", **look, lw=1.5, ms=6)


def geometry_by_budget(
    table: pd.DataFrame, tally: pd.DataFrame, measures: Sequence[str], note: str = "",
) -> Figure:  # fmt: skip
    """One panel a measure of the training set, each group by budget (Fig. 3); points are seeds."""
    figure, (axes,) = _figure(len(measures), note)
    method = table["method"].iloc[0]
    own = table[(table["split"] == "train") & (table["method"] == method)]
    for axis, measure in zip(axes, measures, strict=True):
        rows = own[own["measure"] == measure]
        places = _by_budget(axis, rows["budget"])
        _seeds(axis, rows, "group", styles(tally), places)
        axis.set(ylabel=WORDS[measure], yscale="log")
        _plain(axis.yaxis)
    _legend(figure, axes[0])
    return figure


def geometry_by_group(
    table: pd.DataFrame, tally: pd.DataFrame, measures: Sequence[tuple[str, str]], note: str = ""
) -> Figure:
    """One panel a (measure, split) of the teacher: a bar a group (Fig. 4); points are seeds."""
    figure, (axes,) = _figure(len(measures), note)
    looks = styles(tally, every=True)
    own = table[(table["budget"] == 1) & (table["method"] == table["method"].iloc[0])]
    for axis, (measure, split) in zip(axes, measures, strict=True):
        rows = own[(own["measure"] == measure) & (own["split"] == split)]
        for i, (group, look) in enumerate(looks.items()):
            values = rows.loc[rows["group"] == group, "value"]
            axis.bar(i, values.mean(), color=look["color"], alpha=0.8)
            axis.plot([i] * len(values), values, look["marker"], color="0.2", ms=4)
        _name_groups(axis, groups.sizes(tally).loc[list(looks), "train_n"])
        images = rows.groupby(["seed", "group"])["n"].first().groupby("seed").sum().mean()
        axis.set_title(f"{WORDS[measure]}\non {images:,.0f} {split} images", fontsize=10)
    axes[0].set_xlabel("group, with its training images")
    return figure


def _name_groups(axis: Axes, sizes: pd.Series) -> None:
    """Groups and their images under the bars, slanted where there are many."""
    labels = [f"{group}\n{n:,.0f}" for group, n in sizes.items()]
    axis.set_xticks(range(len(labels)), labels, fontsize=7, rotation=0 if len(labels) < 6 else 60)
    axis.grid(axis="x", visible=False)


def account_by_group(table: pd.DataFrame, note: str = "") -> Figure:
    """Each group's excess loss, shared out by part and by stage: bars that add up, means over seeds.

    Args:
        table: of :func:`relufair.explain.account`.
        note: under the figure.
    """
    figure, (axes,) = _figure(2, note, height=4)
    table = table.assign(stage=table["layer"].str.partition(".")[0])
    whole = table.groupby(["group", "seed"], sort=False)[["n", "excess"]].first()
    whole = (
        whole.groupby("group", sort=False).mean().sort_values("n", ascending=False, kind="stable")
    )
    for axis, kind in zip(axes, ("part", "stage"), strict=True):
        sums = table.pivot_table("value", ["group", "seed"], kind, "sum", sort=False)
        _stack(axis, sums.groupby("group").mean().loc[whole.index])
        axis.plot(whole["excess"].to_numpy(), "kD", ms=4, label="excess loss")
        axis.axhline(0, color="0.2", lw=0.8)
        _name_groups(axis, whole["n"])
        axis.set_title(f"by {kind}", fontsize=10)
        axis.legend(fontsize=7, frameon=False, ncols=2)
    axes[0].set(xlabel="group, with its images", ylabel="excess training loss")
    return figure


def _stack(axis: Axes, shares: pd.DataFrame) -> None:
    """A bar a row, a colour a column: gains upwards from zero, losses downwards."""
    ends = {1: np.zeros(len(shares)), -1: np.zeros(len(shares))}
    palette = sns.color_palette("colorblind", shares.shape[1])
    for (name, values), color in zip(shares.items(), palette, strict=True):
        start = np.where(values > 0, ends[1], ends[-1])
        axis.bar(range(len(shares)), values, 0.7, start, color=color, edgecolor="w", label=name)
        for sign, end in ends.items():
            end += np.where(np.sign(values) == sign, values, 0)


def weight_change(table: pd.DataFrame, note: str = "") -> Figure:
    """How far the weights are from the teacher's, by budget and method (Fig. 8, left)."""
    figure, (axes,) = _figure(1, note, height=3.4)
    rows = table[(table["measure"] == "change") & (table["budget"] < 1)]
    _seeds(axes[0], rows, "method", _of_methods(rows), _by_budget(axes[0], rows["budget"]))
    axes[0].set(ylabel=WORDS["change"], ylim=(0, None))
    _legend(figure, axes[0], columns=4)
    return figure


def _plain(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5 and their tens, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def accuracy_against(
    table: pd.DataFrame, tally: pd.DataFrame, measures: Sequence[str], budget: float,
    note: str = "",
) -> Figure:  # fmt: skip
    """Test accuracy at ``budget`` against each measure of that network, a point a group (Fig. 8)."""
    figure, (axes,) = _figure(len(measures), note)
    method = table["method"].iloc[0]
    chosen = (tally["budget"] == budget) & (tally["method"] == method)
    own = tally[chosen].set_index(["group", "seed"])
    accuracy = (100 * own["correct"] / own["n"]).unstack("seed")
    rows = table[(table["budget"] == budget) & (table["method"] == method)]
    for axis, measure in zip(axes, measures, strict=True):
        values = rows[(rows["measure"] == measure) & (rows["split"] == "train")]
        values = values.pivot(index="group", columns="seed", values="value")
        own = accuracy.reindex(columns=values.columns)  # a seed may lack either
        for group, look in styles(tally, every=True).items():
            axis.plot(values.loc[group], own.loc[group], look["marker"], color=look["color"],
                      ms=4, alpha=0.4)  # fmt: skip
            axis.plot(values.loc[group].mean(), own.loc[group].mean(), ls="", ms=9, **look)
        axis.set(xlabel=WORDS[measure], ylabel=f"test accuracy at {percent(budget)} (%)")
        if measure.endswith("gradient"):
            axis.set_xscale("log")
            _plain(axis.xaxis)
    _legend(figure, axes[0])
    return figure


# The tables of :mod:`relufair.audit` ----------------------------------------------------------------

RUNGS = [
    ("1", "detached"), ("1", "live"), ("1/C", "none"), ("1/C", "detached"), ("1/C", "live"),
]  # fmt: skip


def penalties(table: pd.DataFrame, note: str = "") -> Figure:
    """What penalty and weight of the distillation change, with 95 % intervals; a marker a budget.

    Zero is the same network without a penalty and with the whole distillation.

    Args:
        table: of ``Audit.penalties``, one method.
        note: to stand below.
    """
    (large, small), sizes = groups.extremes(table), groups.sizes(table)
    titles = {
        group: f"{which}: {group}\n({sizes.train_n[group]:,} train, {sizes.n[group]:,} test)"
        for which, group in (("smallest", small), ("largest", large))
    } | {groups.ALL: f"everyone\n({sizes.train_n.sum():,} train, {sizes.n.sum():,} test)"}
    figure, (axes,) = _figure(len(titles), note, height=3.2)
    budgets = sorted(table["budget"].unique(), reverse=True)
    rungs = {f"{weight} {penalty}": f"{penalty}, distillation × {weight}"
             for weight, penalty in reversed(RUNGS)}  # fmt: skip
    own = table.assign(method=table["distillation"] + " " + table["penalty"])
    gained = groups.by_group(own).query("measure == 'gain'")
    for axis in axes[1:]:
        axis.sharex(axes[0])
    for axis, (group, title) in zip(axes, titles.items(), strict=True):
        rows = gained[gained["group"] == group].set_index("method")
        parts = {kept(budget): rows[rows["budget"] == budget] for budget in budgets}
        _rows(axis, parts, rungs, axis is axes[0])
        axis.set_xlabel("change (points)")
        axis.set_title(title, fontsize=9)
    _legend(figure, axes[0], columns=len(budgets))
    return figure


def leakage(table: pd.DataFrame, tally: pd.DataFrame, note: str = "") -> Figure:
    """Accuracy on the own test set, on another split's, and on those of it that were trained on.

    Args:
        table: of ``Audit.leakage``, one method.
        tally: of the same runs.
        note: to stand below.
    """
    words = {"own": "own test set", "other": "another split's", "seen": "of these, trained on"}
    budgets, looks = [1.0, table["budget"].min()], styles(tally)
    figure, (axes,) = _figure(len(budgets), note)
    sums = table.groupby(["budget", "group", "images"])[["n", "correct"]].sum()
    for axis, budget in zip(axes, budgets, strict=True):
        for shift, (group, look) in zip(_dodge(len(looks), 0.8), looks.items(), strict=True):
            own = sums.loc[budget, group].loc[list(words)]
            x = np.arange(len(words)) + shift
            height = 100 * own["correct"] / own["n"].where(own["n"] > 0)
            bars = axis.bar(x, height, 0.75 / len(looks), color=look["color"], label=look["label"])
            sizes = [f"n = {n:,}" for n in own["n"]]
            axis.bar_label(bars, sizes, fontsize=6, padding=2, rotation=90)
        axis.set_xticks(range(len(words)), words.values(), fontsize=8)
        axis.set(ylabel="accuracy (%)", ylim=(0, 130), yticks=range(0, 101, 20))
        axis.set_title(kept(budget), fontsize=10)
        axis.grid(axis="x", visible=False)
    _legend(figure, axes[0])
    return figure


def thinning(table: pd.DataFrame, note: str = "") -> Figure:
    """Gradient norm and eigenvalue of the largest class by how many of its images are left.

    Faint points are draws and seeds, lines their means; stars are the smallest class.

    Args:
        table: of ``Audit.thinning``.
        note: to stand below.
    """
    figure, (axes,) = _figure(2, note)
    colors = dict(zip(("exact", "released"), sns.color_palette("colorblind"), strict=False))
    for axis, measure in zip(axes, ("gradient", "eigenvalue"), strict=True):
        for (way, color), marker in zip(colors.items(), MARKERS, strict=False):
            own = table[(table["measure"] == measure) & (table["way"] == way)]
            few, small = own[own["class"] == "largest"], own[own["class"] == "smallest"]
            axis.plot(few["n"], few["value"], marker, color=color, ms=3, alpha=0.35)
            mean = few.groupby("n")["value"].mean()
            axis.plot(mean.index, mean, marker + "-", color=color, label=f"largest class, {way}")
            axis.plot(small["n"].mean(), small["value"].mean(), "*", color=color, ms=11, mec="0.2",
                      mew=0.6, ls="", label=f"smallest class, {way}")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="images of the class", ylabel=WORDS[measure])
        axis.set_xticks(mean.index, mean.index)
        axis.minorticks_off()
        _plain(axis.yaxis)
    _legend(figure, axes[0], columns=4)
    return figure


def scoreboard(counts: pd.DataFrame) -> Figure:
    """How many claims have each verdict: one bar, hatched where it is not settled.

    Args:
        counts: of :func:`relufair.scoreboard.score`.
    """
    figure, axes = _figure(1, "hatched: not settled", height=1.6)
    axis, left, palette = axes[0, 0], 0, sns.color_palette("colorblind")
    colours = [palette[0], palette[9], palette[3], "0.6", "0.85"]
    for colour, (verdict, row) in zip(colours, counts.iterrows(), strict=True):
        start = left
        for hatch, n in zip((None, "///"), row, strict=True):
            axis.barh(0, n, left=left, color=colour, hatch=hatch, edgecolor="white", height=0.5)
            left += n
        label = f"{row.sum()} {verdict}"
        axis.barh(0, 0, color=colour, label=label)
        if row.sum():
            axis.text((start + left) / 2, 0.32, row.sum(), ha="center", va="bottom", fontsize=9)
    axis.set(xlim=(0, max(left, 1)), ylim=(-0.3, 0.6), yticks=[], xlabel="claims")
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    _legend(figure, axis, columns=3)
    return figure
