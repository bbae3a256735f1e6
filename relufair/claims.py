"""The ledger: what the paper claims, how each claim is tested here, and the verdict.

``data/claims.yaml`` holds the claims, each with a table, a test, and the side of a threshold on which
its number must lie. A test returns a number with a 95 % interval. The verdict follows from both:

===================== ================ =============================================================
all of the interval    the number       verdict
===================== ================ =============================================================
on the claimed side    there, too       reproduced
on the other side      there, too       not reproduced
on neither             claimed side     partly; not settled
on neither             other side       not reproduced; not settled
(no test)                               not testable here
(a group never right) (no number)       not testable here
(only odd runs)       (no number)       not testable here
(no rows)                               not yet run
===================== ================ =============================================================

A number on the threshold itself is not on the claimed side. Runs that are published with a note, as
odd, decide nothing. A statement of theory has no interval: it is reproduced if it holds in every case
computed, and not reproduced if one case contradicts it.

Rows are of one tier and one width: of ``paper`` if it can answer with at least ``FEWEST`` seeds, else
of ``laptop``; those of ``ci`` never count. The intervals of accuracies are those of
:mod:`relufair.groups`, over seeds and images. Numbers from several budgets or tables redraw the images
of each apart, so their intervals are wider than paired ones. Where the largest of several numbers
counts, the intervals are Bonferroni's, so that chance alone does not make one stand out. Those of a
quotient are Student's, over seeds, of its logarithm. Those of a measure of geometry's rank correlation
are for other groups (:func:`relufair.explain.rank_correlation`): five of them are the least for which
that says anything. The rank correlation of drop and size is of these very groups, so its interval has
only seeds and images redrawn.
The tests are in :mod:`relufair.evidence`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from relufair import bounds, words
from relufair.config import TUNING
from relufair.evidence import (
    FEWEST,
    RELATIVE,
    TESTS,
    UNITS,
    NoNumber,
    NotRun,
    correlation,
    quotient,
)
from relufair.published import geometry, reported
from relufair.sources import SOURCES
from relufair.store import key_of, project_root, results_folder

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
NOT_TESTABLE, NOT_RUN = "not testable here", "not yet run"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTABLE, NOT_RUN)
TIERS = ("paper", "laptop", "every")
USUAL = {"arch": "resnet18", "groups": "label", "method": "snl", "remedy": "plain"}
SIDES = ("above", "below", "within")
DIGITS = {"images": 0, "points": 1, RELATIVE: 1, "%": 1, "times": 2, "": 2}
Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Claim:
    """A claim and its test; the fields are explained in ``data/claims.yaml``."""

    id: str
    claim: str
    where: str
    chapter: str
    table: dict[str, Any] | None
    test: str
    why: str
    against: dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    above: float | None = None
    below: float | None = None
    within: tuple[float, float] | None = None

    @property
    def claimed(self) -> tuple[float, float]:
        """The number lies between these two if the claim holds."""
        if self.within is not None:
            low, high = self.within
            return low, high
        return (-np.inf, self.below) if self.above is None else (self.above, np.inf)

    @property
    def definition(self) -> str:
        """A digest of what decides the claim, which is table, test, arguments and threshold."""
        names = ("table", "against", "test", "arguments", *SIDES)
        return key_of("claim", 1, {name: getattr(self, name) for name in names})[:12]

    @property
    def unit(self) -> str:
        """The number's, or none for a rank correlation. Relative drops are apart by points of them."""
        if self.test != "level":
            return UNITS.get(self.test, "points")
        if "measure" in self.arguments:  # an accuracy, or a drop in points
            return "points"
        return RELATIVE if self.against else "%"


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim.

    Attributes:
        id, definition: of the claim.
        verdict: one of ``VERDICTS``.
        settled: whether all of the interval lies on one side.
        found: the number in words, or why there is none.
        number, low, high: the number and its 95 % interval; nan where there is none.
        seeds, tier, rows: of what; 0 and empty where there are none.
    """

    id: str
    definition: str
    verdict: str
    settled: bool = True
    found: str = ""
    number: float = np.nan
    low: float = np.nan
    high: float = np.nan
    seeds: int = 0
    tier: str = ""
    rows: str = ""


# The file -----------------------------------------------------------------------------------------


def load(path: Path | None = None) -> list[Claim]:
    """The claims of ``path``, by default ``data/claims.yaml``.

    Raises:
        ValueError: naming the claim, the field and what is allowed.
    """
    path = path or project_root() / "data" / "claims.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    claims = [_claim(entry, content["tables"]) for entry in content["claims"]]
    seen: set[str] = set()
    for claim in claims:
        _demand(claim.id not in seen, claim.id, "id", claim.id, "an id that no other claim has")
        seen.add(claim.id)
    return claims


def _demand(fulfilled: bool, name: str, field: str, value: Any, allowed: str) -> None:
    if not fulfilled:
        raise ValueError(f"claim {name!r}: {field}={value!r}: allowed is {allowed}")


def _claim(entry: dict[str, Any], tables: dict[str, dict[str, Any]]) -> Claim:
    """A checked claim, its tables spelled out."""
    name, known = entry.get("id", "without an id"), {f.name: f for f in fields(Claim)}
    for key in entry:
        _demand(key in known, name, "field", key, ", ".join(known))
    for key, own in known.items():
        needed = own.default is MISSING and own.default_factory is MISSING
        _demand(not needed or key in entry, name, key, None, "any value, but it must be there")
    found = dict(entry)
    for key in ("table", "against"):
        if (used := entry.get(key, "none")) == "none":
            found[key] = None
            continue
        _demand(used in tables, name, key, used, f"none, {', '.join(tables)}")
        own = tables[used]
        _demand(own["of"] in TESTS, name, f"{key}: of", own["of"], ", ".join(TESTS))
        found[key] = (USUAL if own["of"] in ("tally", "geometry") else {}) | own
    _check_test(found, name)
    places = [project_root() / place.format(found["chapter"]) for place in
              ("notebooks/{}.ipynb", "book/{}.md")]  # fmt: skip
    _demand(any(p.exists() for p in places), name, "chapter", found["chapter"],
            "the name of a notebook or of a page of the book")  # fmt: skip
    return Claim(**found)


def _check_test(found: dict[str, Any], name: str) -> None:
    """The test exists for the table, takes the arguments, and has one threshold if it needs one."""
    given = [side for side in SIDES if found.get(side) is not None]
    if found["table"] is None:
        _demand(found["test"] == "none", name, "test", found["test"], "none, without a table")
        return
    tests = TESTS[found["table"]["of"]]
    _demand(found["test"] in tests, name, "test", found["test"], ", ".join(tests))
    try:
        inspect.signature(tests[found["test"]]).bind(None, **found.get("arguments", {}))
    except TypeError as error:
        raise ValueError(f"claim {name!r}: arguments: {error}") from None
    if found["test"] == "holds":
        statements = found["arguments"]["statements"]
        unknown = set(statements) - set(bounds.STATEMENTS)
        _demand(not unknown, name, "statements", statements, ", ".join(bounds.STATEMENTS))
    needed = 0 if found["test"] == "holds" else 1
    _demand(len(given) == needed, name, "threshold", given, f"{needed} of {', '.join(SIDES)}")
    for side in given:
        numbers = np.ravel(found[side])
        right = len(numbers) == (2 if side == "within" else 1) and numbers.dtype.kind in "if"
        _demand(right and (np.diff(numbers) > 0).all(), name, side, found[side],
                "a number, or for within two, the smaller first")  # fmt: skip


# The verdict --------------------------------------------------------------------------------------


def evaluate(claim: Claim, tables: Tables) -> Verdict:
    """The verdict on one claim by the best tier that can give it.

    Args:
        claim: of the ledger.
        tables: ``tally``, ``geometry``, ``toy``, ``theory`` and ``sources``, as :func:`published`
            returns them.

    Raises:
        ValueError: naming the claim, for an argument that its rows do not know.
    """
    if claim.table is None:
        return Verdict(claim.id, claim.definition, NOT_TESTABLE)
    verdict, found = NOT_RUN, ""
    for tier in TIERS:
        try:
            return _evaluate(claim, tables, tier)
        except NoNumber as why:
            verdict, found = NOT_TESTABLE, f"run, but {why}"
        except NotRun:
            continue
        except KeyError as error:
            raise ValueError(f"claim {claim.id!r}: arguments: no {error} in its rows") from None
    return Verdict(claim.id, claim.definition, verdict, found=found)


def _evaluate(claim: Claim, tables: Tables, tier: str) -> Verdict:
    """The verdict by the rows of one tier."""
    of, test = claim.table["of"], TESTS[claim.table["of"]][claim.test]
    arguments = {name: _at(tier, value) for name, value in claim.arguments.items()}
    chosen = [_select(tables[of], own, tier) for own in (claim.table, claim.against) if own]
    about = {"tier": tier, "rows": " against ".join(map(_about, chosen))}
    if of == "theory":
        found = test(chosen[0], **arguments)
        verdict = REPRODUCED if found["as_expected"].all() else NOT_REPRODUCED
        said = "; ".join(f"{row.computed}: {row.found}" for row in found.itertuples())
        return Verdict(claim.id, claim.definition, verdict, found=said, **about)
    if of != "sources":
        chosen = _complete(chosen, arguments)
    turns = (rows.assign(turn=turn) for turn, rows in enumerate(chosen))
    first, *others = (test(rows, **arguments) for rows in turns)
    estimate = {quotient: _over_seeds, correlation: tuple}.get(test, _over_draws)
    found = estimate(first - others[0] if others else first)
    about["seeds"] = 0 if of == "sources" else min(rows["seed"].nunique() for rows in chosen)
    said = _said(*found, claim.unit)
    return Verdict(
        claim.id, claim.definition, *judge(*found, *claim.claimed), said, *found, **about
    )


def judge(number: float, low: float, high: float, least: float, most: float) -> tuple[str, bool]:
    """The verdict, and whether it is settled, where the claim is that ``least`` < number < ``most``.

    >>> judge(3, 1, 5, 0, np.inf), judge(3, -1, 5, 0, np.inf)
    (('reproduced', True), ('partly', False))
    >>> judge(-1, -3, 2, 0, np.inf), judge(-1, -3, 0, 0, np.inf)
    (('not reproduced', False), ('not reproduced', True))
    """
    number, low, high = np.nan_to_num((number, low, high), nan=np.nan)  # infinity is below infinity
    if least < low and high < most:
        return REPRODUCED, True
    if high <= least or most <= low:
        return NOT_REPRODUCED, True
    return (PARTLY if least < number < most else NOT_REPRODUCED), False


def _at(tier: str, value: Any) -> Any:
    """A value of a table or an argument in this tier."""
    by_tier = isinstance(value, dict) and set(value) <= set(TIERS)
    return value.get(tier) if by_tier else value


def _select(table: pd.DataFrame, where: dict[str, Any], tier: str) -> pd.DataFrame:
    """The rows asked for, of one tier and, of several widths, the largest."""
    own = table[table["tier"] == tier]
    for column, value in where.items():
        if column != "of":
            own = own[own[column] == _at(tier, value)]
    if own.empty:
        raise NotRun
    if "note" in own:
        odd, own = own.loc[own["note"] != "", "note"], own[own["note"] == ""]
        if own.empty:
            raise NoNumber("; ".join(odd.unique()))
    if "width" in own:
        own = own[own["width"] == own["width"].max()]
    if "study" in own and own["study"].nunique() > 1:
        raise ValueError(f"rows of several studies where one is meant: {where}, tier {tier}")
    return own


def _complete(chosen: list[pd.DataFrame], arguments: dict[str, Any]) -> list[pd.DataFrame]:
    """The rows at the budgets of a test, of the seeds that have them all in every table.

    Raises:
        NotRun: if there are too few, or the tables are of different widths.
    """
    named = [arguments.get(name) for name in ("budget", "since", "at")]
    budgets = set(arguments.get("budgets", [b for b in named if b is not None])) or {1.0}
    if len({rows["width"].iloc[0] for rows in chosen if "width" in rows}) > 1:
        raise NotRun
    chosen = [rows[rows["budget"].isin(budgets)] for rows in chosen]
    full = [rows.groupby("seed")["budget"].nunique() == len(budgets) for rows in chosen]
    seeds = set.intersection(*(set(there.index[there]) for there in full))
    if len(seeds) < FEWEST:
        raise NotRun
    return [rows[rows["seed"].isin(seeds)] for rows in chosen]


def _over_draws(draws: np.ndarray) -> tuple[float, float, float]:
    """The number, or the largest of several with the largest ends of their joint intervals."""
    draws = draws.reshape(len(draws), -1)
    if np.isnan(draws[0]).any():
        raise NoNumber("a group is never right")
    tail = 2.5 / draws.shape[1]
    with np.errstate(invalid="ignore"):
        ends = np.nanpercentile(draws[1:], [tail, 100 - tail], axis=0)
    low, high = np.nan_to_num(ends, nan=np.inf, posinf=np.inf)  # between two that are infinite
    return float(draws[0].max()), float(low.max()), float(high.max())


def _over_seeds(logs: pd.Series) -> tuple[float, float, float]:
    """Geometric mean over seeds with Student's interval."""
    if len(logs) < FEWEST or not np.isfinite(logs).all():
        raise NotRun
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std() / np.sqrt(len(logs))
    return tuple(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]).tolist())


