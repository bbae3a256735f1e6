"""What the landing page and several chapters show of the published results: the main comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from relufair import groups, plots, report, studies
from relufair.config import Remedy
from relufair.store import Store
from relufair.study import AccuracyDrops
from relufair.words import interval, markdown


def save_headline(path: Path) -> None:
    """Draw the figure of the landing page, what each race group of UTKFace loses by SNL."""
    table = tally("race")
    plots.drops(table, report.provenance(table)).savefig(path, dpi=160)


PUBLISHED = {  # by target: where the published runs differ from those of race
    "race": {},
    "age": {},
    "object": {"dataset": "cifar10", "budgets": [0.1, 0.02], "seeds": [0, 1]},
}
BY_METHOD = {  # and where they do by method
    "deepreduce": {"budgets": [0.5, 0.1, 0.05], "seeds": [0, 1]},
    "all_kept": {"budgets": [0.02]},
}


def study(target: str, *methods: str, by: str = "label") -> AccuracyDrops:
    """The published study of what SNL takes (or other ``methods``), as in :func:`tally`."""
    there = dict(PUBLISHED[target])
    for method in methods:
        there |= BY_METHOD.get(method, {})
    methods = list(methods or ["snl"])
    return studies.published("accuracy_drops", target=target, groups=by, methods=methods, **there)


def tally(
    target: str, method: str = "snl", base: str | None = None, by: str = "label"
) -> pd.DataFrame:
    """The published tally of UTKFace (``race`` or ``age``) or CIFAR-10 (``object``, by halves).

    Of SNL, ``deepreduce`` (not of objects) or the control ``all_kept``. With ``base="all_kept"``
    drops are measured against the control, at 2 %. ``age`` also ``by`` race or gender instead of
    the label.
    """
    own = study(target, method, *([base] if base else []), by=by)
    found = replace(own, methods=[method]).run(store=Store(published=True), base=base)
    return report.halves(found) if target == "object" else found


def answer(target: str, by: str = "label") -> str:
    """How accurate each group is, and what it loses by all published comparisons: in Markdown."""
    first = tally(target, by=by)
    tables = {
        "lost by SNL, 2 % of the ReLUs": first,
        "lost by the control: all ReLUs, trained as long": tally(target, "all_kept", by=by),
        "lost by SNL, 2 %, against the control": tally(target, base="all_kept", by=by),
    }
    if target != "object":
        tables["lost by DeepReDuce, 5 % of the ReLUs"] = tally(target, "deepreduce", by=by)
    right = {
        "accuracy with all ReLUs": report.over_groups(first, 1.0, "accuracy").apply(
            interval, axis=1
        )
    }
    rows = right | {name: report.lost(own) for name, own in tables.items()}
    wide = pd.DataFrame(rows).T.rename_axis(index="in %").reset_index()
    wide["seeds"] = [own["seed"].nunique() for own in (first, *tables.values())]
    sizes = groups.sizes(first)["train_n"].items()
    return markdown(wide.rename(columns={g: f"{g} ({n:,})" for g, n in sizes}))


def remedy() -> str:
    """What the paper's remedy changes by the published runs: a table in Markdown.

    Of each method at its lowest budget: first Algorithm 1, then as the released code has it, with a
    penalty without a gradient and another weight of the distillation. The last column is the
    multiplier of the smallest group (of CIFAR-10 the mean of the rare classes) in the last epoch,
    averaged over seeds.
    """
    age, pair = {"target": "age"}, {"seeds": [0, 1]}
    students = {"methods": ["deepreduce"], "budgets": [0.1]} | pair
    networks = {
        "UTKFace, race": {},
        "UTKFace, race, ResNet-34 of width 8": {"arch": "resnet34", "width": 8} | pair,
        "UTKFace, age": age | PUBLISHED["age"],
        "CIFAR-10, by halves": {"dataset": "cifar10", "target": "object"} | pair,
        "UTKFace, race, DeepReDuce at 10 %": students,
        "UTKFace, age, DeepReDuce at 10 %": age | students,
    }
    rows = [{"gains, in points": name} | _remedy(changes) for name, changes in networks.items()]
    for name in ("UTKFace, race", "UTKFace, age"):
        own = _remedy(networks[name] | pair, released=True)
        rows.append({"gains, in points": f"as released: {name}"} | own)
    return markdown(pd.DataFrame(rows))


def _remedy(changes: dict[str, Any], released: bool = False) -> dict[str, str]:
    """A row of :func:`remedy`, of the published study with these changes."""
    study = studies.published("mitigation", **{"budgets": [0.02]} | changes)
    cure = Remedy("detached" if released else "algorithm1", study.mu, per_class=released)
    table, paths = studies.remedied(study, [cure]), study.paths([cure], store=Store(published=True))
    if study.target == "object":
        paths["group"] = paths["group"].map(report.half_of(table["group"].unique()))
        table = report.halves(table)
    _, small = groups.extremes(table)
    last = paths[(paths["quantity"] == "multiplier") & (paths["epoch"] == paths["epoch"].max())]
    multiplier = last.loc[last["group"] == small, "value"].mean()
    return report.gained(table) | {"multiplier": f"{multiplier:.2f}"}
