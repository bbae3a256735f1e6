"""Are the published results what was published, and would this code compute them again?

:func:`verify` needs neither data nor training. :func:`check` computes one network's predictions anew.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from relufair import audit, data, explain, methods, mitigation, pipeline, sources
from relufair.data import GroupedImages
from relufair.pipeline import Run
from relufair.provenance import digest
from relufair.published import described, manifest, rebuild, tally
from relufair.store import Damaged, Store, checksum, read_published, results_folder
from relufair.study import named

STAGES = (pipeline, explain, mitigation, audit)


def versions() -> dict[str, int]:
    """The present version of each kind of artifact."""
    found = {"images": sources.VERSION, "splits": data.VERSION}
    return found | {kind: n for module in STAGES for kind, n in module.VERSIONS.items()}


@dataclass
class Findings:
    """What :func:`verify` found.

    Attributes:
        damage: what is not as it was published, in words.
        stale: the artifacts that the present code might compute otherwise, by reason.
        computed: the predictions that the present code *has* computed anew, and with what outcome.
    """

    damage: list[str] = field(default_factory=list)
    stale: dict[str, list[str]] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)


def verify(folder: Path | None = None) -> Findings:
    """Compare the published files with the manifest, the tally, and the present code."""
    folder = folder or results_folder()
    try:
        entries = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return Findings([f"manifest.json cannot be read ({error})"])
    found = Findings(_damaged(folder, entries))
    if not found.damage:
        here = {(e["kind"], e["key"]): e for e in manifest(folder)}
        wrong = [e for e in entries if here.get((e["kind"], e["key"])) != e]
        found.damage += [f"manifest.json: wrong entry {e['kind']}/{e['key']}" for e in wrong]
        fresh, notes = rebuild(folder)
        found.damage += _differing(folder, fresh, complete=not notes)
        found.stale = _stale(folder) | ({"not in the tally": notes} if notes else {})
        found.computed = [_outcome(entry) for entry in kept(folder) if _by_this_code(entry)]
    return found


def _damaged(folder: Path, entries: list[dict[str, Any]]) -> list[str]:
    """Files that are missing, changed or extra."""
    expected = {name: file for entry in entries for name, file in entry["files"].items()}
    present = (path for path in (folder / "artifacts").rglob("*") if path.is_file())
    extra = {path.relative_to(folder).as_posix() for path in present} - set(expected)
    damage = [f"{name}: not in manifest.json" for name in sorted(extra)]
    for name, file in expected.items():
        if not (folder / name).exists():
            damage.append(f"{name}: missing")
        elif checksum(folder / name) != file["sha256"]:
            damage.append(f"{name}: changed")
    for entry in [] if damage else entries:
        try:
            read_published(folder, entry["kind"], entry["key"])
        except Damaged as error:
            damage.append(str(error))
    return damage


def _differing(folder: Path, fresh: pd.DataFrame, complete: bool) -> list[str]:
    """Rows in which the published tally is not the ``fresh`` one; more are there if not complete."""
    try:
        published = tally(folder)
    except (OSError, ValueError) as error:
        return [f"tally.parquet cannot be read ({error})"]
    if list(fresh) != list(published):
        return ["tally.parquet: other columns than the recomputed tally"]
    if fresh.empty or published.empty:  # without rows, columns have no types to compare
        fresh, published = fresh.astype(published.dtypes), published.astype(fresh.dtypes)
    both = published.merge(fresh, how="outer", indicator="where")
    wrong = both["where"] == "right_only"
    if complete:
        wrong |= both["where"] == "left_only"
    rows = both[wrong].groupby(["method", "remedy", "seed", "budget"]).size()
    return [
        f"tally.parquet: {method}, {remedy}, seed {seed} at {budget:g} does not follow from the "
        "published predictions"
        for method, remedy, seed, budget in rows.index
    ]


def _stale(folder: Path) -> dict[str, list[str]]:
    """The artifacts by what speaks against the present code computing them again."""
    found = defaultdict(list)
    for about in described(folder):
        for reason in _reasons(about):
            found[reason].append(f"{about['kind']}/{about['key']}{_said(about['facts'])}")
    return dict(sorted(found.items()))


def _reasons(about: dict[str, Any]) -> Iterator[str]:
    facts, now = about["facts"], versions().get(about["kind"])
    if about["version"] != now:
        yield f"version {about['version']} of {about['kind']}, now {now}"
    if "sources" not in facts:
        yield "sources unknown"
    for module, then in facts.get("sources", {}).items():
        if digest(module.removeprefix("relufair.")) != then:
            yield f"{module} changed since"
    if about["kind"] == "predictions" and "run" not in facts:
        yield "run unknown, so not in the tally"


def _said(facts: dict[str, Any]) -> str:
    """Which network, where it is known."""
    if not (about := facts.get("run")):
        return ""
    of = f"stage {about['stage']}" if "stage" in about else f"{about['budget']:g}"
    return f" ({named(Run.read(about, ()))} at {of})"


# Checking one run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A published artifact of predictions beside the same, computed anew.

    Attributes:
        groups: of the test images, a row a group: ``n``, ``published`` and ``again`` (how many are
            right), and ``low``, ``high``: the published accuracy's exact binomial 95 % interval.
        images, same: of validation and test: how many there are, and have the same prediction.
        apart: largest difference of two margins; in the published one, half precision takes 0.0005.
        key: of the predictions.
        facts: of the ones computed anew.
    """

    groups: pd.DataFrame
    images: int
    same: int
    apart: float
    key: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def astray(self) -> list[str]:
        """The groups whose new accuracy is outside of the interval."""
        share = self.groups["again"] / self.groups["n"]
        outside = ~share.between(self.groups["low"] - 1e-9, self.groups["high"] + 1e-9)
        return self.groups.index[outside].tolist()


