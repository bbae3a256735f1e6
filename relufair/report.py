"""What a notebook says about its table: provenance, a verdict in words, and files to keep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from relufair import groups, plots
from relufair.store import results_folder
from relufair.words import (
    interval,
    kept,
    machine,
    markdown,
    n_seeds,
    named,
    number,
    percent,
    shown,
    side,
    turned,
)


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
        with plt.rc_context(plots.STYLE):  # so that the SVG is the same each time
            figure.savefig(folder / f"{name}.png", dpi=160)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def provenance(table: pd.DataFrame, marks: str = "bars: 95 % bootstrap") -> str:
    """Tier, data, network, methods, seeds, device, date and code of a study's tally; groups left out.

    Args:
        table: the tally.
        marks: what the figure's marks mean.
    """
    first = table.iloc[0]
    seeds = ", ".join(map(str, sorted(table["seed"].unique())))
    devices = ", ".join(map(machine, table["device"].unique()))
    methods = ", ".join(map(named, table["method"].unique()))
    lines = [
        f"{first['tier']} tier · {first['what']} · {methods} · "
        f"n = {n_seeds(table['seed'].nunique())} ({seeds}) · {marks}",
        f"{devices} · {table['date'].max()}{_made_of(table)}",
        plots.left_out(table),
        out_of_reach(table),
    ]
    return "\n".join(filter(None, lines))


def _made_of(table: pd.DataFrame) -> str:
    """Digests of the splits and the commits of the code, where a tally names them."""
    said = ""
    for name, words in {"data": "data", "commit": "code"}.items():
        if name in table:
            codes = [code[:7] + "+" * code.endswith("+") for code in table[name].unique()]
            said += f" · {words} {', '.join(codes)}"
    return said


def out_of_reach(table: pd.DataFrame) -> str:
    """Which budgets a method could not meet though another could; empty if there is none."""
    budgets = sorted(table["budget"].unique(), reverse=True)
    there = set(zip(table["method"], table["budget"], strict=True))
    missing = [
        f"{named(method)} at {percent(budget)}"
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
    if small == large:
        return (
            f"**There is one group alone:** with {_network(table, budget)}, *{small}* "
            f"{_lost(drops.loc[small])} % of its accuracy."
        )
    if never := [g for g in (small, large) if np.isnan(drops.loc[g, "value"])]:
        seen = groups.sizes(table)["n"]
        parts = (
            f"with all ReLUs, *{g}* is never right" if seen[g] else f"*{g}* has no test images"
            for g in never
        )
        return f"**No relative drop can be given:** {' and '.join(parts)}."
    if side(excess) > 0:
        answer = "**The smallest group falls further than the largest.**"
    elif side(excess) < 0:
        answer = "**The smallest group falls less far than the largest.**"
    else:
        answer = "**These runs do not settle whether the smallest group falls further.**"
    return (
        f"{answer} With {_network(table, budget)}, *{small}* {_lost(drops.loc[small])} % of "
        f"its accuracy and *{large}* {_lost(drops.loc[large])} %. The relative drops differ "
        f"by {interval(excess)} points (95 % intervals, {n_seeds(excess['seeds'])})."
    )


def lost(table: pd.DataFrame) -> pd.Series:
    """What each group loses at the lowest budget, in % of its accuracy; largest first, then everyone.

    In Markdown: bold where the interval leaves out zero.

    Args:
        table: a tally of one method.
    """
    return _bold(over_groups(table, table["budget"].min(), "relative_drop"))


def over_groups(table: pd.DataFrame, budget: float, measure: str) -> pd.DataFrame:
    """A measure with its interval, a row a group, largest first, and then for everyone."""
    found = groups.by_group(table[table["budget"] == budget])
    own = found[found["measure"] == measure].set_index("group")
    return own.loc[[*groups.large_enough(table), groups.ALL]].rename({groups.ALL: "everyone"})


def gained(table: pd.DataFrame) -> dict[str, str]:
    """What a remedy changes for the smallest and the largest group and for everyone, in points.

    In Markdown: bold where the interval leaves out zero.

    Args:
        table: a tally of one method and remedy at one budget, whose base is the network without it.
    """
    large, small = groups.extremes(table)
    gains = groups.by_group(table[table["budget"] < 1]).query("measure == 'gain'")
    text = _bold(gains.set_index("group"))
    return {
        "smallest group": f"{small}: {text[small]}",
        "largest group": f"{large}: {text[large]}",
        "everyone": text[groups.ALL],
        "seeds": str(table["seed"].nunique()),
    }


def _bold(rows: pd.DataFrame) -> pd.Series:
    """Values with their intervals, bold where these leave out zero."""
    text = rows.apply(interval, axis=1)
    return text.mask(rows.apply(side, axis=1) != 0, "**" + text + "**")


def _network(table: pd.DataFrame, budget: float) -> str:
    """Which network stands for a budget; the control keeps all ReLUs at any."""
    if table["method"].iloc[0].startswith("all_kept"):
        return f"all ReLUs kept and training as long as for {percent(budget)}"
    return f"{kept(budget)} kept"


def _lost(drop: pd.Series) -> str:
    """A drop with its interval, as a loss or, turned, as a gain."""
    return f"loses {interval(drop)}" if drop["value"] >= 0 else f"gains {interval(turned(drop))}"


def helped(table: pd.DataFrame) -> str:
    """What each remedy does at the lowest budget of each method, in words: Markdown, a line each.

    Args:
        table: a tally whose base is the network without a remedy.
    """
    own = groups.by_remedy(table)
    large, small = groups.extremes(own)
    change = groups.by_group(own).query("measure == 'gain'")
    spread = groups.disparity(own)
    lines = []
    for method in own["method"].unique():
        budget = own.loc[own["method"] == method, "budget"].min()
        if budget == 1:
            continue
        here = change.query("method == @method and budget == @budget").set_index("group")
        gap = spread.query("method == @method and budget == @budget").set_index("measure")
        said = [
            f"*{group}* ({which}) {_moved(here.loc[group])}"
            for group, which in ((small, "smallest group"), (large, "largest group"))
        ]
        said.append(f"everyone {_moved(here.loc[groups.ALL])}")
        wider = _moved(gap.loc["gap_growth"], "grows", "shrinks", " by")
        said.append(f"the gap between best and worst group {wider}")
        n = n_seeds(own.loc[own["method"] == method, "seed"].nunique())
        where = _network(own[own["method"] == method], budget)
        lines.append(f"- {named(method)}, {where}: {'; '.join(said)} ({n}).")
    return "\n".join(lines)


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """For people: accuracies with each remedy, and gains over none in points, with 95 % intervals."""
    own = groups.by_remedy(table[table["budget"] < 1])
    large, small = groups.extremes(own)
    change, spread = groups.by_group(own), groups.disparity(own)
    gains = change[change["measure"] == "gain"]
    parts = {
        "everyone (%)": change[(change["measure"] == "accuracy") & (change["group"] == groups.ALL)],
        "worst group (%)": spread[spread["measure"] == "worst_accuracy"],
        f"gain: {small} (smallest)": gains[gains["group"] == small],
        f"gain: {large} (largest)": gains[gains["group"] == large],
        "gain: everyone": gains[gains["group"] == groups.ALL],
        "growth of the gap": spread[spread["measure"] == "gap_growth"],
    }
    keys = ["method", "budget"]
    wide = _cells(parts).reindex(own.set_index(keys).index.unique()).reset_index()
    if table["method"].nunique() > 1:
        return shown(wide, *keys, method="method, remedy")
    wide["method"] = wide["method"].str.removeprefix(f"{table['method'].iat[0]}, ")
    return shown(wide, *keys, method="remedy")


def _cells(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A column a part, a row a method × budget, each cell with its interval."""
    return pd.DataFrame(
        {k: p.set_index(["method", "budget"]).apply(interval, axis=1) for k, p in parts.items()}
    )


