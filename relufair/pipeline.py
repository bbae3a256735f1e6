"""The stages of a run, each stored under a key of everything it depends on.

    teacher → snapshots, one a budget → finetune → predictions

A key is made of the stage's own settings, its version below, and its parent's key, so that only what
is not there yet is computed. A change of what a stage computes needs a new version. How the snapshots
come about is the method's matter: SNL's are here, the others' in :mod:`relufair.methods`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import nn

from relufair import data, groups, masks, models, remedies, tracing, training
from relufair.config import PLAIN, Remedy, Schedule
from relufair.data import Choice, Splits
from relufair.linearize import snl
from relufair.objectives import CrossEntropy, Objective
from relufair.store import Artifact, Store, key_of
from relufair.training import Samples

VERSIONS = {
    "teacher": 1, "descent": 1, "snapshot": 1, "finetune": 1, "student": 1, "narrow": 1,
    "predictions": 1,
}  # fmt: skip


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
        remedy: what the last training minimises.
    """

    choice: Choice
    arch: str
    width: int
    method: str
    budgets: tuple[float, ...]
    schedule: Schedule
    seed: int
    remedy: Remedy = PLAIN

    @classmethod
    def read(cls, about: dict[str, Any], budgets: Iterable[float]) -> Self:
        """The run that the fact ``run`` of an artifact tells of, at these budgets."""
        parts = {"choice": Choice, "schedule": Schedule, "remedy": Remedy}
        own = {f.name: about[f.name] for f in fields(cls)}
        own |= {name: part(**about[name]) for name, part in parts.items()}
        return cls(**own | {"budgets": tuple(budgets)})


@dataclass(frozen=True)
class Recipe:
    """How the last training of a linearized network goes: SGD, down to zero along a cosine.

    Attributes:
        lr, epochs, batch, nesterov: of SGD.
        loss: the arguments of :class:`relufair.objectives.Distillation`.
    """

    lr: float
    epochs: int
    batch: int
    nesterov: bool
    loss: dict[str, float]