def check(key: str, store: Store, folder: Path | None, results: Path | None = None) -> Check:
    """Compute published predictions anew, with all that they rest on.

    Args:
        key: of the predictions, or how it begins.
        store: where to compute.
        folder: the data folder.
        results: the folder of the published results.

    Raises:
        ValueError: for a key that names none or several, predictions whose run is unknown, data that
            are not those of the published run, or a store that holds what was published itself.
    """
    results = results or results_folder()
    found = [a for a in described(results, "predictions") if a["key"].startswith(key)]
    if len(found) != 1:
        raise ValueError(f"run={key!r}: {len(found)} published predictions begin so, must be one")
    run = found[0]["facts"].get("run")
    if run is None:
        raise ValueError(f"run={key!r}: which run it is was not recorded")
    kind = methods.OneStage if "stage" in run else methods.PIPELINES[run["method"]]
    budgets = () if run["units"] is None else (run["budget"],)
    pipe, units = kind(Run.read(run, budgets), store, folder), run.get("stage", run["units"])
    if pipe.splits.digest != run["data"]:
        raise ValueError(
            f"data={pipe.splits.digest[:12]!r}: the published run had {run['data'][:12]!r}"
        )
    if own := next(_held(store, results), None):
        raise ValueError(
            f"store={str(store.root)!r}: holds {own} as it was published, so it would not be computed "
            "anew; name an empty or a new folder"
        )
    _, then = read_published(results, "predictions", found[0]["key"])
    again = pipe.predictions(units)
    outcome = compare(then.tables["images"], again.tables["images"], pipe.splits.test)
    return replace(outcome, key=found[0]["key"], facts=again.facts)


def _held(store: Store, results: Path) -> Iterator[str]:
    """The published artifacts that are in ``store`` themselves, and not computed anew."""
    for about in described(results):
        name = f"{about['kind']}/{about['key']}"
        place = store.root / name / "config.json"
        if about["kind"] != "splits" and place.exists():  # no network is trained for these
            if json.loads(place.read_text())["facts"]["written"] == about["facts"]["written"]:
                yield name


def keep(found: Check, results: Path | None = None) -> None:
    """Write the outcome into ``checks.json``, in the place of an earlier one of the same key."""
    results = results or results_folder()
    said = {"key": found.key, "of": _said(found.facts).strip(" ()"), "agrees": not found.astray}
    said |= {name: getattr(found, name) for name in ("images", "same", "apart")}
    said |= {name: found.facts[name] for name in ("written", "commit", "device", "sources")}
    others = [entry for entry in kept(results) if entry["key"] != found.key]
    lines = [json.dumps(entry, sort_keys=True) for entry in [*others, said]]
    (results / "checks.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", newline="\n")


def kept(results: Path) -> list[dict[str, Any]]:
    """The outcomes that :func:`keep` has written."""
    path = results / "checks.json"
    return json.loads(path.read_text()) if path.exists() else []


def _by_this_code(entry: dict[str, Any]) -> bool:
    sources = entry["sources"].items()
    return all(digest(name.removeprefix("relufair.")) == then for name, then in sources)


def _outcome(entry: dict[str, Any]) -> str:
    how = "agrees" if entry["agrees"] else "does NOT agree"
    return (
        f"predictions/{entry['key']} ({entry['of']}) {how}: {entry['same']} of {entry['images']} "
        f"predictions are the same ({entry['written'][:10]}, {entry['device']})"
    )


def compare(published: pd.DataFrame, again: pd.DataFrame, test: GroupedImages) -> Check:
    """Two tables of predictions of the same images, see :meth:`relufair.pipeline.Pipeline.predictions`.

    Args:
        published, again: the tables.
        test: groups of the test images.
    """
    both = published.astype({"split": str}).merge(
        again, on=["split", "row"], suffixes=("", "_again")
    )
    margins = (both["margin"].astype(float) - both["margin_again"]).abs()
    own = both[both["split"] == "test"].set_index("row")
    names = pd.Series(test.groups, test.rows).map(dict(enumerate(test.group_names)))
    right = {
        "published": own["prediction"] == own["label"],
        "again": own["prediction_again"] == own["label"],
    }
    groups = pd.DataFrame(right).groupby(names.loc[own.index], sort=False).sum()
    groups.insert(0, "n", names.loc[own.index].value_counts())
    groups[["low", "high"]] = [_interval(row) for row in groups[["published", "n"]].to_numpy()]
    same = int((both["prediction"] == both["prediction_again"]).sum())
    return Check(groups, len(both), same, float(margins.max()))


def _interval(counts: Sequence[int]) -> tuple[float, float]:
    """Exact 95 % interval of the share of ``counts[0]`` in ``counts[1]``."""
    from scipy.stats import binomtest

    return tuple(binomtest(*map(int, counts)).proportion_ci())
