"""The published results: whole studies, without images and weights.

``data/results`` holds

============================================ ======================================================
``artifacts/<kind>/<key>.json``              kind, version, configuration and facts of an artifact,
                                             with the checksums of its tables
``artifacts/<kind>/<key>.<table>.parquet``   each of its tables
``manifest.json``                            an entry an artifact: files, run, what made it
``tally.parquet``                            counts: a row a run × budget × group × split
============================================ ======================================================

The tally has the columns of :meth:`relufair.pipeline.Pipeline.measure` and ``split``, ``study`` (a
digest of all but seed and budgets), ``tier``, ``what`` (data and network in words), ``key`` (of the
predictions that are counted) and ``note`` (what is odd about them; usually empty). It follows from the
published predictions and splits alone, and has a row for every grouping whose splits are published.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relufair import config
from relufair.data import Choice
from relufair.pipeline import Run
from relufair.store import (
    Artifact,
    NotPublished,
    Store,
    checksum,
    read_artifact,
    read_published,
    results_folder,
)  # fmt: skip
from relufair.study import fact_by_budget, identity, named, stages, words

SMALL = {"row": np.int32, "label": np.uint8, "prediction": np.uint8, "group": np.uint8}
SPLITS = ("validation", "test")
COLUMNS = [
    "dataset", "target", "groups", "arch", "width", "method", "remedy", "seed", "data", "group",
    "train_n", "n", "correct", "base", "both", "budget", "relus", "device", "date", "split", "study",
    "tier", "what", "key", "note",
]  # fmt: skip


# Publishing ---------------------------------------------------------------------------------------


def export(
    store: Store,
    recorded: Iterable[str],
    folder: Path | None = None,
    facts: Mapping[str, dict[str, Any]] | None = None,
) -> list[str]:
    """Publish the tables and facts of artifacts; then write manifest and tally anew.

    Args:
        store: where the artifacts lie.
        recorded: their names ``kind/key``, as ``RELUFAIR_RECORD`` collects them. Images are passed
            over.
        folder: of the published results; by default the project's.
        facts: by name, facts to add, such as a ``note`` on what is odd. What an artifact says of itself
            stays as it is; the note that it was published with stays unless ``facts`` has another.

    Returns:
        Which runs are not in the tally, and why.
    """
    folder, facts = folder or results_folder(), facts or {}
    for name in sorted(set(recorded)):
        if not name.startswith("images/"):
            about, artifact = read_artifact(store.root / name)
            place = folder / "artifacts" / name
            about["facts"] = _noted(place) | facts.get(name, {}) | about["facts"]
            _publish(about, artifact, place)
    table, notes = rebuild(folder)
    table.to_parquet(folder / "tally.parquet", compression="zstd", index=False)
    entries = [json.dumps(entry, sort_keys=True) for entry in manifest(folder)]
    (folder / "manifest.json").write_text("[\n" + ",\n".join(entries) + "\n]\n", newline="\n")
    return notes


def _noted(place: Path) -> dict[str, str]:
    """The note of an artifact that is published already, where it has one."""
    path = place.with_suffix(".json")
    facts = json.loads(path.read_text())["facts"] if path.exists() else {}
    return {"note": facts["note"]} if "note" in facts else {}


def _publish(about: dict[str, Any], artifact: Artifact, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    sums = {}
    for name, table in sorted(artifact.tables.items()):
        path = place.with_name(f"{place.name}.{name}.parquet")
        how: dict[str, Any] = {}
        if about["kind"] in ("predictions", "splits"):  # a row an image, in the order of the rows
            table = _compact(table)
            how["use_dictionary"] = [n for n in table if n not in ("row", "margin")]
            how["column_encoding"] = {"row": "DELTA_BINARY_PACKED"}
        table.to_parquet(path, compression="zstd", index=False, **how)
        sums[name] = checksum(path)
    text = json.dumps(about | {"tables": sums}, indent=1, sort_keys=True)
    place.with_suffix(".json").write_text(text + "\n", newline="\n")


def _compact(table: pd.DataFrame) -> pd.DataFrame:
    """The table in few bytes: small integers where they fit, margins in half precision."""
    fitting = {
        name: kind
        for name, kind in SMALL.items()
        if name in table and table[name].max() <= np.iinfo(kind).max
    }
    others = {"margin": np.float16, "split": "category"}
    return table.astype(fitting | {name: others[name] for name in others.keys() & set(table)})


def manifest(folder: Path) -> list[dict[str, Any]]:
    """An entry for each artifact in ``folder``, by kind and key."""
    return [_entry(folder, about) for about in described(folder)]


def described(folder: Path, kind: str = "*") -> Iterator[dict[str, Any]]:
    """The description of each artifact, with its key."""
    for path in sorted((folder / "artifacts").glob(f"{kind}/*.json")):
        yield json.loads(path.read_text()) | {"key": path.stem}


def _entry(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    kind, key, facts = about["kind"], about["key"], about["facts"]
    run = facts.get("run") or (about["config"] if kind == "splits" else {})
    choice, place = run.get("choice", {}), folder / "artifacts" / kind
    return {
        "kind": kind, "key": key,
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": checksum(path), "bytes": path.stat().st_size,
            }
            for path in sorted(place.glob(f"{key}.*"))
        },
        "tier": _tier(run["schedule"]) if "schedule" in run else None,
        "arch": run.get("arch"), "width": run.get("width"),
        "seed": run.get("seed"), "method": run.get("method"),
        "remedy": str(config.Remedy(**run["remedy"])) if "remedy" in run else None,
        "dataset": choice.get("dataset"), "target": choice.get("target"),
        "data": run.get("data", facts.get("digest")),
        "written": facts["written"], "seconds": facts.get("seconds"),
        "device": facts.get("device"),
        "versions": {"stage": about["version"]}
        | {name: facts.get(name) for name in ("relufair", "python", "torch")},
        "commit": facts.get("commit", "unknown"), "sources": facts.get("sources", "unknown"),
    }  # fmt: skip


def _tier(schedule: dict[str, Any] | config.Schedule) -> str:
    """Which tier's schedule this is, or ``changed``."""
    own = config.Schedule(**schedule) if isinstance(schedule, dict) else schedule
    return next((name for name, plan in config.SCHEDULES.items() if plan == own), "changed")