class Pipeline(ABC):
    """Computes the stages of one run, or takes them from the store.

    Attributes:
        final: the stage whose networks are measured.
    """

    final: str

    def __init__(self, run: Run, store: Store, folder: Path | None):
        self.run, self.store, self.folder = run, store, folder

    @abstractmethod
    def linear_config(self, units: int) -> dict[str, Any]:
        """What the network that the method makes of the budget ``units`` depends on."""

    @abstractmethod
    def linear(self, units: int) -> Artifact:
        """That network, trained."""

    @cached_property
    def reached(self) -> dict[int, int]:
        """How many ReLUs the method keeps, by budget in units; budgets out of its reach are not in."""
        return {units: units for units in self.units}

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
        return self.part("train")

    def part(self, name: str) -> Samples:
        """``train``, ``validation`` or ``test`` on the device."""
        return Samples.put(getattr(self.splits, name), self.splits.train, self.device)

    def network(self, masked: bool, width: int | None = None) -> nn.Module:
        """The untrained network, with or without masks; of the run's width if no other is given."""
        shape, classes = self.splits.train.shape, len(self.splits.train.classes)
        width = width or self.run.width
        net = _untrained(self.run.arch, classes, shape, width, self.run.seed, masked)
        return copy.deepcopy(net).to(self.device)

    @cached_property
    def units(self) -> dict[int, float]:
        """The budgets by their number of ReLUs."""
        return {masks.units(budget, self.relus): budget for budget in self.run.budgets}

    @cached_property
    def relus(self) -> int:
        """How many ReLUs the network has."""
        return masks.total(self.network(masked=True))

    # The stages, each as its configuration (its identity) and its artifact

    @cached_property
    def teacher_config(self) -> dict[str, Any]:
        """What the teacher depends on. The groups are not among it."""
        choice = self.run.choice
        return {
            "data": self.splits.digest, "dataset": choice.dataset, "target": choice.target,
            "arch": self.run.arch, "width": self.run.width, "seed": self.run.seed,
        } | self.run.schedule.part("teacher")  # fmt: skip

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
        return self._pack(None, net, log)

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

    def linearized(self, artifact: Artifact) -> nn.Module:
        """The network of an artifact, with its masks frozen."""
        net = self.network(masked=True, width=artifact.facts.get("width"))
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

        def compute(_: Path) -> Artifact:
            facts = {} if units is None else self.linear(units).facts
            facts = {k: v for k, v in facts.items() if k in FACTS}
            return Artifact(
                tables={"images": self._predict(self.net(units))}, facts=self.facts(units) | facts
            )

        return self._fetch("predictions", self.identity(units), compute)

    def bases(self, found: dict[int | None, Artifact]) -> dict[int | None, Artifact]:
        """The predictions with which the ``found`` ones are compared, by units.

        The teacher's; with a remedy, those of the network of the same ReLUs without it.
        """
        return dict.fromkeys(found, found[None])

    def net(self, units: int | None) -> nn.Module:
        """The trained network with the budget ``units``; None stands for the teacher."""
        return self.teacher_net if units is None else self.linearized(self.linear(units))

    def identity(self, units: int | None) -> dict[str, str]:
        """The key of that network, by its stage."""
        kind = "teacher" if units is None else self.final
        own = self.teacher_config if units is None else self.linear_config(units)
        return {kind: key_of(kind, VERSIONS[kind], own)}

    def key(self, units: int | None) -> str:
        """The key of the predictions of that network."""
        return key_of("predictions", VERSIONS["predictions"], self.identity(units))

    def _predict(self, net: nn.Module) -> pd.DataFrame:
        parts = []
        for name in ("validation", "test"):
            part, samples = getattr(self.splits, name), self.part(name)
            top = training.logits(net, samples).softmax(1).topk(2, dim=1)
            said = {
                "prediction": top.indices[:, 0].cpu().numpy(),
                "margin": (top.values[:, 0] - top.values[:, 1]).cpu().numpy(),
            }
            truth = {"split": name, "row": part.rows, "label": part.labels}
            parts.append(pd.DataFrame(truth | said))
        return pd.concat(parts, ignore_index=True)

    def facts(self, units: int | None) -> dict[str, Any]:
        """What is kept beside every result on the network ``units``: device, version, and its run."""
        place = {"device": training.device_name(self.device), "torch": torch.__version__}
        return place | {"run": self.about(units)}

    def about(self, units: int | None) -> dict[str, Any]:
        """All that it takes to compute the network ``units`` again, see :meth:`Run.read`."""
        run = self.run if units is not None else replace(self.run, remedy=PLAIN)
        network = {"units": units, "budget": self.units.get(units, 1.0)}
        return asdict(run) | network | {"data": self.splits.digest}

    def _pack(
        self, units: int | None, net: nn.Module, log: pd.DataFrame, facts: dict | None = None
    ) -> Artifact:
        return Artifact(arrays(net), {"log": log}, self.facts(units) | (facts or {}))

    def _unpack(self, artifact: Artifact, net: nn.Module) -> nn.Module:
        state = {name: torch.from_numpy(array) for name, array in artifact.arrays.items()}
        ones = {
            k: v for k, v in net.state_dict().items() if k.endswith(".alpha") and k not in state
        }
        net.load_state_dict(state | ones)
        return net.to(self.device)

    # What a study asks for

    def measure(self, split: str = "test") -> pd.DataFrame:
        """The tally of this run, see :mod:`relufair.groups`, on ``test`` or ``validation``."""
        run, part, sizes = self.run, getattr(self.splits, split), self.splits.train.sizes()
        relus = {None: self.relus} | self.reached
        found = {units: self.predictions(units) for units in relus}
        bases = self.bases(found)
        rows = [
            groups.tally(
                _right(artifact, split), _right(bases[units], split), part.groups,
                part.group_names,
            ).assign(
                budget=self.units.get(units, 1.0),
                relus=relus[units],
                device=artifact.facts["device"],
                date=artifact.facts["written"][:10],
            )
            for units, artifact in found.items()
        ]  # fmt: skip
        table = pd.concat(rows, ignore_index=True)
        table.insert(1, "train_n", table["group"].map(sizes))
        about = {
            "dataset": run.choice.dataset, "target": run.choice.target,
            "groups": run.choice.groups, "arch": run.arch, "width": run.width,
            "method": run.method, "remedy": str(run.remedy), "seed": run.seed,
            "data": self.splits.digest[:12],
        }  # fmt: skip
        return table.assign(**about)[[*about, *table.columns]]


