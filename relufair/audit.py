"""What the paper's released code computes where its text says otherwise, each point as an experiment.

Each method of :class:`Audit` is one experiment and returns one tidy table. All of them share teacher,
masks and schedule with the other studies, so that only the point in question differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from relufair import config, geometry, groups, training
from relufair.config import PLAIN, Remedy
from relufair.data import GroupedImages
from relufair.explain import BATCH
from relufair.linearize import deepreduce
from relufair.mitigation import Remedied
from relufair.objectives import Batch, Objective
from relufair.pipeline import Run, Trained, arrays, stored
from relufair.sources import data_folder
from relufair.store import Store
from relufair.training import Samples

VERSIONS = {"twins": 1, "epochs": 1, "leakage": 1, "thinning": 1}
PENALTIES = {"plain": "none", "detached": "detached", "algorithm1": "live"}
STUDENTS = ("deepreduce", "deepreduce_untaught")
SPLITS = ("validation", "test")
SIZES = {"gradient": 5, "eigenvalue": 3}  # from the largest class's to the smallest's
DRAWS = {"gradient": 3, "eigenvalue": 2}  # of the images that stay
MOST = 512  # images for an eigenvalue
TOLERANCE = 0.1  # of an eigenvalue's residual; its value is closer by far


@dataclass(frozen=True)
class Audit(Remedied):
    """The experiments on the released code.

    The parameters are those of the notebook ``07_paper_and_code``.
    """

    mu: float

    def __post_init__(self) -> None:
        super().__post_init__()
        plan = config.schedule(self.schedule, self.training)
        deepreduce.scaled(self.width, plan.student_scale)
        self.cures()

    def cures(self) -> list[Remedy]:
        """No penalty, the detached and the live one: with the distillation whole, then over C."""
        return [
            Remedy(name, 0.0 if name == "plain" else self.mu, per_class)
            for per_class in (False, True)
            for name in PENALTIES
        ]

    def penalties(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """The tally with every penalty at both weights of the distillation, on the same masks.

        Returns:
            The columns of :mod:`relufair.groups`, with the teacher left out, and ``penalty``
            (``none``, ``detached``, ``live``) and ``distillation`` (``1``, or ``1/C`` with the number
            of classes C).
        """
        tally = self.tally(self.cures(), folder, store)
        named = {str(cure): cure for cure in self.cures()}
        cures = tally["remedy"].map(named)
        about = {
            "penalty": [PENALTIES[cure.name] for cure in cures],
            "distillation": ["1/C" if cure.per_class else "1" for cure in cures],
        }
        return tally.assign(**about).query("budget < 1").reset_index(drop=True)

    def twins(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """Are the weights with a penalty, bit for bit, those without it?

        Returns:
            A row a method × seed × budget × distillation × penalty with ``same`` and ``apart``, the
            largest difference of a number in the network from the one without a penalty.
        """
        cures = [cure for cure in self.cures() if cure.name != "plain"]
        tables = self._in_turn(self._pipelines(cures, folder, store), _twins)
        return pd.concat(tables, ignore_index=True)

    def epochs(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """What the network gets right after each epoch of its finetune.

        Returns:
            A row a method × seed × budget × epoch × split × group with ``n``, ``correct`` and
            ``same``, whether the network that was watched ended, bit for bit, as the one that was not.
        """
        tables = self._in_turn(self._pipelines([PLAIN], folder, store), _epochs)
        return pd.concat(tables, ignore_index=True)

    def leakage(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """Networks on their own test set, and on that of the next seed's split.

        Returns:
            A row a method × seed × budget × images × group with ``n`` and ``correct``; ``images``
            is ``own`` (the network's own test set), ``other`` (the other split's) or ``seen`` (of
            these, the ones that the network was trained on).
        """
        tables = self._in_turn(self._pipelines([PLAIN], folder, store), _leakage)
        return pd.concat(tables, ignore_index=True)

    def thinning(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """The teacher's gradient and curvature on its largest class, with ever fewer of its images.

        Groups are the classes here, as in the released code. The images are those of the training
        set. A class of which n images are left makes up its share of a mini-batch of 256: of as many
        are the mini-batches here, drawn from the class alone.

        Returns:
            A row a seed × class × n × draw × measure × way with ``value``. The measures are
            ``gradient`` (its norm) and ``eigenvalue`` (the largest of the Hessian), the ways
            ``released`` (mean or maximum over mini-batches) and ``exact`` (of all n images at once).
            ``class`` is ``largest`` or ``smallest``, the second with all its images; ``batch`` the
            images in a mini-batch.
        """
        pipes = self._pipelines([PLAIN], folder, store)[: len(self.seeds)]
        return pd.concat(self._in_turn(pipes, _thinning), ignore_index=True)

    def students(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """The tally of DeepReDuce with a trained teacher, and with a random one as released."""
        store, folder = store or Store(), data_folder(folder)
        self.check_data(folder, store)
        first: list[Run] = self.runs()[: len(self.seeds)]
        runs = [replace(run, method=method) for method in STUDENTS for run in first]
        return self.tallied(runs, folder, store)


def _about(pipe: Trained, units: int | None) -> dict[str, Any]:
    budget = pipe.units.get(units, 1.0)
    return {"method": pipe.run.method, "seed": pipe.run.seed, "budget": budget}


def _grouped(pipe: Trained) -> dict[str, str]:
    return {"groups": pipe.run.choice.groups}


def _stored(kind: str, pipe: Trained, units: int | None, *rest: Any) -> pd.DataFrame:
    return stored(kind, VERSIONS[kind], pipe, units, *rest)


# Are two networks the same? -----------------------------------------------------------------------


def _twins(pipe: Trained) -> pd.DataFrame:
    """The rows of :meth:`Audit.twins` of one run with a penalty."""
    cure = pipe.run.remedy
    plain = type(pipe)(
        replace(pipe.run, remedy=replace(PLAIN, per_class=cure.per_class)), pipe.store, pipe.folder
    )

    def measure(_: Trained, units: int, __: Path) -> pd.DataFrame:
        return pd.DataFrame([_apart(plain.linear(units).arrays, pipe.linear(units).arrays)])

    about = {"penalty": PENALTIES[cure.name], "distillation": "1/C" if cure.per_class else "1"}
    tables = [
        _stored("twins", pipe, units, {"plain": plain.identity(units)}, measure).assign(
            **_about(pipe, units) | about
        )
        for units in pipe.reached
    ]
    return pd.concat(tables, ignore_index=True)


def _apart(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> dict[str, Any]:
    same = one.keys() == two.keys() and all(one[k].tobytes() == two[k].tobytes() for k in one)
    return {"same": same, "apart": max(float(np.abs(one[k] - two[k]).max()) for k in one)}


# Selection on test --------------------------------------------------------------------------------


class Watched(Objective):
    """An objective that looks at the network after each epoch, and leaves the training as it is.

    Args:
        inner: what is minimised.
        net: what is trained.
        look: gets the network and returns what the log shall show; it may change the network's mode,
            which is set back, and nothing else.
    """

    def __init__(
        self, inner: Objective, net: nn.Module, look: Callable[[nn.Module], dict[str, float]]
    ):
        self.inner, self.net, self.look = inner, net, look

    def loss(self, batch: Batch) -> Tensor:
        return self.inner.loss(batch)

    def after_step(self) -> bool:
        return self.inner.after_step()

    def end_epoch(self) -> dict[str, float]:
        mode = self.net.training
        seen = self.look(self.net)
        self.net.train(mode)
        return self.inner.end_epoch() | seen

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.inner.restore(state)


def _watching(pipe: Trained) -> Trained:
    """The same run, with its last training watched."""

    class Watching(type(pipe)):
        def objective(self, net: nn.Module, units: int) -> Objective:
            return Watched(super().objective(net, units), net, partial(_right, self))

    return Watching(pipe.run, pipe.store, pipe.folder)


def _right(pipe: Trained, net: nn.Module) -> dict[str, float]:
    """How many images of each split and group ``net`` gets right."""
    found = {}
    for split in SPLITS:
        samples, names = pipe.part(split), pipe.splits.train.group_names
        right = training.logits(net, samples).argmax(1) == samples.labels
        counts = torch.bincount(samples.groups[right], minlength=len(names))
        found |= {f"{split}:{name}": n for name, n in zip(names, counts.tolist(), strict=True)}
    return found


def _epochs(pipe: Trained) -> pd.DataFrame:
    """The rows of :meth:`Audit.epochs` of one run."""
    tables = [
        _stored("epochs", pipe, units, _grouped(pipe), _watch).assign(**_about(pipe, units))
        for units in pipe.reached
    ]
    return pd.concat(tables, ignore_index=True)


def _watch(pipe: Trained, units: int, work: Path) -> pd.DataFrame:
    net, log = _watching(pipe).train_last(units, "last training, watched", work)
    same = _apart(arrays(net), pipe.linear(units).arrays)["same"]
    long = log.filter(regex="^epoch$|^validation:|^test:").melt("epoch", value_name="correct")
    long[["split", "group"]] = long.pop("variable").str.split(":", n=1, expand=True)
    sizes = {split: getattr(pipe.splits, split).sizes() for split in SPLITS}
    n = [sizes[split][group] for split, group in zip(long["split"], long["group"], strict=True)]
    return long.assign(n=n, same=same)


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """What three ways to choose an epoch say of the test set; of equals, the first epoch.

    Args:
        table: of :meth:`Audit.epochs`.

    Returns:
        A row a method × seed × budget × rule × group (and all) with ``epoch``, ``n``, ``correct``
        and ``last``, what the network after the last epoch gets right. The rules are ``last``,
        ``validation`` and ``test``: the epoch with the best accuracy there, over all groups.
    """
    keys = ["method", "seed", "budget"]
    parts = [
        _choose(own).assign(**dict(zip(keys, key, strict=True)))
        for key, own in table.groupby(keys, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _choose(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`chosen` of one network."""
    totals = table.pivot_table("correct", "epoch", "split", "sum")
    epochs = {"last": totals.index.max()} | {split: totals[split].idxmax() for split in SPLITS}
    test = table[table["split"] == "test"].set_index("epoch")[["group", "n", "correct"]]
    everyone = test.groupby(level=0)[["n", "correct"]].sum().assign(group=groups.ALL)
    test = pd.concat([test, everyone])
    last = test.loc[epochs["last"]].set_index("group")["correct"]
    picked = [test.loc[epoch].assign(rule=rule) for rule, epoch in epochs.items()]
    rows = pd.concat(picked).reset_index()
    return rows.assign(last=rows["group"].map(last))


