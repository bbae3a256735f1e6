"""From parameters to a table: a study is a grid of runs, and a run is a chain of stored stages.

    teacher → one SNL descent, a snapshot a budget → finetune → predictions

Every stage is stored under a key made of its own settings, its version below, and its parent's key,
so that a study computes only what is not there yet. A change of what a stage computes needs a new
version.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from relufair import config, data, groups, masks, models, training
from relufair.config import Schedule
from relufair.data import Choice, Splits
from relufair.linearize import snl
from relufair.objectives import CrossEntropy, Distillation
from relufair.sources import data_folder
from relufair.store import Artifact, Store, key_of
from relufair.theory import DecisionBoundary
from relufair.training import Samples

VERSIONS = {"teacher": 1, "descent": 1, "snapshot": 1, "finetune": 1, "predictions": 1}


@dataclass(frozen=True)
class Run:
    """One seed of a study: a teacher and its linearized students at all budgets.

    Attributes:
        choice: the data, resolved.
        arch, width: the network.
        method: how it is linearized.
        budgets: shares of the ReLUs to keep, below 1.
        schedule: how the stages train.
        seed: of the split, the initial weights and the batches.
    """

    choice: Choice
    arch: str
    width: int
    method: str
    budgets: tuple[float, ...]
    schedule: Schedule
    seed: int


class Pipeline:
    """Computes the stages of one run, or takes them from the store."""

    def __init__(self, run: Run, store: Store, folder: Path | None):
        self.run, self.store, self.folder = run, store, folder

    @cached_property
    def splits(self) -> Splits:
        """The data."""
        return data.load(self.run.choice, self.run.seed, self.folder, self.store)

    @cached_property
    def device(self) -> torch.device:
        """Where the networks are trained."""
        return training.pick_device()

    @cached_property
    def samples(self) -> Samples:
        """The training set on the device."""
        return Samples.put(self.splits.train, self.splits.train, self.device)

    def network(self, masked: bool) -> nn.Module:
        """The untrained network, with or without masks."""
        channels, *sides = self.splits.train.images.shape[1:]
        net = models.build(
            self.run.arch, classes=len(self.splits.train.classes), channels=channels,
            width=self.run.width, seed=self.run.seed,
        )  # fmt: skip
        net = masks.masked(net, (channels, *sides)) if masked else net
        return net.to(self.device)

    @cached_property
    def units(self) -> dict[int, float]:
        """The budgets by their number of ReLUs."""
        relus = masks.total(self.network(masked=True))
        return {masks.units(budget, relus): budget for budget in self.run.budgets}

    # The stages, each as its configuration (its identity) and its artifact

    @cached_property
    def teacher_config(self) -> dict[str, Any]:
        """What the teacher depends on. The groups are not among it."""
        choice = self.run.choice
        return {
            "data": self.splits.digest, "dataset": choice.dataset, "target": choice.target,
            "arch": self.run.arch, "width": self.run.width, "seed": self.run.seed,
        } | self.run.schedule.part("teacher")  # fmt: skip

    @cached_property
    def descent_config(self) -> dict[str, Any]:
        """What the descent depends on. The budgets are not among it, since they only stop it."""
        parent = key_of("teacher", VERSIONS["teacher"], self.teacher_config)
        return {"teacher": parent} | self.run.schedule.part("search")

    def snapshot_config(self, units: int) -> dict[str, Any]:
        """What the snapshot with ``units`` ReLUs depends on."""
        descent = key_of("descent", VERSIONS["descent"], self.descent_config)
        return {"descent": descent, "units": units}

    def finetune_config(self, units: int) -> dict[str, Any]:
        """What the finetuned network with ``units`` ReLUs depends on."""
        parent = key_of("snapshot", VERSIONS["snapshot"], self.snapshot_config(units))
        part = self.run.schedule.part("finetune")
        return {"snapshot": parent, "objective": "distillation"} | part

    def _fetch(self, kind: str, config: dict, compute: Callable[[Path], Artifact]) -> Artifact:
        return self.store.fetch(kind, VERSIONS[kind], config, compute)

    def teacher(self) -> Artifact:
        """The network with all its ReLUs, trained with cross-entropy."""
        return self._fetch("teacher", self.teacher_config, self._train_teacher)

    def _train_teacher(self, work: Path) -> Artifact:
        plan, net = self.run.schedule, self.network(masked=False)
        log = training.fit(
            net, self.samples, CrossEntropy(),
            training.sgd(net, plan.teacher_lr, plan.weight_decay),
            epochs=plan.teacher_epochs, batch=plan.teacher_batch, seed=(self.run.seed, 0),
            decay=training.step_decay, flip=plan.flip, checkpoint=work / "checkpoint",
            label=f"seed {self.run.seed}: teacher",
        )  # fmt: skip
        return self._pack(net, log)

    @cached_property
    def teacher_net(self) -> nn.Module:
        """The teacher as a masked network with all masks at 1, which is the same function."""
        return self._unpack(self.teacher(), self.network(masked=True))

    @cached_property
    def taught(self) -> Samples:
        """The training set with the teacher's logits."""
        sides = (False, True) if self.run.schedule.flip else (False,)
        taught = [training.logits(self.teacher_net, self.samples, mirrored=m) for m in sides]
        return Samples(**vars(self.samples) | {"teacher": torch.stack(taught)})

    @cached_property
    def snapshots(self) -> dict[int, Artifact]:
        """The networks at which the descent crosses each budget, by units; not yet finetuned."""
        with self.store.lock("descent", VERSIONS["descent"], self.descent_config):
            found = {units: self._snapshot(units) for units in self.units}
            if not all(found.values()):
                self._descend({u: s.facts["step"] for u, s in found.items() if s})
                found = {units: self._snapshot(units) for units in self.units}
        snl.check_apart({units: snapshot.facts["step"] for units, snapshot in found.items()})
        return found

    def _snapshot(self, units: int) -> Artifact | None:
        if not units:  # fully linear: nothing to choose, so nothing to search
            off = {
                f"{n}.alpha": np.zeros(s.alpha.shape)
                for n, s in masks.sites(self.teacher_net).items()
            }
            facts = {"units": 0, "counted": 0, "step": 0, "epoch": 0}
            return Artifact(self.teacher().arrays | off, {}, facts)
        return self.store.get("snapshot", VERSIONS["snapshot"], self.snapshot_config(units))

    def _descend(self, crossings: dict[int, int]) -> None:
        plan, net = self.run.schedule, copy.deepcopy(self.teacher_net)
        missing = [units for units in self.units if units not in crossings]

        def keep(units: int, kept: dict[str, torch.Tensor], count: int, step: int) -> None:
            arrays = _arrays(net) | {f"{site}.alpha": k.cpu().numpy() for site, k in kept.items()}
            facts = {"units": units, "counted": count, "step": step, "epoch": descent.epochs + 1}
            config = self.snapshot_config(units)
            self.store.put("snapshot", VERSIONS["snapshot"], config, Artifact(arrays, {}, facts))

        descent = snl.Descent(
            net, missing, keep, crossings=crossings, temperature=plan.temperature,
            lasso=plan.lasso, growth=plan.lasso_growth, rule=plan.growth_rule,
            threshold=plan.threshold,
        )  # fmt: skip
        # The checkpoint outlives the descent: lower budgets, asked for later, go on from there.
        work = self.store.workplace("descent", VERSIONS["descent"], self.descent_config)
        checkpoint = work / "checkpoint"
        if checkpoint.exists() and max(missing) >= _reached(checkpoint):
            checkpoint.unlink()
        log = training.fit(
            net, self.taught, descent, training.adam(net, plan.search_lr, plan.masks_lr),
            epochs=plan.search_max_epochs, batch=plan.search_batch, seed=(self.run.seed, 1),
            flip=plan.flip, checkpoint=checkpoint, label=f"seed {self.run.seed}: SNL search",
        )  # fmt: skip
        if descent.pending:
            raise RuntimeError(
                f"budgets={[self.units[u] for u in descent.pending]}: not reached in "
                f"{len(log)} epochs, {descent.reached} of {masks.total(net)} ReLUs are left. Raise "
                "search_max_epochs, lasso, lasso_growth or masks_lr"
            )

    def finetuned(self, units: int) -> Artifact:
        """The linearized network: its masks frozen, its weights finetuned."""
        return self._fetch("finetune", self.finetune_config(units), partial(self._finetune, units))

    def _finetune(self, units: int, work: Path) -> Artifact:
        snapshot = self.snapshots[units]
        plan, net = self.run.schedule, self.linearized(snapshot)
        log = training.fit(
            net, self.taught, Distillation(plan.temperature),
            training.sgd(net, plan.finetune_lr, plan.weight_decay),
            epochs=plan.finetune_epochs, batch=plan.finetune_batch, seed=(self.run.seed, 2),
            decay=training.cosine, flip=plan.flip, checkpoint=work / "checkpoint",
            label=f"seed {self.run.seed}: finetune at {self.units[units]:.4g}",
        )  # fmt: skip
        crossing = {"step": snapshot.facts["step"], "counted": snapshot.facts["counted"]}
        return self._pack(net, log, crossing)

    def linearized(self, artifact: Artifact) -> nn.Module:
        """The network of a snapshot or finetune, with its masks frozen."""
        net = self.network(masked=True)
        kept = {
            site: torch.from_numpy(artifact.arrays[f"{site}.alpha"] > 0)
            for site in masks.sites(net)
        }
        return self._unpack(artifact, masks.freeze(net, kept))

    def predictions(self, units: int | None) -> Artifact:
        """Per image of validation and test: what the network with ``units`` ReLUs says.

        ``None`` stands for the teacher. The table has the columns ``split``, ``row`` (in the
        source's table), ``label``, ``prediction`` and ``margin`` (probability of the first minus
        that of the second class).
        """
        kind = "teacher" if units is None else "finetune"
        own = self.teacher_config if units is None else self.finetune_config(units)

        def compute(_: Path) -> Artifact:
            if units is None:
                return Artifact(
                    tables={"images": self._predict(self.teacher_net)}, facts=self._facts()
                )
            found = self.finetuned(units)
            facts = self._facts() | {name: found.facts[name] for name in ("step", "counted")}
            return Artifact(tables={"images": self._predict(self.linearized(found))}, facts=facts)

        return self._fetch("predictions", {kind: key_of(kind, VERSIONS[kind], own)}, compute)

    def _predict(self, net: nn.Module) -> pd.DataFrame:
        parts = []
        for name in ("validation", "test"):
            part = getattr(self.splits, name)
            samples = Samples.put(part, self.splits.train, self.device)
            top = training.logits(net, samples).softmax(1).topk(2, dim=1)
            said = {
                "prediction": top.indices[:, 0].cpu().numpy(),
                "margin": (top.values[:, 0] - top.values[:, 1]).cpu().numpy(),
            }
            truth = {"split": name, "row": part.rows, "label": part.labels}
            parts.append(pd.DataFrame(truth | said))
        return pd.concat(parts, ignore_index=True)

    def _facts(self) -> dict[str, Any]:
        return {"device": training.device_name(self.device), "torch": torch.__version__}

    def _pack(self, net: nn.Module, log: pd.DataFrame, facts: dict | None = None) -> Artifact:
        return Artifact(_arrays(net), {"log": log}, self._facts() | (facts or {}))

    def _unpack(self, artifact: Artifact, net: nn.Module) -> nn.Module:
        state = {name: torch.from_numpy(array) for name, array in artifact.arrays.items()}
        ones = {
            k: v for k, v in net.state_dict().items() if k.endswith(".alpha") and k not in state
        }
        net.load_state_dict(state | ones)
        return net.to(self.device)

    # What a study asks for

    def measure(self) -> pd.DataFrame:
        """The tally of this run on the test set, see :mod:`relufair.groups`."""
        run, test, sizes = self.run, self.splits.test, self.splits.train.sizes()
        found = {None: self.predictions(None)} | {u: self.predictions(u) for u in self.units}
        snl.check_apart({u: a.facts["step"] for u, a in found.items() if u})
        right = {units: _right(artifact.tables["images"]) for units, artifact in found.items()}
        relus = masks.total(self.network(masked=True))
        rows = [
            groups.tally(right[units], right[None], test.groups, test.group_names).assign(
                budget=self.units.get(units, 1.0),
                relus=relus if units is None else units,
                device=artifact.facts["device"],
                date=artifact.facts["written"][:10],
            )
            for units, artifact in found.items()
        ]
        table = pd.concat(rows, ignore_index=True)
        table.insert(1, "train_n", table["group"].map(sizes))
        about = {
            "dataset": run.choice.dataset, "target": run.choice.target,
            "groups": run.choice.groups, "arch": run.arch, "width": run.width,
            "method": run.method, "seed": run.seed, "data": self.splits.digest[:12],
        }  # fmt: skip
        return table.assign(**about)[[*about, *table.columns]]


