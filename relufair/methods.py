"""How a budget is met: SNL, DeepReDuce, and the controls that show what either's choice buys.

=================== ===============================================================================
``snl``             the ReLUs that SNL's search leaves (:mod:`relufair.linearize.snl`)
``deepreduce``      whole stages of the network, trained anew (:mod:`relufair.linearize.deepreduce`)
``random``          as many ReLUs, drawn at random, finetuned as SNL's
``smallest_effect`` as many, those whose removal changes the loss most to first order, likewise
``all_kept``        all ReLUs, trained on for as long as SNL's network of the budget
``narrower``        all ReLUs of a narrower network whose validation loss is nearest to SNL's
=================== ===============================================================================
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from relufair import masks, training
from relufair.linearize import controls, deepreduce
from relufair.objectives import Distillation
from relufair.pipeline import VERSIONS, Finetuned, Pipeline, Run, Snl, arrays
from relufair.store import Artifact, Store, key_of


class OnTeacher(Finetuned):
    """A control that chooses its masks on the teacher, without any training."""

    def snapshot_config(self, units: int) -> dict[str, Any]:
        parent = key_of("teacher", VERSIONS["teacher"], self.teacher_config)
        return {"teacher": parent, "method": self.run.method, "units": units}


class Random(OnTeacher):
    """Keeps ReLUs drawn at random."""

    def snapshot(self, units: int) -> Artifact:
        return self.from_teacher(controls.random(self.teacher_net, units, self.run.seed))


class SmallestEffect(OnTeacher):
    """Keeps the ReLUs whose removal would change the training loss most, to first order."""

    @cached_property
    def effects(self) -> dict[str, torch.Tensor]:
        """The effect of each unit on the training set, by site."""
        return controls.effects(self.teacher_net, self.samples)

    def snapshot(self, units: int) -> Artifact:
        return self.from_teacher(masks.top(self.effects, units))


class Milestones(Distillation):
    """Distillation that hands over at given steps and ends at the last of them."""

    def __init__(self, temperature: float, steps: set[int], reached: Any):
        super().__init__(temperature)
        self.at, self.reached, self.steps = steps, reached, 0

    def after_step(self) -> bool:
        self.steps += 1
        if self.steps in self.at:
            self.reached(self.steps)
        return self.steps >= max(self.at)

    def state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def restore(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class AllKept(Finetuned):
    """Keeps all ReLUs and trains as long as SNL: what the training does without linearization."""

    @cached_property
    def search(self) -> Snl:
        """The descent whose length is matched."""
        return Snl(replace(self.run, method="snl"), self.store, self.folder)

    @cached_property
    def reached(self) -> dict[int, int]:
        return dict.fromkeys(self.units, masks.total(self.network(masked=True)))

    def snapshot_config(self, units: int) -> dict[str, Any]:
        as_long_as = key_of("snapshot", VERSIONS["snapshot"], self.search.snapshot_config(units))
        return {"as_long_as": as_long_as}

    def snapshot(self, units: int) -> Artifact:
        return self.snapshots[units]

    @cached_property
    def snapshots(self) -> dict[int, Artifact]:
        """The networks after as many steps as the descent took to each budget, by units."""
        steps = {units: self.search.snapshot(units).facts["step"] for units in self.units}
        with self.store.lock("snapshot", VERSIONS["snapshot"], self.longer_config):
            missing = {s: u for u, s in steps.items() if s and not self._snapshot(u)}
            if missing:
                self._train(missing)
        return {units: self._snapshot(units) or self._untrained() for units in steps}

    @property
    def longer_config(self) -> dict[str, Any]:
        """What the training depends on; its length is not among it."""
        return self.search.descent_config | {"masks": "none"}

    def _snapshot(self, units: int) -> Artifact | None:
        return self.store.get("snapshot", VERSIONS["snapshot"], self.snapshot_config(units))

    def _untrained(self) -> Artifact:
        """The teacher: linearizing it fully takes no step of a search."""
        every = masks.total(self.teacher_net)
        return self.from_teacher(masks.largest(self.teacher_net, every))

    def _ones(self) -> dict[str, np.ndarray]:
        sites = masks.sites(self.teacher_net).items()
        return {f"{name}.alpha": np.ones(site.alpha.shape, np.float32) for name, site in sites}

    def _train(self, missing: dict[int, int]) -> None:
        plan, net = self.run.schedule, self._unpack(self.teacher(), self.network(masked=False))

        def keep(step: int) -> None:
            config, every = self.snapshot_config(missing[step]), masks.total(self.teacher_net)
            facts = {"units": every, "counted": every, "step": step}
            artifact = Artifact(arrays(net) | self._ones(), {}, facts)
            self.store.put("snapshot", VERSIONS["snapshot"], config, artifact)

        work = self.store.workplace("snapshot", VERSIONS["snapshot"], self.longer_config)
        checkpoint = work / f"checkpoint-{max(missing)}"
        training.fit(
            net, self.taught, Milestones(plan.temperature, set(missing), keep),
            training.adam(net, plan.search_lr, plan.masks_lr),
            epochs=plan.search_max_epochs, batch=plan.search_batch, seed=(self.run.seed, 1),
            flip=plan.flip, checkpoint=checkpoint, label=f"seed {self.run.seed}: all ReLUs, as long",
        )  # fmt: skip
        shutil.rmtree(work)


class DeepReDuce(Pipeline):
    """Culls stages and thins blocks; the student trains anew with the teacher's help."""

    final = "student"

    @cached_property
    def width(self) -> int:
        """The student's width."""
        return deepreduce.scaled(self.run.width, self.run.schedule.student_scale)

    @cached_property
    def counts(self) -> dict[deepreduce.Configuration, int]:
        """The configurations that there are, with their numbers of ReLUs."""
        channels, size, _ = self.splits.train.images.shape[1:]
        scales = [self.run.schedule.student_scale]
        return deepreduce.configurations(self.run.arch, self.run.width, channels, size, scales)

    @cached_property
    def chosen(self) -> dict[int, deepreduce.Configuration]:
        """The largest configuration not above each budget; budgets out of reach are not in."""
        chosen = {units: deepreduce.largest(self.counts, units) for units in self.units}
        return {units: found for units, found in chosen.items() if found is not None}

    @cached_property
    def reached(self) -> dict[int, int]:
        return {units: self.counts[found] for units, found in self.chosen.items()}

    def linear_config(self, units: int) -> dict[str, Any]:
        parent = key_of("teacher", VERSIONS["teacher"], self.teacher_config)
        return {"teacher": parent, "code": str(self.chosen[units])} | self.run.schedule.part(
            "student"
        )

    def linear(self, units: int) -> Artifact:
        """The student, trained from scratch on labels and the teacher's logits."""
        return self._fetch("student", self.linear_config(units), partial(self._train, units))

    def _train(self, units: int, work: Path) -> Artifact:
        plan, net = self.run.schedule, self.network(masked=True, width=self.width)
        masks.freeze(net, deepreduce.kept(net, self.chosen[units]))
        log = training.fit(
            net, self.taught, Distillation(1.0, hard=0.5, soft=0.5),
            training.sgd(net, plan.student_lr, plan.weight_decay, nesterov=True),
            epochs=plan.student_epochs, batch=plan.student_batch, seed=(self.run.seed, 3),
            decay=training.cosine, flip=plan.flip, checkpoint=work / "checkpoint",
            label=f"seed {self.run.seed}: DeepReDuce {self.chosen[units]}",
        )  # fmt: skip
        return self._pack(net, log, {"code": str(self.chosen[units]), "width": self.width})


