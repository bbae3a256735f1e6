"""What a notebook says about its table: provenance, a verdict in words, and files to keep.

Published tables lie in ``data/results``, one tally a file (columns in :mod:`relufair.groups`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from relufair import groups, plots
from relufair.plots import percent
from relufair.store import project_root

TOLERANCE = 10  # points; other processors round otherwise, and training amplifies it


def output_folder() -> Path | None:
    """Where a run keeps its files: ``RELUFAIR_OUT``, made if need be, or None."""
    name = os.environ.get("RELUFAIR_OUT")
    if not name:
        return None
    Path(name).mkdir(parents=True, exist_ok=True)
    return Path(name)


def keep_table(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Write ``table`` as parquet and CSV into the output folder, if there is one; return it."""
    if folder := output_folder():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        table.to_csv(folder / f"{name}.csv", index=False)
    return table


def keep_figure(figure: Figure, name: str) -> None:
    """Write ``figure`` as PNG and SVG into the output folder, if there is one."""
    if folder := output_folder():
        figure.savefig(folder / f"{name}.png", dpi=160, bbox_inches="tight")
        figure.savefig(folder / f"{name}.svg", bbox_inches="tight")


def provenance(table: pd.DataFrame, marks: str = "bars: 95 % bootstrap") -> str:
    """Tier, data, network, methods, seeds, device and date of a study's tally; groups left out.

    Args:
        table: the tally.
        marks: what the figure's marks mean.
    """
    first = table.iloc[0]
    seeds = ", ".join(map(str, sorted(table["seed"].unique())))
    devices = ", ".join(table["device"].unique())
    methods = ", ".join(map(plots.named, table["method"].unique()))
    lines = [
        f"{first['tier']} tier · {first['what']} · {methods} · "
        f"n = {_seeds(table['seed'].nunique())} ({seeds}) · {marks}",
        f"{devices} · {table['date'].max()}",
        plots.left_out(table),
        out_of_reach(table),
    ]
    return "\n".join(filter(None, lines))


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def out_of_reach(table: pd.DataFrame) -> str:
    """Which budgets a method could not meet though another could; empty if there is none."""
    budgets = sorted(table["budget"].unique(), reverse=True)
    there = set(zip(table["method"], table["budget"], strict=True))
    missing = [
        f"{plots.named(method)} at {percent(budget)}"
        for method in table["method"].unique()
        for budget in budgets
        if (method, budget) not in there
    ]
    return f"Out of reach: {', '.join(missing)}" if missing else ""


def verdict(table: pd.DataFrame, budget: float | None = None, method: str | None = None) -> str:
    """Whether the smallest group falls further than the largest at ``budget``: Markdown.

    Without a budget, the lowest in the table; without a method, its first.
    """
    table = table[table["method"] == (method or table["method"].iloc[0])]
    large, small = groups.extremes(table)
    budget = table["budget"].min() if budget is None else budget
    if budget == 1:
        return "None of these budgets is within reach."
    drops = groups.by_group(table).query("measure == 'relative_drop' and budget == @budget")
    drops = drops.set_index("group")
    excess = groups.disparity(table).query("measure == 'excess' and budget == @budget").iloc[0]
    if excess["low"] > 0:
        answer = "**The smallest group falls further than the largest.**"
    elif excess["high"] < 0:
        answer = "**The smallest group falls less far than the largest.**"
    else:
        answer = "**These runs do not settle whether the smallest group falls further.**"
    return (
        f"{answer} With {percent(budget)} of the ReLUs kept, *{small}* loses "
        f"{_with_interval(drops.loc[small])} % of its accuracy and *{large}* "
        f"{_with_interval(drops.loc[large])} %. The difference is {_with_interval(excess)} points "
        f"(95 % intervals, {_seeds(excess['seeds'])})."
    )


