"""The studies of Section 6: what the paper's remedy does, how strong it should be, what else there is.

All remedies of a run share its teacher and its masks, so that only the last training differs. In their
tallies (:mod:`relufair.groups`) ``base`` counts what the network *without* a remedy gets right, at the
same budget; in the rows of the remedy ``plain`` it counts what the teacher gets right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from relufair import config, explain, methods, training
from relufair.config import PLAIN, REMEDIES, Remedy
from relufair.objectives import Batch, Distillation
from relufair.pipeline import Run, Trained, stored
from relufair.sources import data_folder
from relufair.store import Store
from relufair.study import AccuracyDrops

VERSIONS = {"losses": 1, "costs": 1}
CURES = tuple(name for name in REMEDIES if name != "plain")


@dataclass(frozen=True)
class Remedied(AccuracyDrops):
    """Accuracy drops, with remedies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for method in self.methods:
            config.one_of("methods", method, [m for m in config.METHODS if m != "narrower"])

    def remedied(self, cures: Sequence[Remedy], seeds: Sequence[int] | None = None) -> list[Run]:
        """One run a method, seed and remedy; on the study's own seeds unless told otherwise."""
        first = [replace(run, seed=seed) for run in self.runs()[:: len(self.seeds)]
                 for seed in seeds or self.seeds]  # fmt: skip
        return [replace(run, remedy=cure) for cure in cures for run in first]

    def _pipelines(
        self, cures: Sequence[Remedy], folder: Path | None, store: Store | None
    ) -> list[Trained]:
        store, folder = store or Store(), data_folder(folder)
        return [methods.pipeline(run, store, folder) for run in self.remedied(cures)]

    def tally(
        self,
        cures: Sequence[Remedy],
        folder: Path | None = None,
        store: Store | None = None,
        *,
        seeds: Sequence[int] | None = None,
        split: str = "test",
    ) -> pd.DataFrame:
        """The tally of all ``cures``, computing what is missing."""
        store, folder = store or Store(), data_folder(folder)
        self.check_data(folder, store)
        return self.tallied(self.remedied(cures, seeds), folder, store, split=split)

    def paths(
        self, cures: Sequence[Remedy], folder: Path | None = None, store: Store | None = None
    ) -> pd.DataFrame:
        """What the last training logged of each group, epoch by epoch, where it watched the groups.

        Returns:
            A row an epoch × group × quantity with the columns ``method``, ``remedy``, ``seed``,
            ``budget``, ``epoch``, ``group``, ``quantity`` (``loss``, and where there is one,
            ``violation`` and ``multiplier``, or ``weight``) and ``value``.
        """
        tables = self._in_turn(self._pipelines(cures, folder, store), _paths)
        return pd.concat([table for table in tables if len(table)], ignore_index=True)


def _about(pipe: Trained, units: int) -> dict[str, Any]:
    run = pipe.run
    about = {"method": run.method, "remedy": str(run.remedy), "seed": run.seed}
    return about | {"budget": pipe.units[units]}