# The tally ----------------------------------------------------------------------------------------


def tally(folder: Path | None = None) -> pd.DataFrame:
    """The published tally, by default the project's."""
    return pd.read_parquet((folder or results_folder()) / "tally.parquet")


def reported(folder: Path | None = None) -> pd.DataFrame:
    """Of the published tally, the test images, and the seeds that have not chosen anything."""
    table = tally(folder)
    own = (table["split"] == "test") & (table["seed"] < config.TUNING)
    return table[own].drop(columns="split").reset_index(drop=True)


def geometry(folder: Path | None = None) -> pd.DataFrame:
    """The published measures of :mod:`relufair.explain`, a row a network × group × measure.

    Returns:
        The long table with the columns ``dataset``, ``target``, ``groups``, ``arch``, ``width``,
        ``method``, ``remedy``, ``seed``, ``budget``, ``tier`` and ``what``. What two artifacts
        say of one network stands there once.

    Raises:
        ValueError: where two say different things, for then nothing tells which is meant.
    """
    folder, tables = folder or results_folder(), []
    for kind in ("geometry", "first_order"):
        for about in described(folder, kind):
            own = about["facts"]["run"]
            run = Run.read(own, ())
            names = {f: getattr(run.choice, f) for f in ("dataset", "target", "groups")}
            names |= {f: getattr(run, f) for f in ("arch", "width", "method", "seed")}
            names |= {"remedy": str(run.remedy), "budget": own["budget"]}
            _, artifact = read_published(folder, kind, about["key"])
            told = {"tier": _tier(run.schedule), "what": words(run)}
            tables.append(artifact.tables["measures"].assign(**names, **told))
    if not tables:
        raise FileNotFoundError(f"{folder}: no measures of geometry are published")
    found = pd.concat(tables, ignore_index=True)
    found = found.drop_duplicates()
    twice = found[found.duplicated(found.columns.difference(["value", "n"]).tolist())]
    if len(twice):
        said = ", ".join(map(str, twice.iloc[0][["what", "method", "remedy", "seed", "measure"]]))
        raise ValueError(f"published geometry: two artifacts give different values of {said}")
    return found


