"""How a budget is met: SNL, DeepReDuce, and the controls that show what either's choice buys.

======================= ============================================================================
``snl``                 the ReLUs that SNL's search leaves (:mod:`relufair.linearize.snl`)
``deepreduce``          whole stages of the network, trained anew
                        (:mod:`relufair.linearize.deepreduce`)
``deepreduce_untaught`` the same, distilled from a network that was never trained
``random``              as many ReLUs, drawn at random, finetuned as SNL's
``smallest_effect``     as many, those whose removal changes the loss most to first order, likewise
``all_kept``            all ReLUs, trained on for as long as SNL's network of the budget
``narrower``            all ReLUs of a narrower network whose validation loss is nearest to SNL's
======================= ============================================================================
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from relufair import config, masks, training
from relufair.linearize import controls, deepreduce
from relufair.objectives import Distillation
from relufair.pipeline import VERSIONS, Finetuned, Pipeline, Recipe, Run, Snl, Trained, arrays
from relufair.store import Artifact, Store, key_of
from relufair.training import Samples


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


class Matched(Pipeline):
    """A control whose networks are like SNL's in one respect."""

    @cached_property
    def search(self) -> Snl:
        """The run that is matched."""
        return self.snl(self.run.width)

    def snl(self, width: int) -> Snl:
        """The same run with SNL on a network of ``width``."""
        return Snl(replace(self.run, method="snl", width=width), self.store, self.folder)


class AllKept(Matched, Finetuned):
    """Keeps all ReLUs and trains as long as SNL: what the training does without linearization."""

    @cached_property
    def reached(self) -> dict[int, int]:
        return dict.fromkeys(self.units, self.relus)

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

    def _train(self, missing: dict[int, int]) -> None:
        plan, net = self.run.schedule, self._unpack(self.teacher(), self.network(masked=False))
        start = self._untrained()

        def keep(step: int) -> None:
            config = self.snapshot_config(missing[step])
            # The weights are the new ones, the masks still those of the start.
            artifact = Artifact(start.arrays | arrays(net), {}, start.facts | {"step": step})
            self.store.put("snapshot", VERSIONS["snapshot"], config, artifact)

        work = self.store.workplace("snapshot", VERSIONS["snapshot"], self.longer_config)
        checkpoint = work / f"checkpoint-{max(missing)}"
        milestones = Milestones(plan.temperature, set(missing), keep)
        training.fit(
            net, self.taught, milestones,
            training.adam(net, plan.search_lr, plan.masks_lr),
            epochs=plan.search_max_epochs, batch=plan.search_batch, seed=(self.run.seed, 1),
            flip=plan.flip, checkpoint=checkpoint, label=f"seed {self.run.seed}: all ReLUs, as long",
        )  # fmt: skip
        if milestones.steps < max(missing):
            raise RuntimeError(
                f"search_max_epochs={plan.search_max_epochs}: {milestones.steps} steps, and SNL took "
                f"{max(missing)}. Allow as many epochs as for SNL"
            )
        shutil.rmtree(work)


class DeepReDuce(Trained):
    """Culls stages and thins blocks; the student trains anew with the teacher's help."""

    final = "student"

    @cached_property
    def width(self) -> int:
        """The student's width."""
        return deepreduce.scaled(self.run.width, self.run.schedule.student_scale)

    @cached_property
    def counts(self) -> dict[deepreduce.Configuration, int]:
        """The configurations that there are, with their numbers of ReLUs."""
        channels, size, _ = self.splits.train.shape
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
        part = self.run.schedule.part("student") | self.remedy_config(units)
        return {"teacher": parent, "code": str(self.chosen[units])} | part

    def linear(self, units: int) -> Artifact:
        """The student, trained from scratch on labels and the teacher's logits."""
        return self._fetch("student", self.linear_config(units), partial(self._train, units))

    def _train(self, units: int, work: Path) -> Artifact:
        net, log = self.train_last(units, f"DeepReDuce {self.chosen[units]}", work)
        student = self._pack(
            units, net, log, {"code": str(self.chosen[units]), "width": self.width}
        )
        kept = self.kept(units).items()
        student.arrays |= {f"{site}.alpha": k.numpy().astype(np.float32) for site, k in kept}
        return student

    def kept(self, units: int) -> dict[str, torch.Tensor]:
        """The masks of the student, by site; at one site all are the same."""
        net = self.network(masked=True, width=self.width)
        return deepreduce.kept(net, self.chosen[units])

    def fresh(self, units: int) -> nn.Module:
        """The student before its training, as its masks make it: plain, and so faster to train."""
        net = self.network(masked=False, width=self.width)
        for site, kept in self.kept(units).items():
            if not kept.any():
                net.set_submodule(site, nn.Identity())
        return net

    @property
    def recipe(self) -> Recipe:
        plan, loss = self.run.schedule, {"temperature": 1.0, "hard": 0.5, "soft": 0.5}
        return Recipe(plan.student_lr, plan.student_epochs, plan.student_batch, True, loss)

    def criticality(self) -> pd.DataFrame:
        """What the ReLUs of each stage are worth: a row a stage.

        Returns:
            The columns ``seed``, ``stage`` (from 1), ``relus`` (of that stage), ``accuracy`` and
            ``linear`` (of the student with these ReLUs alone, and of the one without any, on the
            validation set, since this would choose), ``criticality`` (see
            :func:`relufair.linearize.deepreduce.criticality`) and ``culled_at`` (the budgets for which
            the choice by count culls the stage).
        """
        alone = OneStage(self.run, self.store, self.folder)
        accuracies = {stage: alone.validated(stage) for stage in alone.chosen}
        linear = accuracies.pop(0)
        return pd.DataFrame({
            "seed": self.run.seed, "stage": list(accuracies),
            "relus": [alone.reached[stage] for stage in accuracies],
            "accuracy": accuracies.values(), "linear": linear,
            "criticality": deepreduce.criticality(accuracies, linear, alone.reached).values(),
            "culled_at": [self._culled_at(stage) for stage in accuracies],
        })  # fmt: skip

    def _culled_at(self, stage: int) -> list[float]:
        return [self.units[units] for units, c in self.chosen.items() if stage in c.culled]