def _paths(pipe: Trained) -> pd.DataFrame:
    """The rows of :meth:`Remedied.paths` of one run; none where no log watched the groups."""
    logs = {units: pipe.linear(units).tables["log"] for units in pipe.reached}
    tables = [
        _by_group(log, pipe.splits.train.group_names).assign(**_about(pipe, units))
        for units, log in logs.items()
        if log.columns.str.contains(":").any()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _by_group(log: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The columns ``quantity:group`` of a log as rows."""
    long = log.filter(regex="^epoch$|:").melt("epoch")
    split = long["variable"].str.split(":", expand=True)
    group = split[1].astype(int).map(dict(enumerate(names)))
    return long[["epoch", "value"]].assign(quantity=split[0], group=group)


@dataclass(frozen=True)
class Mitigation(Remedied):
    """The study of Algorithm 1 (Fig. 9, 12, 13, 14).

    The parameters are those of the notebook ``05_mitigation``.
    """

    mu: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cures()

    def cures(self) -> list[Remedy]:
        """No remedy, and Algorithm 1."""
        return [PLAIN, Remedy("algorithm1", self.mu)]

    def geometry(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """Gradient norms and distances of all networks, see :func:`relufair.explain.first_order`."""
        tables = [  # one by one, for without either there is nothing to compare
            table
            for cure in self.cures()
            for table in self._in_turn(self._pipelines([cure], folder, store), explain.first_order)
        ]
        return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Ablation(Remedied):
    """How strong Algorithm 1 should be (Fig. 15).

    The parameters are those of the notebook ``06_mu_ablation``.
    """

    mus: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        config.distinct("mus", self.mus)
        self.cures()

    def lag(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """Each group's loss in the last epoch's own batches, and in a pass over all images after it.

        Returns:
            A row a remedy × seed × budget × group with the columns ``own`` and ``whole``. The first
            is what Algorithm 1 goes by, the second what it asks for.
        """
        logs = self.paths(self.cures(), folder, store).query("quantity == 'loss'")
        keys = ["method", "remedy", "seed", "budget", "group"]
        last = logs.groupby("method")["epoch"].transform("max")  # methods differ in their epochs
        own = logs[logs["epoch"] == last].set_index(keys)["value"]
        tables = self._in_turn(self._pipelines(self.cures(), folder, store), _whole)
        whole = pd.concat(tables, ignore_index=True).set_index(keys)["whole"]
        return pd.concat([own.rename("own"), whole], axis=1, join="inner").reset_index()

    def cures(self) -> list[Remedy]:
        """Algorithm 1 at every strength, μ = 0 being plain finetuning to the bit."""
        return [Remedy("algorithm1", mu) for mu in self.mus]


@dataclass(frozen=True)
class Comparison(Remedied):
    """All remedies on the same masks.

    The parameters are those of the notebook ``08_remedies_compared``.
    """

    remedies: Sequence[str]
    tuning_seeds: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        config.distinct("remedies", self.remedies)
        for name in self.remedies:
            config.one_of("remedies", name, CURES)
        if self.tuning_seeds:
            config.distinct("tuning_seeds", self.tuning_seeds)
        for seed in self.tuning_seeds:
            config.whole("tuning_seeds", seed, config.TUNING, config.LARGEST_SEED)
            if seed in self.seeds:
                raise ValueError(f"tuning_seeds={list(self.tuning_seeds)}: {seed} is among seeds")

    def tuned(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """Each strength of each remedy on the validation images of the tuning seeds.

        Returns:
            A row a remedy × strength with the columns ``remedy``, ``strength``, ``worst`` (accuracy
            of the worst group in %, averaged over methods, budgets and seeds), ``accuracy`` (of
            everyone) and ``chosen``: the strength with the best worst group, of equals the one with
            the better accuracy. Without tuning seeds, the middle strength is chosen.
        """
        grid = [Remedy(name, value) for name in self.remedies for value in REMEDIES[name]]
        about = {"remedy": [c.name for c in grid], "strength": [c.strength for c in grid]}
        table = pd.DataFrame(about)
        if self.tuning_seeds:
            tally = self.tally(grid, folder, store, seeds=self.tuning_seeds, split="validation")
            found = tally[tally["budget"] < 1].groupby("remedy")
            scores = found.apply(_score, include_groups=False).reindex([str(c) for c in grid])
            table[["worst", "accuracy"]] = scores.to_numpy()
            order = table.sort_values(["worst", "accuracy"], ascending=False)
            best = order.groupby("remedy", sort=False).head(1).index
        else:
            table[["worst", "accuracy"]] = np.nan
            best = table.groupby("remedy", sort=False).nth(1).index
        return table.assign(chosen=table.index.isin(best))

    def chosen(self, tuned: pd.DataFrame) -> list[Remedy]:
        """No remedy, and each remedy at its chosen strength."""
        rows = tuned[tuned["chosen"]]
        pairs = zip(rows["remedy"], rows["strength"], strict=True)
        return [PLAIN, *(Remedy(name, strength) for name, strength in pairs)]

    def costs(
        self, cures: Sequence[Remedy], folder: Path | None = None, store: Store | None = None,
        rounds: int = 3,
    ) -> pd.DataFrame:  # fmt: skip
        """Time of an epoch of each remedy as a multiple of plain finetuning's, by remedy.

        They are timed in turn, ``rounds`` times after one that does not count, and the medians
        compared. Not in it is what a remedy does once: JTT trains a first network as long, SWA
        goes through the images once more. On another device they are timed anew.
        """
        pipes = [pipe for cure in cures for pipe in self._pipelines([cure], folder, store)[:1]]
        (spent,) = self._in_turn(pipes[:1], partial(_costs, pipes=pipes, rounds=rounds))
        times = spent.groupby("remedy", sort=False)["seconds"].median()
        return pd.DataFrame({"epoch": times / times[str(PLAIN)]}).rename_axis(index=None)


def _whole(pipe: Trained) -> pd.DataFrame:
    """Mean loss of each group over the training set, at all budgets of a run."""
    about = {"groups": pipe.run.choice.groups}
    tables = [
        stored("losses", VERSIONS["losses"], pipe, units, about, _losses).assign(
            **_about(pipe, units)
        )
        for units in pipe.reached
    ]
    return pd.concat(tables, ignore_index=True)


def _losses(pipe: Trained, units: int, _: Path) -> pd.DataFrame:
    """Mean of what plain training minimises, by group, over the training set in evaluation mode."""
    taught = pipe.taught
    z = training.logits(pipe.net(units), taught)
    every = torch.arange(len(taught), device=z.device)
    batch = Batch(z, taught.labels, taught.groups, every, taught.teacher[0])
    each, groups = Distillation(**pipe.recipe.loss).each(batch).cpu(), taught.groups.cpu()
    losses = (torch.bincount(groups, each.double()) / torch.bincount(groups)).tolist()
    return pd.DataFrame({"group": pipe.splits.train.group_names, "whole": losses})


def _costs(first: Trained, pipes: Sequence[Trained], rounds: int) -> pd.DataFrame:
    """Seconds of an epoch, a row a remedy × round, of the first of ``pipes`` and the others."""
    units, device = min(first.reached), training.device_name(first.device)

    def measure(*_: Any) -> pd.DataFrame:
        rows = [
            {"remedy": str(pipe.run.remedy), "round": round_, "seconds": _epoch(pipe, units)}
            for round_ in range(rounds + 1)
            for pipe in pipes
        ]
        return pd.DataFrame(rows).query("round > 0")

    # Timed together, so known together; and no key names the device, which a reader does not have.
    about = {"with": [pipe.identity(units) for pipe in pipes[1:]], "rounds": rounds}
    return stored(
        "costs", VERSIONS["costs"], first, units, about, measure,
        holds=lambda facts: facts["device"] == device,
    )  # fmt: skip


def _epoch(pipe: Trained, units: int) -> float:
    """Seconds that one epoch of the last training takes."""
    net, plan = pipe.fresh(units), pipe.recipe
    objective = pipe.objective(net, units)
    optimizer = training.sgd(net, plan.lr, 0.0, plan.nesterov)
    start = time.perf_counter()
    training.fit(net, pipe.taught, objective, optimizer, epochs=1, batch=plan.batch, seed=(0,))
    return time.perf_counter() - start


def _score(tally: pd.DataFrame) -> pd.Series:
    """Accuracy (%) of the worst group and of everyone, averaged over methods, budgets and seeds."""
    keys = ["method", "budget", "seed"]
    counts = tally[tally["n"] > 0].set_index(keys)
    worst = (counts["correct"] / counts["n"]).groupby(level=keys).min()
    sums = counts[["correct", "n"]].groupby(level=keys).sum()
    return pd.Series(
        {"worst": 100 * worst.mean(), "all": 100 * (sums["correct"] / sums["n"]).mean()}
    )