@lru_cache(maxsize=4)
def _untrained(
    arch: str, classes: int, shape: tuple[int, ...], width: int, seed: int, masked: bool
) -> nn.Module:
    """The network, not to be changed: copying it takes a tenth of the time of tracing it."""
    net = models.build(arch, classes=classes, channels=shape[0], width=width, seed=seed)
    return tracing.masked(net, shape) if masked else net


def arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """The parameters and buffers of ``net`` by name."""
    return {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}


def stored(
    kind: str,
    version: int,
    pipe: Pipeline,
    units: int | None,
    about: dict[str, Any],
    measure: Callable[[Pipeline, int | None, Path], pd.DataFrame],
    holds: Callable[[dict[str, Any]], bool] = lambda facts: True,
) -> pd.DataFrame:
    """What ``measure`` finds of one network, from the store if it is there.

    Args:
        kind, version: of the artifact.
        pipe, units: the network, which ``measure`` gets with a folder for unfinished work.
        about: what the result depends on beside it.
        holds: see :meth:`relufair.store.Store.fetch`.
    """

    def compute(work: Path) -> Artifact:
        return Artifact(tables={"found": measure(pipe, units, work)}, facts=pipe.facts(units))

    config = {"of": pipe.identity(units)} | about
    return pipe.store.fetch(kind, version, config, compute, holds).tables["found"]


SEEDS = {"finetune": 2, "student": 3}  # of the batches; 0 is the teacher's, 1 the search's
FACTS = ("step", "counted", "code", "width")  # of a network, worth a place beside its predictions


def _right(artifact: Artifact, split: str) -> np.ndarray:
    images = artifact.tables["images"].query("split == @split")
    return (images["prediction"] == images["label"]).to_numpy()


class Trained(Pipeline):
    """A method whose linearized network gets a last training, where a remedy may help."""

    @cached_property
    def plain(self) -> Self:
        """The same run without a remedy."""
        own = type(self)(replace(self.run, remedy=PLAIN), self.store, self.folder)
        own.splits = self.splits  # a remedy changes no data: they are read once for both
        return own

    def remedy_config(self, units: int) -> dict[str, Any]:
        """What the remedy adds to the identity of the network with ``units`` ReLUs."""
        remedy = self.run.remedy
        if remedy == PLAIN:
            return {}
        about = asdict(remedy) | {"groups": self.run.choice.groups}
        return about | (self.plain.identity(units) if remedy.name == "jtt" else {})

    @abstractmethod
    def fresh(self, units: int) -> nn.Module:
        """The network with ``units`` ReLUs before the last training, its masks frozen."""

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """How the last training goes."""

    def objective(self, net: nn.Module, units: int) -> Objective:
        """What the last training of ``net`` with ``units`` ReLUs minimises."""
        remedy, train = self.run.remedy, self.splits.train
        sizes = len(train.classes), len(train.group_names)
        found = remedies.objective(
            remedy, self.samples, *sizes, lambda: self.plain.net(units), **self.recipe.loss
        )
        if remedy.name == "swa":
            return remedies.Averaging(found, net, remedy.strength, self.recipe.epochs)
        return found

    def train_last(self, units: int, stage: str, work: Path) -> tuple[nn.Module, pd.DataFrame]:
        """Train a fresh network with the remedy; it and its log.

        Args:
            units: its number of ReLUs.
            stage: name on the progress bar.
            work: folder of the checkpoint.
        """
        run, plan, net = self.run, self.recipe, self.fresh(units)
        objective = self.objective(net, units)
        named = "" if run.remedy == PLAIN else f", {run.remedy}"
        log = training.fit(
            net, self.taught, objective,
            training.sgd(net, plan.lr, run.schedule.weight_decay, plan.nesterov),
            epochs=plan.epochs, batch=plan.batch, seed=(run.seed, SEEDS[self.final]),
            decay=training.constant if run.remedy.name == "swa" else training.cosine,
            flip=run.schedule.flip, checkpoint=work / "checkpoint",
            label=f"seed {run.seed}: {stage}{named}",
        )  # fmt: skip
        if isinstance(objective, remedies.Averaging):
            objective.finish(self.samples, plan.batch)
        return net, log

    def bases(self, found: dict[int | None, Artifact]) -> dict[int | None, Artifact]:
        plain = super().bases(found)
        if self.run.remedy == PLAIN:
            return plain
        return plain | {
            units: self.plain.predictions(units) for units in found if units is not None
        }