def choice(table: pd.DataFrame) -> str:
    """Which remedies were seen to help the worst group, and at what cost to everyone: Markdown.

    Args:
        table: a tally of one method with several remedies, at its lowest budget.
    """
    own = groups.by_remedy(table[table["budget"] == table["budget"].min()])
    worst = groups.disparity(own).query("measure == 'worst_gain'").set_index("method")
    every = groups.by_group(own).query("measure == 'gain' and group == @groups.ALL")
    every, worst = every.set_index("method"), worst.sort_values("value", ascending=False)

    def listed(chosen: pd.DataFrame) -> str:
        return "".join(
            f"\n- {named(name)}: worst group {interval(row)}, everyone {interval(every.loc[name])}"
            for name, row in chosen.iterrows()
        )

    sides = worst.apply(side, axis=1)
    parts = {
        "Seen to **help** the worst group, gains in points": worst[sides > 0],
        "Seen to **harm** it": worst[sides < 0],
        "Seen to do neither": worst[sides == 0],
    }
    said = [f"{words}:\n{listed(rows)}" for words, rows in parts.items() if len(rows)]
    return "\n\n".join([*said, f"({n_seeds(own['seed'].nunique())}, 95 % intervals.)"])


def over_all(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """For people: in how many comparisons each remedy helps the worst group, and at what cost.

    Args:
        tables: tallies of one method, with each remedy once; each of their budgets is a comparison.
    """
    found = []
    for table in tables:
        own = table[table["budget"] < 1]
        own = own.assign(method=own["remedy"].str.split().str[0])  # strengths may differ
        worst = groups.disparity(own).query("measure == 'worst_gain'")
        every = groups.by_group(own).query("measure == 'gain' and group == @groups.ALL")
        every = every.set_index(["method", "budget"])["value"]
        worst = worst.set_index(["method", "budget"])
        found.append(worst.assign(side=worst.apply(side, axis=1), everyone=every))
    by_remedy = pd.concat(found).groupby("method", sort=False)
    wide = pd.DataFrame(
        {
            "comparisons": by_remedy.size(),
            "seen to help": by_remedy["side"].agg(lambda s: (s > 0).sum()),
            "seen to harm": by_remedy["side"].agg(lambda s: (s < 0).sum()),
            "worst group: least to most": by_remedy["value"].agg(_from_to),
            "everyone: least to most": by_remedy["everyone"].agg(_from_to),
        }
    )
    wide = wide.sort_values("seen to help", ascending=False, kind="stable")
    return wide.rename(index=named).rename_axis(index="remedy")


def _from_to(values: pd.Series) -> str:
    return f"{number(values.min())} to {number(values.max())}"


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """For people: :func:`relufair.groups.signed_ranks`."""
    own = groups.signed_ranks(table).query("budget < 1")
    few = f"none below {groups.ENOUGH} seeds"
    own["p"] = (
        own["p"].map("{:.3f}".format).replace("nan", "—").mask(own["seeds"] < groups.ENOUGH, few)
    )
    own["gain"] = own["gain"].map(number)
    names = {"gain": "gain (points)", "better": "seeds that gain", "p": "signed-rank test, p"}
    return shown(own, "method", "budget", "group", **names)


def tuning(table: pd.DataFrame) -> pd.DataFrame:
    """For people: the grid of :class:`relufair.mitigation.Comparison`; a mark is the chosen."""
    own = table.replace({"chosen": {True: "✓", False: ""}})
    own["strength"] = own["strength"].map("{:g}".format)
    for name in ("worst", "accuracy"):
        own[name] = own[name].map("{:.1f}".format).mask(table[name].isna(), "no tuning seed")
    names = {"worst": "worst group (%)", "accuracy": "everyone (%)"}
    return shown(own, "remedy", "strength", **names)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """For people: the times of :class:`relufair.mitigation.Comparison`."""
    return table.rename(index=named, columns={"epoch": "× plain"}).round(2)


def lagging(table: pd.DataFrame) -> pd.DataFrame:
    """For people: the two losses of :class:`relufair.mitigation.Ablation`, averaged over seeds."""
    keys = ["method", "remedy", "budget", "group"]
    own = table.groupby(keys, sort=False)[["own", "whole"]].mean().round(3).reset_index()
    names = {"own": "loss in the epoch's own batches", "whole": "loss in a pass after it"}
    return shown(own, *keys, **names)


def _moved(change: pd.Series, up: str = "gains", down: str = "loses", by: str = "") -> str:
    """A change in points with its interval (columns value, low, high), and what it amounts to."""
    if side(change) > 0:
        return f"**{up}**{by} {interval(change)} points"
    if side(change) < 0:
        return f"**{down}**{by} {interval(turned(change))} points"
    return f"neither clearly {up} nor {down}: {interval(change)} points"


def setting(table: pd.DataFrame) -> str:
    """Images of each group and ReLUs kept, averaged over the seeds of a tally: in Markdown."""
    group = f"group (mean over {n_seeds(table['seed'].nunique())})"
    names = {"group": group, "train_n": "training images", "n": "test images"}
    rows = groups.sizes(table).map("{:,}".format).reset_index().rename(columns=names)
    units = table.groupby(["method", "budget"], sort=False)["relus"].mean()
    few = units[units.index.get_level_values("budget") < 1]
    said = "; ".join(f"{n:,.0f} by {named(m)} at {percent(b)}" for (m, b), n in few.items())
    return f"{markdown(rows)}\nThe network has {units.max():,.0f} ReLUs. Kept: {said or 'all'}."


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """The tally for people: a row a budget and group, each measure with its 95 % interval."""
    keys, cells = ["method", "budget", "group"], groups.by_group(table)
    few = cells["n"] < groups.FEWEST
    cells["text"] = cells.apply(interval, axis=1).mask(few, f"fewer than {groups.FEWEST} images")
    wide = cells.pivot_table(["text", "n"], keys, "measure", "first", sort=False)
    wide = wide["text"].assign(n=wide["n"]["accuracy"])
    budgets = sorted(table["budget"].unique(), reverse=True)
    order = [table["method"].unique(), budgets, [*groups.sizes(table).index, groups.ALL]]
    places = pd.MultiIndex.from_product(order, names=keys)
    names = {
        "n": "test images", "accuracy": "accuracy (%)", "drop_points": "drop (points)",
        "relative_drop": "relative drop (%)",
    }  # fmt: skip
    own = wide.loc[places[places.isin(wide.index)], list(names)]
    return shown(own.reset_index().rename_axis(columns=None), *keys, **names)


# DeepReDuce's criticality --------------------------------------------------------------------------


def criticality(table: pd.DataFrame) -> pd.DataFrame:
    """For people: what each stage's ReLUs are worth, a row a stage; means and ranges over seeds.

    Args:
        table: of :meth:`relufair.study.AccuracyDrops.criticality`.
    """
    stages = table.groupby("stage")
    turns = stages["criticality"].mean().rank(method="first")
    shown = pd.DataFrame(
        {
            "ReLUs": stages["relus"].first(),
            "validation accuracy (%)": stages["accuracy"].agg(lambda a: _range(100 * a)),
            "criticality": stages["criticality"].agg(lambda c: _range(c, 2)),
            "culled by criticality": ["—" if np.isnan(turn) else f"{turn:.0f}." for turn in turns],
            "culled by count": stages["culled_at"].first().map(_at),
        }
    )
    linear = _range(100 * table.groupby("seed")["linear"].first())
    shown.loc["none"] = [0, linear, "", "", ""]
    return shown.rename_axis(
        index="ReLUs of stage", columns=f"n = {n_seeds(table['seed'].nunique())}"
    )


def _range(values: pd.Series, digits: int = 1) -> str:
    """Mean, lowest and highest; a dash where there is none."""
    return interval({"value": values.mean(), "low": values.min(), "high": values.max()}, digits)


def _at(budgets: Sequence[float]) -> str:
    return f"at {', '.join(map(percent, budgets))}" if len(budgets) else "never"


def least_critical(table: pd.DataFrame) -> str:
    """Which stage criticality would cull first, and in which seeds nothing says so: Markdown."""
    by_seed = table.pivot(index="seed", columns="stage", values="criticality")
    known = by_seed.dropna()
    said = []
    if len(known):
        first = known.mean().idxmin()
        agree = (known.idxmin(axis=1) == first).sum()
        said += [
            f"By its mean criticality stage {first} would be culled first, and it has the lowest in "
            f"{agree} of {n_seeds(len(known))}."
        ]
    if silent := sorted(set(by_seed.index) - set(known.index)):
        said += [
            f"In {len(silent)} of {n_seeds(len(by_seed))} ({', '.join(map(str, silent))}) no stage's "
            "ReLUs bring anything over the linear network on the validation set: there criticality "
            "says nothing."
        ]
    return " ".join(said)


def published(name: str) -> pd.DataFrame:
    """The counts of an earlier training, ``data/results/<name>.csv``.

    Raises:
        FileNotFoundError: naming the tables there are.
    """
    path = results_folder() / f"{name}.csv"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in results_folder().glob("*.csv")))
        raise FileNotFoundError(f"no table {name!r}; there are: {there}")
    return pd.read_csv(path)


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