def _with_interval(row: pd.Series, digits: int = 1) -> str:
    value, low, high = (round(row[name], digits) + 0.0 for name in ("value", "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """The tally for people: a row a budget and group, each measure with its 95 % interval."""
    summary = groups.by_group(table)
    cells = summary.assign(text=summary.apply(_with_interval, axis=1))
    few = cells["n"] < groups.FEWEST
    cells["text"] = cells["text"].mask(few, f"fewer than {groups.FEWEST} images")
    keys = ["method", "budget", "group"]
    wide = cells.pivot_table(["text", "n"], keys, "measure", "first", sort=False)
    wide = wide["text"].assign(n=wide["n"]["accuracy"]).reset_index()
    order = [*groups.sizes(table).index, groups.ALL]
    wide["place"] = wide["group"].map(order.index)
    wide["turn"] = wide["method"].map(list(table["method"].unique()).index)
    wide = wide.sort_values(["turn", "budget", "place"], ascending=[True, False, True])
    wide["method"] = wide["method"].map(plots.named)
    wide["budget"] = wide["budget"].map(percent)
    names = {
        "method": "method", "budget": "ReLUs kept", "group": "group", "n": "test images",
        "accuracy": "accuracy (%)", "drop_points": "drop (points)",
        "relative_drop": "relative drop (%)",
    }  # fmt: skip
    wide = wide[list(names)].rename(columns=names).rename_axis(columns=None)
    return wide.set_index(["method", "ReLUs kept", "group"])


def results_folder() -> Path:
    """Where the published tables lie."""
    return project_root() / "data" / "results"


def published(name: str) -> pd.DataFrame:
    """The published tally ``data/results/<name>.csv``.

    Raises:
        FileNotFoundError: naming the tables there are.
    """
    path = results_folder() / f"{name}.csv"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in results_folder().glob("*.csv")))
        raise FileNotFoundError(f"no published table {name!r}; there are: {there}")
    return pd.read_csv(path)


def save_headline(path: Path) -> None:
    """Draw the figure of the landing page, what each race group of UTKFace loses, into ``path``."""
    table = published("utkface-race-laptop")
    plots.drops(table, provenance(table)).savefig(path, dpi=160)


def compare(table: pd.DataFrame) -> str:
    """How ``table`` compares with the published run of the same parameters, in a sentence."""
    for path in sorted(results_folder().glob("*.csv")):
        theirs = pd.read_csv(path)
        if set(theirs["study"]) & set(table["study"]):
            return _compare(table, theirs, path.stem)
    return "There is no published run with these parameters to compare with."


def _compare(ours: pd.DataFrame, theirs: pd.DataFrame, name: str) -> str:
    pair = [
        groups.by_group(t[t["study"].isin(set(ours["study"]) & set(theirs["study"]))])
        .query("measure == 'accuracy'")
        .set_index(["method", "budget", "group"])["value"]
        for t in (ours, theirs)
    ]
    both = pd.concat(pair, axis=1, join="inner", keys=["ours", "theirs"])
    if both.empty:
        return f"The published run '{name}' has none of these budgets."
    apart = both[(both["ours"] - both["theirs"]).abs() > TOLERANCE]
    if apart.empty:
        return (
            f"All {len(both)} accuracies lie within {TOLERANCE} points of the published run "
            f"'{name}'."
        )
    return (
        f"{len(apart)} of {len(both)} accuracies lie more than {TOLERANCE} points from the published "
        f"run '{name}': "
        + "; ".join(f"{g} at {percent(b)}, {plots.named(m)}" for m, b, g in apart.index)
        + "."
    )


# The long table of :mod:`relufair.explain` ---------------------------------------------------------


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """Gradient norms of the teacher: largest group, the same thinned, and the smallest; over seeds."""
    own = table[(table["split"] == "train") & (table["budget"] == 1)]
    own = own[own["method"] == own["method"].iloc[0]]
    whole = own[own["measure"] == "gradient"]
    few = own[own["measure"] == "thinned_gradient"]
    smallest = whole.loc[whole["n"].idxmin(), "group"]
    rows = {
        "largest group": whole[whole["group"] == few["group"].iloc[0]],
        "largest group, thinned": few,
        "smallest group": whole[whole["group"] == smallest],
    }
    return pd.DataFrame(
        {
            "group": {name: row["group"].iloc[0] for name, row in rows.items()},
            "images": {name: round(row["n"].mean()) for name, row in rows.items()},
            "gradient norm": {name: f"{row['value'].mean():.3g}" for name, row in rows.items()},
        }
    )


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """For people: :func:`relufair.explain.correlations`, a column an outcome."""
    cells = table.assign(
        text=table.apply(lambda r: _with_interval(r, 2), axis=1),
        measure=table["measure"].map(plots.WORDS),
        outcome=table["outcome"].map({"accuracy": "with accuracy", "relative_drop": "with drop"}),
    )
    about = f"n = {table['groups'].iloc[0]} groups, {table['seeds'].iloc[0]} seeds"
    wide = cells.pivot_table("text", "measure", "outcome", "first", sort=False)
    return wide.rename_axis(index=None, columns=about)


def bounds(table: pd.DataFrame) -> pd.DataFrame:
    """For people: :func:`relufair.explain.bounds`, with the factor by which the bound exceeds."""
    own = table.reset_index()
    own = own.sort_values(["budget", "group"], ascending=[False, True], kind="stable")
    own["factor"] = [
        f"{bound / excess:,.0f}" if excess > 0 else "no loss"
        for bound, excess in zip(own["bound"], own["excess loss"], strict=True)
    ]
    own["budget"] = own["budget"].map(percent)
    own["holds"] = own["holds"].map(lambda share: f"{share:.0%} of seeds")
    numbers = ["excess loss", "gradient term", "curvature term", "bound"]
    own[numbers] = own[numbers].map(lambda x: f"{x:.3g}".replace("-", "−"))
    return own.rename(columns={"budget": "ReLUs kept"}).set_index(["ReLUs kept", "group"])


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """A tally of classes as one of the first and the second half of them."""
    names = table["group"].unique()
    half = dict.fromkeys(names[: len(names) // 2], f"{names[0]}–{names[len(names) // 2 - 1]}")
    half |= dict.fromkeys(names[len(names) // 2 :], f"{names[len(names) // 2]}–{names[-1]}")
    keys = ["method", "seed", "budget", "group"]
    counts = ["train_n", "n", "correct", "base", "both"]
    return (
        table.assign(group=table["group"].map(half))
        .groupby(keys, sort=False)[counts]
        .sum()
        .reset_index()
    )


def both_ways(tally: pd.DataFrame, rotated: pd.DataFrame | None) -> str:
    """What the rare half of the classes loses, as they are and after changing places: Markdown."""
    if rotated is None:
        return "This data set has no halves of classes that could change places."
    first, second = verdict(halves(tally)), verdict(halves(rotated))
    return f"As in the paper: {first}\n\nHalves changed: {second}"