# Leakage ------------------------------------------------------------------------------------------


def _leakage(pipe: Trained) -> pd.DataFrame:
    """The rows of :meth:`Audit.leakage` of one run."""
    run = replace(pipe.run, seed=config.another(pipe.run.seed))
    other = type(pipe)(run, pipe.store, pipe.folder).splits
    about = _grouped(pipe) | {"own": pipe.splits.digest, "other": other.digest}
    leak = partial(_leak, other=other.test)
    tables = [
        _stored("leakage", pipe, units, about, leak).assign(**_about(pipe, units))
        for units in (None, *pipe.reached)
    ]
    return pd.concat(tables, ignore_index=True)


def _leak(pipe: Trained, units: int | None, _: Path, other: GroupedImages) -> pd.DataFrame:
    net, own, names = pipe.net(units), pipe.splits.test, pipe.splits.train.group_names
    seen = np.isin(other.rows, pipe.splits.train.rows)
    images = {"own": own, "other": other, "seen": other.take(np.flatnonzero(seen))}
    tables = []
    for name, part in images.items():
        right = _correct(pipe, net, part)
        counts = groups.tally(right, right, part.groups, names)[["group", "n", "correct"]]
        tables.append(counts.assign(images=name))
    return pd.concat(tables, ignore_index=True)