def rebuild(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The tally from the published predictions and splits.

    Returns:
        The tally, and which runs are not in it and why.
    """
    store, tables, notes = Store(published=folder), [], []
    choices = [
        (Choice(**about["config"]["choice"]), about["config"]["seed"])
        for about in described(folder, "splits")
    ]
    for run in _runs(folder):
        if (run.choice, run.seed) not in choices:
            notes.append(f"{named(run)} at {run.budgets[0]:g}: its splits are missing")
        for choice, seed in choices:
            # Other groups of the same images are counted, too.
            if seed == run.seed and replace(choice, groups=run.choice.groups) == run.choice:
                try:
                    tables.append(_counted(replace(run, choice=choice), store))
                except NotPublished as missing:
                    if choice == run.choice:
                        what = "{} {}".format(*missing.args)
                        notes.append(f"{named(run)} at {run.budgets[0]:g}: {what} is missing")
    if not tables:
        return pd.DataFrame(columns=COLUMNS), notes
    # Each budget brings the rows of its teacher.
    return pd.concat(tables, ignore_index=True).drop_duplicates(ignore_index=True), notes


def _runs(folder: Path) -> list[Run]:
    """The published runs, each at one budget."""
    found = (about["facts"].get("run") for about in described(folder, "predictions"))
    runs = [Run.read(run, [run["budget"]]) for run in found if run and run["units"] is not None]
    return sorted(
        runs,
        key=lambda r: (r.choice.dataset, r.method, str(r.remedy), r.seed, -r.budgets[0], repr(r)),
    )


def _counted(run: Run, store: Store) -> pd.DataFrame:
    """The tally of a run on both splits."""
    pipe = stages(run, store, None)
    table = pd.concat([pipe.measure(name).assign(split=name) for name in SPLITS])
    keys = {pipe.units.get(units, 1.0): pipe.key(units) for units in (None, *pipe.reached)}
    notes = fact_by_budget(pipe, "note", "")
    about = {"study": identity(run), "tier": _tier(run.schedule), "what": words(run)}
    own = {"key": table["budget"].map(keys), "note": table["budget"].map(notes)}
    return table.assign(**about, **own)


def listed(folder: Path | None = None) -> pd.DataFrame:
    """What is published, a row a study × method × remedy, with the key of one of its predictions."""
    keys, table = ["what", "method", "remedy", "tier", "study"], tally(folder)
    found = table.groupby(keys, sort=False).agg(
        seeds=("seed", lambda seeds: ", ".join(map(str, sorted(set(seeds))))),
        budgets=("budget", lambda b: ", ".join(f"{x:g}" for x in sorted({*b} - {1}, reverse=True))),
        key=("budget", lambda b: table.loc[b.idxmin(), "key"][:8]),
    )
    return found.reset_index().drop(columns="study").rename(columns={"what": "study"})


def origins(folder: Path | None = None) -> pd.DataFrame:
    """Where the published numbers come from, a row a tier × data × machine.

    Returns:
        The columns ``tier``, ``data`` (set and target), ``seeds``, ``networks`` (whose predictions
        are published), ``hours`` (of a process, in which these artifacts were made), ``device``,
        ``dates``, and the codes: ``commits``, ``torch``, and ``splits`` (their digests, as in the
        tally).
    """
    entries = json.loads(((folder or results_folder()) / "manifest.json").read_text())
    table = pd.DataFrame(
        {
            "tier": entry["tier"],
            "data": f"{entry['dataset']}, {entry['target']}",
            "device": entry["device"] or "",
            "torch": entry["versions"]["torch"] or "",
            "commits": entry["commit"] or "",
            "splits": (entry["data"] or "")[:12],
            "seeds": entry["seed"],
            "run": tuple(entry[name] for name in ("arch", "width", "method", "remedy", "seed")),
            "networks": entry["kind"] == "predictions",
            "end": pd.Timestamp(entry["written"]).timestamp(),
            "seconds": entry["seconds"] or 0.0,
            "dates": entry["written"][:10],
        }
        for entry in entries
        if entry["tier"] and entry["kind"] != "splits"
    )
    keys = ["tier", "data", "device"]
    rows = []
    for key, own in table.groupby(keys):
        hours = sum(_spent(part) for _, part in own.groupby("run")) / 3600
        several = {name: ", ".join(map(str, sorted(set(own[name])))) for name in
                   ("seeds", "commits", "torch", "splits")}  # fmt: skip
        dates = " to ".join(sorted({own["dates"].min(), own["dates"].max()}))
        about = dict(zip(keys, key, strict=True)) | several
        rows.append(about | {"networks": own["networks"].sum(), "hours": hours, "dates": dates})
    columns = ["tier", "data", "seeds", "networks", "hours", "device", "dates", "commits", "torch",
               "splits"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _spent(table: pd.DataFrame) -> float:
    """Seconds in which the artifacts of one run were made, of which one may contain another."""
    total = reached = 0.0
    for start, end in sorted(zip(table["end"] - table["seconds"], table["end"], strict=True)):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