def signs(table: pd.DataFrame) -> pd.DataFrame:
    """For people: each group's gradient and distance before and by each method; means over seeds.

    The gradient is the one free of the weights' scale, for networks are compared.

    Args:
        table: the long table of :mod:`relufair.explain` with all ReLUs and with one budget.
    """
    own = table[(table["split"] == "train") & table["measure"].isin(["scaled_gradient", "refined"])]
    own = own.assign(network=own["method"].map(named).mask(own["budget"] == 1, "teacher"))
    own = own.assign(measure=own["measure"].map(plots.WORDS))
    wide = own.pivot_table("value", "group", ["measure", "network"], sort=False)
    wide = wide.sort_index(axis=1, level=0, ascending=False, sort_remaining=False)
    sizes = own.groupby("group")["n"].max().sort_values(ascending=False)
    about = f"means over {n_seeds(own['seed'].nunique())}"
    return wide.loc[sizes.index].map(_three_digits).rename_axis(index=about, columns=[None, None])


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """For people: how far each network's weights are from the teacher's, a row a method × budget."""
    own = table[(table["measure"] == "change") & (table["budget"] < 1)]
    far = own.groupby(["method", "budget"], sort=False)["value"].agg(_range).reset_index()
    about = f"{plots.WORDS['change']}: mean [least, most], {n_seeds(own['seed'].nunique())}"
    return shown(far, "method", "budget", value=about)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """For people: :func:`relufair.explain.correlations`, a column an outcome."""
    outcomes = {"accuracy": "with accuracy", "relative_drop": "with relative drop"}
    cells = table.assign(
        text=table.apply(lambda r: interval(r, 2), axis=1),
        measure=table["measure"].map(plots.WORDS),
        outcome=table["outcome"].map(outcomes),
    )
    about = f"n = {table['groups'].iloc[0]} groups, {n_seeds(table['seeds'].iloc[0])}"
    wide = cells.pivot_table("text", "measure", "outcome", "first", sort=False)
    return wide.rename_axis(index=None, columns=about)


