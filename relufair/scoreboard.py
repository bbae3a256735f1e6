"""The ledger for people: how many claims hold, what became of each, and the page that says so.

All of it shows the published verdicts, ``data/verdicts.csv``; :func:`save` renews them and all that is
made from them.
"""

from __future__ import annotations

import json

import pandas as pd

from relufair import claims, landing, plots, published
from relufair.claims import Claim
from relufair.store import project_root
from relufair.words import machine, markdown

WRITTEN = "<!-- Written by `make claims` from data/results. -->\n\n"
SCORE = """\
<!-- Written by `make claims` from data/claims.yaml and data/verdicts.csv: change those. -->

```{{figure}} figures/scoreboard.png
:alt: {alternative}
:width: 100%

{alternative} {kinds} {{doc}}`/book/claims` lists them.
```

<!-- The score ends here. -->

{runs}
"""


def score(verdicts: pd.DataFrame | None = None) -> pd.DataFrame:
    """How many claims have each verdict: a row a verdict, with ``settled`` and ``not settled``."""
    found = claims.verdicts() if verdicts is None else verdicts
    settled = found["settled"].map({True: "settled", False: "not settled"})
    counts = pd.crosstab(found["verdict"], settled)
    return counts.reindex(
        index=claims.VERDICTS, columns=["settled", "not settled"], fill_value=0
    ).rename_axis(index=None, columns=None)


def alternative(counts: pd.DataFrame) -> str:
    """The score in a sentence, which serves those who do not see the figure.

    Args:
        counts: of :func:`score`.
    """
    parts = []
    for verdict, row in counts.iterrows():
        open_ = row["not settled"]
        said = f", {open_} of them not settled" if 0 < open_ < row.sum() else ""
        parts.append(
            f"{row.sum()} {verdict}" + (said or (", none of them settled" if open_ else ""))
        )
    return f"Of {counts.to_numpy().sum()} claims: {'; '.join(parts)}."


def kinds() -> str:
    """How many of the claims that hold ask nothing of the trained networks, in a sentence."""
    kind = {
        c.id: c.table["of"] if c.chapter != "data" else "data" for c in claims.load() if c.table
    }
    found = claims.verdicts()
    of = found.index[found["verdict"] == claims.REPRODUCED].map(kind).value_counts()
    data, theory, toy = (of.get(name, 0) for name in ("data", "theory", "toy"))
    return (
        f"Of those reproduced, {data} are about the data sets, {theory} about theory, and {toy} about "
        "the toy problem."
    )


def ledger(chapter: str | None = None) -> pd.DataFrame:
    """For people: the claims, of one chapter or all, each with what decides it and the verdict."""
    verdicts = claims.verdicts()
    rows = [
        {
            "claim": claim.claim,
            "verdict": _verdict(own),
            "found": _found(own) if own["found"] else "",
            "holds if": _rule(claim),
            "where": claim.where,
            "chapter": claim.chapter,
        }
        for claim in claims.load()
        if chapter in (None, claim.chapter)
        for own in [verdicts.loc[claim.id]]
    ]
    return pd.DataFrame(rows)


def _verdict(verdict: pd.Series) -> str:
    return verdict["verdict"] if verdict["settled"] else f"{verdict['verdict']} (not settled)"


def _found(verdict: pd.Series) -> str:
    """The number, with seeds and tier where there are any."""
    seeds = [f"{verdict['seeds']} seeds"] if verdict["seeds"] else []
    tier = [f"`{verdict['tier']}`"] if verdict["tier"] not in ("", "every") else []
    return ", ".join([verdict["found"], *seeds, *tier])


def _rule(claim: Claim) -> str:
    """The threshold in words, with its reason."""
    unit = f" {claim.unit}" if claim.unit else ""
    if claim.within is not None:
        rule = "between {:,g} and {:,g}".format(*claim.within) + unit
    elif claim.above is None and claim.below is None:
        return claim.why
    else:
        side = "below" if claim.above is None else "above"
        rule = f"{side} {getattr(claim, side):,g}{unit}"
    return f"{rule.replace('-', '−')}: {claim.why}"


def page() -> str:
    """The score and the tables of the page ``book/claims.md``, which it includes from ``ledger.md``."""
    head = {"alternative": alternative(score()), "kinds": kinds(), "runs": _runs()}
    parts = [SCORE.format(**head)]
    for chapter, own in ledger().groupby("chapter", sort=False):
        parts.append(f"## {_title(chapter)}\n\n{markdown(own.drop(columns='chapter'))}")
    return "\n".join(parts)


def _title(chapter: str) -> str:
    """The title of a notebook, or else of a page of the book, as a link to it.

    The text is spelled out: a list of contents does not resolve the titles of other pages.
    """
    path = project_root() / "notebooks" / f"{chapter}.ipynb"
    if path.exists():
        text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    else:
        path = project_root() / "book" / f"{chapter}.md"
        text = path.read_text(encoding="utf-8")
    title = next(line for line in text.splitlines() if line.startswith("# "))
    return f"[{title[2:]}](/{path.relative_to(project_root()).as_posix()})"


def chapter(name: str) -> str:
    """The claims of one chapter with their verdicts, for its end: a sentence and a table."""
    own, verdicts = ledger(name), claims.verdicts()
    counts = score(verdicts.loc[[claim.id for claim in claims.load() if claim.chapter == name]])
    said = alternative(counts[counts.sum(axis=1) > 0])
    return f"{said}\n\n{markdown(own.drop(columns='chapter'))}"


def _runs() -> str:
    """Which tiers decide how many claims, with how many seeds: a sentence each."""
    own = claims.verdicts().query("tier not in ('', 'every')")
    said = []
    for tier, part in own.groupby("tier", sort=False):
        seeds = dict.fromkeys(f"{n}" for n in (part["seeds"].min(), part["seeds"].max()))
        said.append(
            f"The `{tier}` tier decides {len(part)} claims, with {' to '.join(seeds)} seeds."
        )
    return " ".join(said)


def origins() -> str:
    """The table of the page ``book/numbers.md``, which it includes from ``origins.md``."""
    table = published.origins()
    table["hours"] = table["hours"].map("{:.1f}".format)
    table["device"] = table["device"].map(machine)
    wide = table.astype(str).T.reset_index()
    wide.columns = wide.iloc[0]  # a column a tier and data set, headed by the tier
    return (
        "<!-- Written by `make claims` from data/results/manifest.json. -->\n\n"
        f"{markdown(wide.iloc[1:])}"
    )


def answer() -> str:
    """Who pays: the tables of the landing page, which it includes from ``answer.md``."""
    heads = {
        "race": "UTKFace, by race",
        "age": "UTKFace, by age",
        "object": "CIFAR-10, the five frequent classes and the five rare ones",
    }
    parts = (f"{head}:\n\n{landing.answer(target)}" for target, head in heads.items())
    return WRITTEN + "\n".join(parts)


def remedy() -> str:
    """What the remedy changes: the table of the landing page, which it includes from ``remedy.md``."""
    return WRITTEN + landing.remedy()


def save() -> None:
    """Compute the verdicts anew; write them, and the figures and tables of the pages."""
    root = project_root()
    claims.computed().to_csv(root / "data" / "verdicts.csv")
    plots.scoreboard(score()).savefig(root / "book" / "figures" / "scoreboard.png", dpi=160)
    landing.save_headline(root / "book" / "figures" / "headline.png")
    for name, text in {
        "ledger": page,
        "answer": answer,
        "remedy": remedy,
        "origins": origins,
    }.items():
        (root / "book" / f"{name}.md").write_text(text(), encoding="utf-8")