class OneStage(DeepReDuce):
    """The students with the ReLUs of one stage alone: in a budget's place stands the stage, or 0."""

    @cached_property
    def chosen(self) -> dict[int, deepreduce.Configuration]:
        every, scale = deepreduce.stages(self.network(masked=True)), self.run.schedule.student_scale
        return {
            stage: deepreduce.Configuration(tuple(k for k in every if k != stage), scale=scale)
            for stage in (0, *every)
        }

    def about(self, units: int | None) -> dict[str, Any]:
        return super().about(None) | {"stage": units}

    def validated(self, stage: int) -> float:
        """Accuracy on the validation set."""
        images = self.predictions(stage).tables["images"].query("split == 'validation'")
        return (images["label"] == images["prediction"]).mean()


class Untaught(DeepReDuce):
    """DeepReDuce as released: the teacher's weights are never loaded, so it is a random network."""

    def linear_config(self, units: int) -> dict[str, Any]:
        return super().linear_config(units) | {"taught": False}

    @cached_property
    def taught(self) -> Samples:
        # Of another seed, for the student's first weights are those of the run's own.
        other = replace(self.run, seed=config.another(self.run.seed))
        stranger = DeepReDuce(other, self.store, self.folder).network(masked=True)
        sides = (False, True) if self.run.schedule.flip else (False,)
        said = [training.logits(stranger, self.samples, mirrored=m) for m in sides]
        return Samples(**vars(self.samples) | {"teacher": torch.stack(said)})


class Narrower(Matched):
    """A narrower network with all its ReLUs: is it linearization, or any loss of capacity?"""

    final = "narrow"

    @cached_property
    def widths(self) -> list[int]:
        """The candidates, from a quarter to three quarters of the width."""
        whole = 4 if self.run.arch == "wideresnet22_8" else 1  # its stem has a quarter
        return sorted({self.run.width * k // 8 // whole * whole for k in (2, 4, 6)} - {0})

    @cached_property
    def reached(self) -> dict[int, int]:
        widths = {units: self.predictions(units).facts["width"] for units in self.units}
        relus = {w: masks.total(self.network(masked=True, width=w)) for w in set(widths.values())}
        return {units: relus[width] for units, width in widths.items()}

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
        nets = {width: self.snl(width).teacher_net for width in self.widths}
        off = {width: abs(self.loss(net) - aim) for width, net in nets.items()}
        nearest = min(off, key=off.__getitem__)
        facts = {"width": nearest, "apart": off[nearest]}
        return Artifact(arrays(nets[nearest]), {}, self.facts(units) | facts)


PIPELINES: dict[str, type[Pipeline]] = {
    "snl": Snl, "deepreduce": DeepReDuce, "deepreduce_untaught": Untaught, "random": Random,
    "smallest_effect": SmallestEffect, "all_kept": AllKept, "narrower": Narrower,
}  # fmt: skip


def pipeline(run: Run, store: Store, folder: Path | None) -> Pipeline:
    """The stages of ``run`` by its method."""
    return PIPELINES[run.method](run, store, folder)