def bounds(table: pd.DataFrame, tally: pd.DataFrame) -> pd.DataFrame:
    """For people: :func:`relufair.explain.bounds`, with the factor by which the bound exceeds.

    Args:
        table: of it.
        tally: of the same runs; it has the order of the groups, by size.
    """
    order = groups.sizes(tally).index.get_indexer
    own = table.reset_index().sort_values("group", key=order, kind="stable")
    own = own.sort_values("budget", ascending=False, kind="stable")
    own["factor"] = [
        _three_digits(bound / excess) if excess > 0 else "no loss"
        for bound, excess in zip(own["bound"], own["excess loss"], strict=True)
    ]
    own["holds"] = own["holds"].map(percent)
    numbers = ["excess loss", "gradient term", "curvature term", "bound"]
    own[numbers] = own[numbers].map(_three_digits)
    return shown(own, "budget", "group", holds="holds in, of seeds")


def account(table: pd.DataFrame) -> pd.DataFrame:
    """For people: :func:`relufair.explain.account`, a row a group, means over seeds.

    Its last column is by how much the sum differs from the excess loss, at most over seeds.
    """
    keys = ["group", "seed"]
    parts = table.pivot_table("value", keys, "part", "sum", sort=False)
    first = table.groupby(keys, sort=False)[["n", "excess"]].first()
    wide = parts.assign(sum=parts.sum(axis=1), excess=first["excess"])
    error = (wide["sum"] - wide["excess"]).abs().groupby("group", sort=False).max()
    mean = wide.groupby("group", sort=False).mean().rename(columns={"excess": "excess loss"})
    shown = mean.assign(error=error).map(_three_digits).rename_axis(columns=None)
    shown.insert(0, "images", first["n"].groupby("group").mean().round().astype(int))
    return shown.rename(columns={"error": "largest error"})


