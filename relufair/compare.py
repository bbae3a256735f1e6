"""A rerun beside the published runs that are like it.

Two runs are alike in ``ALIKE``. They may differ in tier, seeds, device and versions, which is what a
comparison is for; where the training differs, the verdict says so. Of several published runs that are
alike, those that were trained as the rerun was are taken, or else the last.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from relufair import groups, plots
from relufair.words import interval, named, number, percent, side

ALIKE = ("what", "method", "remedy", "budget")
KEYS = [*ALIKE, "group"]


def read(folder: Path) -> pd.DataFrame:
    """The tally that ``relufair run`` left in ``folder``.

    Raises:
        FileNotFoundError: where there is no such table, or no folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"run={str(folder)!r}: there is no such folder")
    needed = {*KEYS, "seed", "n", "correct", "base", "both", "study"}
    tables = [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    tallies = [table for table in tables if needed <= set(table)]
    if not tallies:
        raise FileNotFoundError(
            f"run={str(folder)!r}: has no table of a network's accuracies by group; name a folder that "
            "`relufair run` has left of one of the chapters 03 to 08"
        )
    keys = [*KEYS, "seed", "study"]  # a page may keep the same rows in two tables
    return pd.concat(tallies, ignore_index=True).drop_duplicates(keys, ignore_index=True)


def beside(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of two tallies, and how far they lie apart.

    Args:
        ours, theirs: tallies (:mod:`relufair.groups`) with the columns ``ALIKE``.

    Returns:
        A row for each method × remedy × budget × group (and all) that both have, with ``KEYS``,
        ``ours`` and ``theirs`` (accuracies in %, averaged over seeds), ``difference`` (ours minus
        theirs, in points) with ``low`` and ``high`` (95 %), ``spread`` (standard deviation of the
        published accuracy over seeds, in points; nan for one seed), ``seeds`` and ``their_seeds``,
        and ``same``: whether both were trained alike. The two are resampled independently: seeds
        that both have share their test images, so the interval is rather too wide.

    Raises:
        ValueError: where ours are of two studies that differ in nothing that ``ALIKE`` names.
    """
    if several := [key for key, own in ours.groupby(list(ALIKE)) if own["study"].nunique() > 1]:
        raise ValueError(f"run: has rows of two studies of {', '.join(map(str, several[0]))}")
    both = [dict(list(t.groupby(list(ALIKE), sort=False))) for t in (ours, theirs)]
    rows = [_pair(both[0][key], both[1][key]) for key in both[0] if key in both[1]]
    columns = [*KEYS, "ours", "theirs", "difference", "low", "high", "spread", "seeds",
               "their_seeds", "same"]  # fmt: skip
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def _pair(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`beside` for one network."""
    same = theirs["study"].isin(ours["study"])
    theirs = theirs[same if same.any() else theirs["study"] == theirs["study"].iloc[-1]]
    names = [name for name in dict.fromkeys(ours["group"]) if name in set(theirs["group"])]
    counts = [groups.cells(t[t["group"].isin(names)]) for t in (ours, theirs)]
    own, order = counts[0]
    place = [counts[1][1].index(name) for name in order]
    other = counts[1][0][:, place]
    # One generator for both: two would draw the same numbers, and the noise would cancel.
    rng = np.random.default_rng(0)
    drawn = [groups.accuracy(groups.resample(each, rng)) for each in (own, other)]
    low, high = np.nanpercentile(drawn[0] - drawn[1], [2.5, 97.5], axis=0)
    single = np.stack([groups.accuracy(other[[i]]) for i in range(len(other))])
    about = ours[list(ALIKE)].iloc[0].to_dict() | {"group": order}
    return pd.DataFrame(
        about
        | {
            "ours": groups.accuracy(own), "theirs": groups.accuracy(other),
            "difference": groups.accuracy(own) - groups.accuracy(other), "low": low, "high": high,
            "spread": single.std(0, ddof=1) if len(single) > 1 else np.nan,
            "seeds": len(own), "their_seeds": len(other),
            "same": set(ours["study"]) == set(theirs["study"]),
        }
    )  # fmt: skip


def verdict(table: pd.DataFrame) -> str:
    """What :func:`beside` comes to, in words: Markdown.

    Of intervals that hold in 95 % of cases, one in twenty misses by chance; so a few differences are
    no disagreement. It is called one where more of them exclude zero than happens to independent
    intervals in one case of twenty.
    """
    if table.empty:
        return "No published run has this data, target, groups, network, method, remedy and budget."
    from scipy.stats import binom

    # The network with all ReLUs is the same in all methods and remedies.
    once = (table["budget"] < 1) | ~table.duplicated(["what", "budget", "group"])
    table = table[once]
    apart = table[table.apply(side, axis=1) != 0]
    if table["same"].all() and (table["ours"] == table["theirs"]).all():
        return f"All {len(table)} accuracies are the published ones."
    n, allowed = len(table), int(binom.ppf(0.95, len(table), 0.05))
    seeds = f"{table['seeds'].max()} against {table['their_seeds'].max()} seeds"
    said = (
        f"{len(apart)} of {n} accuracies differ by more than their 95 % interval ({seeds}; up to "
        f"{allowed} may by chance). "
    )
    if len(apart) <= allowed:
        said += "**The rerun agrees with the published run.**"
    else:
        which = "; ".join(_named(row) for _, row in apart.iterrows())
        said += f"**The rerun differs from the published run**: {which}."
    if not table["same"].all():
        said += " The two were not trained with the same settings."
    return said


def _named(row: pd.Series) -> str:
    apart = number(row["difference"], sign="+")
    how = named(f"{row['method']}, {row['remedy']}")
    return f"{row['group']} at {percent(row['budget'])}, {how} ({apart} points)"


def keep(table: pd.DataFrame, folder: Path) -> None:
    """Write the table of :func:`beside`, and a figure for each network, into ``folder``."""
    table.to_csv(folder / "comparison.csv", index=False)
    several = table["what"].nunique() > 1
    for (what, method, remedy), own in table.groupby(["what", "method", "remedy"], sort=False):
        figure = plots.beside(own, f"{what} · {named(method)}, {named(remedy)}")
        parts = ["comparison", *([what] if several else []), method, remedy]
        name = re.sub(r"[^\w.]+", "-", "-".join(parts))
        figure.savefig(folder / f"{name}.png", dpi=160)


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`beside` for people."""
    apart = table.rename(columns={"difference": "value"})
    shown = pd.DataFrame(
        {
            "method, remedy": (table["method"] + ", " + table["remedy"]).map(named),
            "ReLUs kept": table["budget"].map(percent),
            "group": table["group"],
            "rerun (%)": table["ours"].map(number),
            "published (%)": table["theirs"].map(number),
            "difference [95 %]": apart.apply(interval, axis=1, sign="+"),
            "SD over published seeds": table["spread"].map(number).replace("—", "one seed"),
        }
    )
    several = table["what"].nunique() > 1
    shown.insert(0, "run", table["what"])
    keys = ["run", "method, remedy", "ReLUs kept", "group"]
    return shown.set_index(keys) if several else shown.drop(columns="run").set_index(keys[1:])