def _said(number: float, low: float, high: float, unit: str) -> str:
    row, digits = {"value": number, "low": low, "high": high}, DIGITS[unit]
    said = words.number(number, digits) if low == high else words.interval(row, digits)
    gain = " (a gain)" if unit == "%" and high < 0 else ""
    return f"{said} {unit}{gain}".strip()


def _about(rows: pd.DataFrame) -> str:
    """Which rows, in words."""
    names = [c for c in ("what", "method", "remedy") if c in rows]
    return " · ".join(str(rows[c].iloc[0]) for c in names)


# What is published ----------------------------------------------------------------------------------


def published() -> dict[str, pd.DataFrame]:
    """The tables in ``data/results`` by the names that claims use, with the images of the sources.

    That of ``geometry`` gets the columns ``accuracy``, ``relative_drop`` (shares, by seed) and ``size``
    of its networks and groups from the tally.
    """
    folder = results_folder()
    tally, measures = reported(folder), geometry(folder)
    tally = tally[~tally["what"].str.contains(r", keep |, thinned test|, \d+ pixels")]
    counts = {name: own.expected for name, own in SOURCES.items() if own.expected}
    sources = pd.DataFrame({"source": counts.keys(), "images": counts.values()})
    return {
        "tally": tally,
        "geometry": measures[measures["seed"] < TUNING].merge(_outcomes(tally), "left"),
        "toy": pd.read_csv(folder / "theory" / "decision_boundary.csv"),
        "theory": pd.read_csv(folder / "theory" / "theory.csv").assign(tier="every"),
        "sources": sources.assign(tier="every"),
    }


def _outcomes(own: pd.DataFrame) -> pd.DataFrame:
    """What became of each group of each network."""
    keys = ["dataset", "target", "tier", "width", *USUAL, "seed", "budget", "group"]
    right, base = own["correct"] / own["n"], own["base"] / own["n"]
    found = {"accuracy": right, "relative_drop": (base - right) / base, "size": own["train_n"]}
    return own[keys].assign(**found)


def verdicts() -> pd.DataFrame:
    """The published verdicts, ``data/verdicts.csv``, by id."""
    text = {"found": str, "tier": str, "rows": str}
    path = project_root() / "data" / "verdicts.csv"
    return pd.read_csv(path, index_col="id", dtype=text, keep_default_na=False, na_values={
        "number": "", "low": "", "high": ""})  # fmt: skip


def computed(claims: Sequence[Claim] | None = None, tables: Tables | None = None) -> pd.DataFrame:
    """The verdicts of the claims, by default all, on the tables, by default the published ones."""
    tables = published() if tables is None else tables
    rows = [asdict(evaluate(c, tables)) for c in (load() if claims is None else claims)]
    table = pd.DataFrame(rows).set_index("id")
    return table.round({"number": 6, "low": 6, "high": 6})