def _three_digits(value: float) -> str:
    """A number with three digits that count, without an exponent.

    >>> _three_digits(1234.5), _three_digits(-0.0012345)
    ('1,230', '−0.00123')
    """
    value = float(f"{value:.3g}")
    text = f"{value:,.0f}" if abs(value) >= 100 else np.format_float_positional(value, trim="-")
    return text.replace("-", "−")


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """A tally of classes as one of the first and the second half of them."""
    counts = ["train_n", "n", "correct", "base", "both"]
    own = table.assign(group=table["group"].map(half_of(table["group"].unique())))
    keys = [column for column in own if column not in counts]
    return own.groupby(keys, sort=False, as_index=False, dropna=False)[counts].sum()


def half_of(names: Sequence[str]) -> dict[str, str]:
    """The name of each class's half."""
    middle = len(names) // 2
    parts = names[:middle], names[middle:]
    return {name: f"{part[0]}–{part[-1]}" for part in parts for name in part}


def both_ways(tally: pd.DataFrame, rotated: pd.DataFrame | None) -> str:
    """What the rare half of the classes loses, as they are and after changing places: Markdown."""
    if rotated is None:
        return "This data set has no halves of classes that could change places."
    first, second = verdict(halves(tally)), verdict(halves(rotated))
    return f"As in the paper: {first}\n\nHalves changed: {second}"