class Narrower(Pipeline):
    """A narrower network with all its ReLUs: is it linearization, or any loss of capacity?"""

    final = "narrow"

    @cached_property
    def search(self) -> Snl:
        """The networks whose loss is matched."""
        return Snl(replace(self.run, method="snl"), self.store, self.folder)

    @cached_property
    def widths(self) -> list[int]:
        """The candidates, from a quarter to three quarters of the width."""
        whole = 4 if self.run.arch == "wideresnet22_8" else 1  # its stem has a quarter
        return sorted({self.run.width * k // 8 // whole * whole for k in (2, 4, 6)} - {0})

    @cached_property
    def reached(self) -> dict[int, int]:
        return {
            units: masks.total(self.network(masked=True, width=self.linear(units).facts["width"]))
            for units in self.units
        }

    def loss(self, net: nn.Module) -> float:
        """Mean cross-entropy on the validation set."""
        part = self.part("validation")
        return F.cross_entropy(training.logits(net, part), part.labels).item()

    def linear_config(self, units: int) -> dict[str, Any]:
        like = key_of("finetune", VERSIONS["finetune"], self.search.linear_config(units))
        return {"like": like, "widths": self.widths}

    def linear(self, units: int) -> Artifact:
        """The candidate with the validation loss nearest to that of SNL's network."""
        return self._fetch("narrow", self.linear_config(units), partial(self._choose, units))

    def _choose(self, units: int, _: Path) -> Artifact:
        aim = self.loss(self.search.linearized(self.search.linear(units)))
        off = {
            width: abs(self.loss(self._candidate(width).teacher_net) - aim) for width in self.widths
        }
        nearest = min(off, key=off.__getitem__)
        net = self._candidate(nearest).teacher_net
        return Artifact(arrays(net), {}, self.facts() | {"width": nearest, "apart": off[nearest]})

    def _candidate(self, width: int) -> Snl:
        return Snl(replace(self.run, method="snl", width=width), self.store, self.folder)


PIPELINES: dict[str, type[Pipeline]] = {
    "snl": Snl, "deepreduce": DeepReDuce, "random": Random, "smallest_effect": SmallestEffect,
    "all_kept": AllKept, "narrower": Narrower,
}  # fmt: skip


def pipeline(run: Run, store: Store, folder: Path | None) -> Pipeline:
    """The stages of ``run`` by its method."""
    return PIPELINES[run.method](run, store, folder)