def _correct(pipe: Trained, net: nn.Module, part: GroupedImages) -> np.ndarray:
    """Which images of ``part`` (n,) ``net`` gets right, normalised as its own training set."""
    if not len(part):
        return np.zeros(0, bool)
    samples = Samples.put(part, pipe.splits.train, pipe.device)
    return (training.logits(net, samples).argmax(1) == samples.labels).cpu().numpy()


# Gradient and curvature against the size of a group -----------------------------------------------


def _thinning(pipe: Trained) -> pd.DataFrame:
    """The rows of :meth:`Audit.thinning` of one run."""
    return _stored("thinning", pipe, None, {}, _thin).assign(seed=pipe.run.seed)


def _thin(pipe: Trained, _: int | None, __: Path) -> pd.DataFrame:
    samples = replace(pipe.samples, groups=pipe.samples.labels)  # the released code's groups
    every = geometry.members(samples).values()
    largest, smallest = max(every, key=len), min(every, key=len)
    rows = [
        _measured(pipe.teacher_net, samples, index, len(samples) - len(largest) + len(index),
                  measure) | {"class": "largest", "draw": draw}
        for measure in SIZES
        for draw, index in _drawn(largest, len(smallest), measure)
    ]  # fmt: skip
    rows += [
        _measured(pipe.teacher_net, samples, smallest, len(samples), measure)
        | {"class": "smallest", "draw": 0}
        for measure in SIZES
    ]
    return pd.DataFrame(rows).melt(
        ["class", "n", "draw", "batch", "measure"], ["released", "exact"], var_name="way"
    )


def _drawn(index: Tensor, fewest: int, measure: str) -> Iterator[tuple[int, Tensor]]:
    """All of ``index``, then ever fewer in several draws, down to ``fewest``; with the draw."""
    sizes = np.geomspace(len(index), fewest, SIZES[measure]).round().astype(int).tolist()
    yield 0, index
    for n, draw in itertools.product(sorted(set(sizes) - {len(index)}), range(DRAWS[measure])):
        yield draw, geometry.subsample(index, n, seed=draw)


def _measured(
    net: nn.Module, samples: Samples, index: Tensor, total: int, measure: str
) -> dict[str, Any]:
    """The released and the exact number of the images at ``index``, which are among ``total``."""
    share = max(1, round(BATCH * len(index) / total))
    about = {"n": len(index), "batch": share, "measure": measure}
    if measure == "gradient":
        own = samples.take(index)
        exact = geometry.gradient_norms(net, own)["gradient"].item()
        released = geometry.released_gradient_norm(net, own, share)["value"].item()
    else:
        own = samples.take(geometry.subsample(index, min(MOST, len(index)), seed=0))
        every = torch.arange(len(own), device=own.labels.device)
        exact = geometry.top_eigenvalue(net, own, every, TOLERANCE).value
        released = geometry.released_eigenvalue(net, own, share, tol=TOLERANCE)["value"].item()
    return about | {"released": released, "exact": exact}