# The tables of :mod:`relufair.audit` ----------------------------------------------------------------


def penalties(table: pd.DataFrame) -> pd.DataFrame:
    """For people: accuracies with each penalty and weight of the distillation, 95 % intervals.

    Args:
        table: of ``Audit.penalties``, one method.
    """
    _, small = groups.extremes(table)
    # Bases differ; without them the same networks get the same intervals.
    alone = table.assign(base=table["correct"], both=table["correct"])
    alone = alone.assign(method=table["distillation"] + " " + table["penalty"])
    accuracy = groups.by_group(alone).query("measure == 'accuracy'")
    parts = {
        "worst group": groups.disparity(alone).query("measure == 'worst_accuracy'"),
        f"smallest group ({small})": accuracy[accuracy["group"] == small],
        "everyone": accuracy[accuracy["group"] == groups.ALL],
    }
    wide = _cells(parts).sort_index(level="budget", ascending=False, sort_remaining=False)
    names = ["ReLUs kept", "distillation ×", "penalty"]
    keys = [(percent(budget), *how.split()) for how, budget in wide.index]
    columns = wide.columns.rename(f"accuracy (%), {n_seeds(table['seed'].nunique())}")
    return wide.set_axis(pd.MultiIndex.from_tuples(keys, names=names)).set_axis(columns, axis=1)


def penalties_said(table: pd.DataFrame, twins: pd.DataFrame) -> str:
    """Which networks are the same, and what the code's mitigation changes, in words: Markdown.

    Args:
        table: of ``Audit.penalties``, one method.
        twins: of ``Audit.twins``.
    """
    counts = twins.groupby("penalty")["same"].agg(["sum", "size"])
    budget, (_, small) = table["budget"].min(), groups.extremes(table)
    lines = [
        f"**{counts.loc['detached', 'sum']} of {counts.loc['detached', 'size']} networks trained "
        "with the detached penalty are, bit for bit, those trained without it.** With the live one "
        f"it is {counts.loc['live', 'sum']} of {counts.loc['live', 'size']}.",
        f"With {percent(budget)} of the ReLUs, against no penalty and the whole distillation "
        f"(95 % intervals, {n_seeds(table['seed'].nunique())}):",
    ]
    words = {
        ("1/C", "detached"): "as released, detached and with the distillation over C",
        ("1", "live"): "live, with the whole distillation",
        ("1/C", "live"): "live, with the distillation over C",
    }
    for (weight, penalty), name in words.items():
        own = table[(table["distillation"] == weight) & (table["penalty"] == penalty)]
        gains = groups.by_group(own[own["budget"] == budget]).query("measure == 'gain'")
        change = gains.set_index("group").apply(interval, axis=1)
        lines.append(
            f"- {name}: {change[small]} points for *{small}*, {change[groups.ALL]} for everyone"
        )
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def selections(table: pd.DataFrame) -> pd.DataFrame:
    """For people: test accuracy by group after the epoch that each rule chooses, over seeds.

    Args:
        table: of :func:`relufair.audit.chosen`.
    """
    own = table.assign(accuracy=100 * table["correct"] / table["n"])
    keys = ["method", "budget", "rule"]
    wide = own.pivot_table("accuracy", keys, "group", sort=False).round(1)
    epochs = own.drop_duplicates([*keys, "seed"]).groupby(keys, sort=False)["epoch"]
    wide.insert(0, "epochs", epochs.agg(lambda e: ", ".join(map(str, e))))
    rules = {"last": "last epoch", "validation": "best on validation", "test": "best on test"}
    for level, words in (("method", named), ("budget", percent), ("rule", rules)):
        wide = wide.rename(index=words, level=level)
    return wide.rename_axis(index=["method", "ReLUs kept", "chosen"], columns="accuracy (%)")