class Finetuned(Trained):
    """A method that takes a snapshot of the network for each budget and finetunes it."""

    final = "finetune"

    @abstractmethod
    def snapshot_config(self, units: int) -> dict[str, Any]:
        """What the snapshot with ``units`` ReLUs depends on."""

    @abstractmethod
    def snapshot(self, units: int) -> Artifact:
        """The network with ``units`` ReLUs before its finetune; ``step`` is among its facts."""

    def linear_config(self, units: int) -> dict[str, Any]:
        parent = key_of("snapshot", VERSIONS["snapshot"], self.snapshot_config(units))
        part = self.run.schedule.part("finetune")
        return {"snapshot": parent, "objective": "distillation"} | part | self.remedy_config(units)

    def linear(self, units: int) -> Artifact:
        """The linearized network: its masks frozen, its weights finetuned."""
        return self._fetch("finetune", self.linear_config(units), partial(self._finetune, units))

    def _finetune(self, units: int, work: Path) -> Artifact:
        net, log = self.train_last(units, f"finetune at {self.units[units]:.4g}", work)
        snapshot = self.snapshot(units)
        crossing = {"step": snapshot.facts["step"], "counted": snapshot.facts["counted"]}
        return self._pack(units, net, log, crossing)

    def fresh(self, units: int) -> nn.Module:
        return self.linearized(self.snapshot(units))

    @property
    def recipe(self) -> Recipe:
        plan = self.run.schedule
        loss = {"temperature": plan.temperature}
        return Recipe(plan.finetune_lr, plan.finetune_epochs, plan.finetune_batch, False, loss)

    def from_teacher(self, kept: dict[str, torch.Tensor]) -> Artifact:
        """A snapshot with the teacher's weights and the masks ``kept``, by site."""
        alphas = {f"{site}.alpha": k.cpu().numpy().astype(np.float32) for site, k in kept.items()}
        facts = {"units": int(sum(k.sum() for k in kept.values())), "step": 0}
        return Artifact(self.teacher().arrays | alphas, {}, facts | {"counted": facts["units"]})


class Snl(Finetuned):
    """SNL (:mod:`relufair.linearize.snl`): one descent passes through all budgets."""

    @cached_property
    def descent_config(self) -> dict[str, Any]:
        """What the descent depends on. The budgets are not among it, since they only stop it."""
        parent = key_of("teacher", VERSIONS["teacher"], self.teacher_config)
        return {"teacher": parent} | self.run.schedule.part("search")

    def snapshot_config(self, units: int) -> dict[str, Any]:
        descent = key_of("descent", VERSIONS["descent"], self.descent_config)
        return {"descent": descent, "units": units}

    def snapshot(self, units: int) -> Artifact:
        return self.snapshots[units]

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
            return self.from_teacher(masks.largest(self.teacher_net, 0))
        return self.store.get("snapshot", VERSIONS["snapshot"], self.snapshot_config(units))

    def _descend(self, crossings: dict[int, int]) -> None:
        plan, net = self.run.schedule, copy.deepcopy(self.teacher_net)
        missing = [units for units in self.units if units not in crossings]

        def keep(units: int, kept: dict[str, torch.Tensor], count: int, step: int) -> None:
            alphas = {f"{site}.alpha": k.cpu().numpy() for site, k in kept.items()}
            facts = {"units": units, "counted": count, "step": step, "epoch": descent.epochs + 1}
            config = self.snapshot_config(units)
            self.store.put(
                "snapshot", VERSIONS["snapshot"], config, Artifact(arrays(net) | alphas, {}, facts)
            )

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

    def measure(self, split: str = "test") -> pd.DataFrame:
        found = {units: self.predictions(units).facts["step"] for units in self.units if units}
        snl.check_apart(found)
        return super().measure(split)


def _reached(checkpoint: Path) -> float:
    """The lowest count that this descent has seen; 0, so that it starts over, if damaged."""
    state = training.read_checkpoint(checkpoint)
    return state["objective"]["reached"] if state else 0.0