def _arrays(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}


def _reached(checkpoint: Path) -> float:
    """The lowest count that this descent has seen; 0, so that it starts over, if damaged."""
    state = training.read_checkpoint(checkpoint)
    return state["objective"]["reached"] if state else 0.0


def _right(images: pd.DataFrame) -> np.ndarray:
    test = images[images["split"] == "test"]
    return (test["prediction"] == test["label"]).to_numpy()


@dataclass(frozen=True)
class AccuracyDrops:
    """The study of Section 5.1: accuracy by group while the ReLUs are taken away (Fig. 1, 5, 6).

    The parameters are those of the notebook ``03_accuracy_drops``, where each is explained.

    Raises:
        ValueError: for a value that cannot be, naming the parameter and what is allowed.
    """

    dataset: str
    target: str
    groups: str
    keep: str
    keep_in_test: bool
    size: int
    arch: str
    width: int
    method: str
    budgets: Sequence[float]
    seeds: Sequence[int]
    schedule: str
    training: dict[str, Any]
    workers: int

    def __post_init__(self) -> None:
        config.one_of("arch", self.arch, config.ARCHITECTURES)
        config.one_of("method", self.method, config.METHODS)
        config.distinct("budgets", self.budgets)
        config.distinct("seeds", self.seeds)
        for name in ("width", "workers"):
            config.whole(name, getattr(self, name), 1)
        for seed in self.seeds:
            config.whole("seeds", seed, 0, config.LARGEST_SEED)
        config.schedule(self.schedule, self.training)
        net = models.build(self.arch, classes=2, channels=1, width=self.width)
        relus = masks.total(masks.masked(net, (1, self.choice.size, self.choice.size)))
        kept = [masks.units(budget, relus) for budget in self.budgets]
        if len(set(kept)) < len(kept):
            raise ValueError(
                f"budgets={list(self.budgets)}: two of them keep as many ReLUs: {kept}"
            )

    @property
    def choice(self) -> Choice:
        """The data, resolved."""
        names = [f.name for f in fields(Choice)]
        return Choice(**{name: getattr(self, name) for name in names}).resolve()

    def check_data(self, folder: Path | None) -> None:
        """Raise an error unless the data set is there and has these attributes."""
        self.choice.check(folder)

    def runs(self) -> list[Run]:
        """One run a seed."""
        budgets = tuple(sorted((b for b in self.budgets if b < 1), reverse=True))
        plan = config.schedule(self.schedule, self.training)
        return [
            Run(self.choice, self.arch, self.width, self.method, budgets, plan, seed)
            for seed in self.seeds
        ]

    def run(
        self, folder: Path | None = None, store: Store | None = None, pool: Executor | None = None
    ) -> pd.DataFrame:
        """The tally of all runs (columns in :mod:`relufair.groups`), computing what is missing.

        Args:
            folder: the data folder; by default ``RELUFAIR_DATA``.
            store: by default the project's.
            pool: where the runs execute; by default here, or in ``workers`` processes.
        """
        store, folder = store or Store(), data_folder(folder)
        self.check_data(folder)
        if pool is None and self.workers > 1:
            with processes(self.workers) as own:
                return self.run(folder, store, own)
        spread: Callable = pool.map if pool else map
        measured = spread(partial(measure, store=store, folder=folder), self.runs())
        tier = f"{self.schedule}, changed" if self.training else self.schedule
        table = pd.concat(measured, ignore_index=True)
        return table.assign(tier=tier, what=self.words(), study=self.identity())

    def words(self) -> str:
        """Data, network and method, as they stand under a figure."""
        choice = self.choice
        kept = "" if choice.keep == "paper" else f", keep {choice.keep}"
        return (
            f"{choice.dataset}, {choice.target} by {choice.groups}{kept} · {self.arch}, width "
            f"{self.width} · {self.method.upper()}"
        )

    def identity(self) -> str:
        """A digest of everything but seeds, budgets and the number of processes."""
        first = asdict(self.runs()[0]) | {"seed": 0, "budgets": []}
        return key_of("study", 1, first)[:12]


def measure(run: Run, store: Store, folder: Path | None) -> pd.DataFrame:
    """The tally of one run, in any process."""
    return Pipeline(run, store, folder).measure()


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of ``workers`` processes that share the cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    )


STUDIES = {"decision_boundary": DecisionBoundary, "accuracy_drops": AccuracyDrops}