def selections_said(table: pd.DataFrame) -> str:
    """By how much choosing the epoch on test flatters each group: Markdown."""
    own = table.assign(gain=100 * (table["correct"] - table["last"]) / table["n"])
    gains = own.pivot_table("gain", "group", "rule", sort=False)
    networks = len(own.drop_duplicates(["method", "seed", "budget"]))

    def listed(rule: str) -> str:
        each = [
            f"{number(gains.loc[g, rule], sign='+')} for *{g}*"
            for g in gains.index
            if g != groups.ALL
        ]
        return ", ".join([*each, f"{number(gains.loc[groups.ALL, rule], sign='+')} for everyone"])

    return (
        f"Over {networks} networks, the epoch chosen on **test** stands above the last one by, on "
        f"average and in points, {listed('test')}. The epoch chosen on **validation**: "
        f"{listed('validation')}."
    )


def leakage_said(table: pd.DataFrame) -> str:
    """How many images leak from training, and by how much that flatters each group: Markdown.

    Args:
        table: of ``Audit.leakage``, one method.
    """
    sums = table.groupby(["budget", "group", "images"], sort=False)[["n", "correct"]].sum()
    sums = sums.unstack("images")
    if not sums["n"]["seen"].any():
        return "No image leaks here: the data set has one official test set for all seeds."
    shares = (100 * sums["n"]["seen"] / sums["n"]["other"]).loc[1.0]
    leaks = ", ".join(f"{share:.0f} % of *{group}*" for group, share in shares.items())
    said = f"Of the other split's test images, the networks were trained on {leaks}."
    for budget in (1.0, table["budget"].min()):
        own = sums.loc[budget]
        own = pd.concat([own, own.sum().to_frame("everyone").T])
        accuracy = 100 * own["correct"] / own["n"]
        flattery = accuracy["other"] - accuracy["own"]
        each = ", ".join(
            f"{number(points, sign='+')} for *{group}*" for group, points in flattery.items()
        )
        said += f"\n\nWith {kept(budget)}, that test set moves the accuracy by, in points, {each}."
    return said


def thinning_said(table: pd.DataFrame) -> str:
    """How far gradient and curvature depend on the number of images alone: Markdown."""
    lines = []
    for measure, name in {"gradient": "Gradient norm", "eigenvalue": "Largest eigenvalue"}.items():
        own = table[table["measure"] == measure]
        means = own.groupby(["class", "n", "way"])["value"].mean().unstack("way")
        large, small = means.loc["largest"], means.loc["smallest"].mean()
        many, few = large.index.max(), large.index.min()
        grown, apart = large.loc[few] / large.loc[many], small / large.loc[many]
        lines.append(
            f"- **{name}**: from {many} to {few} images of the largest class it changes by a factor "
            f"of {grown['released']:.2g} as released and of {grown['exact']:.2g} taken exactly. The "
            f"smallest class has {apart['released']:.2g} times the largest's as released, "
            f"{apart['exact']:.2g} times exactly."
        )
    return "\n".join(lines)
