"""What the notebooks ask for: a study is a grid of runs, and returns a tidy table.

The stages of a run are in :mod:`relufair.pipeline`, the methods in :mod:`relufair.methods`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from relufair import config, explain, masks, methods, models, tracing
from relufair.data import Choice
from relufair.linearize import deepreduce
from relufair.pipeline import Finetuned, Pipeline, Run
from relufair.sources import SOURCES, data_folder
from relufair.store import Artifact, NotPublished, Store, key_of, project_root


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
    methods: Sequence[str]
    budgets: Sequence[float]
    seeds: Sequence[int]
    schedule: str
    training: dict[str, Any]
    workers: int

    def __post_init__(self) -> None:
        config.one_of("arch", self.arch, config.ARCHITECTURES)
        config.distinct("methods", self.methods)
        for method in self.methods:
            config.one_of("methods", method, config.METHODS)
        config.distinct("budgets", self.budgets)
        config.distinct("seeds", self.seeds)
        for name in ("width", "workers"):
            config.whole(name, getattr(self, name), 1)
        for seed in self.seeds:
            config.whole("seeds", seed, 0, config.LARGEST_SEED)
        plan = config.schedule(self.schedule, self.training)
        if any("student" in config.METHODS[method] for method in self.methods):
            deepreduce.scaled(self.width, plan.student_scale)
        relus = _relus(self.arch, self.width, self.choice.size)
        kept = [masks.units(budget, relus) for budget in self.budgets]
        if len(set(kept)) < len(kept):
            raise ValueError(
                f"budgets={list(self.budgets)}: two of them keep as many ReLUs: {kept}"
            )

    @classmethod
    def read(cls, variables: Mapping[str, Any]) -> Self:
        """The study whose parameters stand among these variables, such as ``globals()``."""
        return cls(**{parameter.name: variables[parameter.name] for parameter in fields(cls)})

    @property
    def choice(self) -> Choice:
        """The data, resolved."""
        names = [f.name for f in fields(Choice)]
        return Choice(**{name: getattr(self, name) for name in names}).resolve()

    def check_data(self, folder: Path | None, store: Store | None = None) -> None:
        """Raise an error unless the data set is there and has these attributes.

        The published results need none.
        """
        if not (store or Store()).published:
            self.choice.check(folder)

    def runs(self) -> list[Run]:
        """One run a method and seed."""
        budgets = tuple(sorted((b for b in self.budgets if b < 1), reverse=True))
        plan = config.schedule(self.schedule, self.training)
        return [
            Run(self.choice, self.arch, self.width, method, budgets, plan, seed)
            for method in self.methods
            for seed in self.seeds
        ]

    def run(
        self,
        folder: Path | None = None,
        store: Store | None = None,
        pool: Executor | None = None,
        *,
        base: str | None = None,
    ) -> pd.DataFrame:
        """The tally of all runs (columns in :mod:`relufair.groups`), computing what is missing.

        Args:
            folder: the data folder; by default ``RELUFAIR_DATA``.
            store: by default the project's.
            pool: where the runs execute; by default here, or in ``workers`` processes.
            base: the method whose network of the same seed and budget the drops are measured
                against; by default the teacher is, for all budgets.
        """
        store, folder = store or Store(), data_folder(folder)
        self.check_data(folder, store)
        return self.tallied(self.runs(), folder, store, pool, base=base)

    def tallied(
        self,
        runs: Sequence[Run],
        folder: Path | None,
        store: Store,
        pool: Executor | None = None,
        split: str = "test",
        base: str | None = None,
    ) -> pd.DataFrame:
        """The tally of these ``runs`` on ``split``; the other arguments as those of :meth:`run`."""
        if base is not None:
            # It must have a network for each budget: DeepReDuce has them for its own kind alone.
            kinds = methods.PIPELINES
            students = all(issubclass(kinds[run.method], methods.DeepReDuce) for run in runs)
            meeting = (Finetuned, methods.DeepReDuce) if students else Finetuned
            config.one_of(
                "base", base, [m for m, kind in kinds.items() if issubclass(kind, meeting)]
            )
        tally = partial(measure, store=store, folder=folder, split=split, base=base)
        plan = config.schedule(self.schedule, self.training)
        same = plan == config.SCHEDULES[self.schedule]
        tier = self.schedule if same else f"{self.schedule}, changed"
        tables = self._each(runs, tally, pool)
        return pd.concat(tables, ignore_index=True).assign(tier=tier, what=words(runs[0]))

    def criticality(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """What each stage's ReLUs are worth to DeepReDuce, computing what is missing.

        The table of :meth:`relufair.methods.DeepReDuce.criticality` for every seed.
        """
        store, folder = store or Store(), data_folder(folder)
        self.check_data(folder, store)
        runs = replace(self, methods=["deepreduce"]).runs()
        valued = self._each(runs, partial(criticality, store=store, folder=folder))
        return pd.concat(valued, ignore_index=True)

    def _each(
        self, runs: Sequence[Run | Pipeline], function: Callable, pool: Executor | None = None
    ) -> list[pd.DataFrame]:
        """``function`` of every run (or its stages): in the pool, in own processes, or here.

        Where only published results are read, a run that lacks some is left out and named.

        Raises:
            NotPublished: if every run does.
        """
        attempt = partial(_attempt, function)
        if pool is None and self.workers > 1:
            with processes(self.workers) as own:
                return self._there(runs, own.map(attempt, runs))
        return self._there(runs, pool.map(attempt, runs) if pool else map(attempt, runs))

    def _in_turn(self, pipes: Sequence[Pipeline], function: Callable) -> list[pd.DataFrame]:
        """What :meth:`_each` returns, always here: for what is quick, or not to be disturbed.

        Methods that reach none of the budgets are left out.

        Raises:
            ValueError: if all do.
        """
        reaching = [pipe for pipe in pipes if pipe.reached]
        if not reaching:
            raise ValueError(f"budgets={list(self.budgets)}: {self.methods} can reach none of them")
        return self._there(reaching, map(partial(_attempt, function), reaching))

    def _there(
        self, runs: Sequence[Run | Pipeline], found: Iterable[pd.DataFrame | NotPublished]
    ) -> list[pd.DataFrame]:
        runs, found = [getattr(run, "run", run) for run in runs], list(found)
        lacking = [
            named(run) for run, t in zip(runs, found, strict=True) if isinstance(t, NotPublished)
        ]
        if lacking:
            missing = "; ".join(dict.fromkeys(lacking))
            if len(lacking) == len(found):
                raise NotPublished(words(runs[0]), missing, f"To compute it: {self.command()}")
            print(f"Not published: {missing}")
        return [table for table in found if not isinstance(table, NotPublished)]

    def command(self) -> str:
        """What computes this study, for a shell: its parameters that are not the notebook's own."""
        from relufair import cli
        from relufair.studies import STUDIES

        (name,) = (name for name, study in STUDIES.items() if study is type(self))
        usual = cli.defaults(cli.find_notebook(project_root(), name)[1])
        given = [
            f"{key}={json.dumps(getattr(self, key), ensure_ascii=False)}"
            for key, value in usual.items()
            if getattr(self, key) != value
        ]
        line = shlex.join(["relufair", "run", name, *(part for g in given for part in ("-p", g))])
        return line + (" --data DIR" if SOURCES[self.dataset].files else "")

    def rerun(self) -> str:
        """That command, as Markdown for the end of a page, a line a parameter."""
        lines = self.command().replace(" -p ", " \\\n    -p ")
        return f"To compute exactly this again:\n\n```bash\n{lines}\n```"


@lru_cache
def _relus(arch: str, width: int, size: int) -> int:
    """ReLUs of a network for images of this side; classes and channels change nothing."""
    net = models.build(arch, classes=2, channels=1, width=width)
    return masks.total(tracing.masked(net, (1, size, size)))


def stages(run: Run, store: Store, folder: Path | None) -> Pipeline:
    """The stages of a run; how many ReLUs its network has is counted once for all that have it."""
    pipe = methods.pipeline(run, store, folder)
    pipe.relus = _relus(run.arch, run.width, run.choice.size)
    return pipe


def words(run: Run) -> str:
    """Data and network, as they stand under a figure."""
    choice = run.choice
    kept = "" if choice.keep == "paper" else f", keep {choice.keep}"
    kept += ", thinned test" if choice.keep_in_test else ""
    kept += "" if choice.size == SOURCES[choice.dataset].size else f", {choice.size} pixels"
    return f"{choice.dataset}, {choice.target} by {choice.groups}{kept} · {run.arch}, width {run.width}"


def named(run: Run) -> str:
    """Method, remedy and seed."""
    remedy = "" if run.remedy == config.PLAIN else f", {run.remedy}"
    return f"{run.method}{remedy}, seed {run.seed}"


def identity(run: Run) -> str:
    """A digest of all that a run's numbers depend on but seed and budgets."""
    stages = ["teacher", *config.METHODS[run.method]]
    about = {"choice": asdict(run.choice), "arch": run.arch, "width": run.width}
    about |= {"method": run.method} | {stage: run.schedule.part(stage) for stage in stages}
    about |= {} if run.remedy == config.PLAIN else {"remedy": asdict(run.remedy)}
    return key_of("study", 2, about)[:12]


@dataclass(frozen=True)
class GradientsAndCurvature(AccuracyDrops):
    """The study of Sections 4 and 5.2: what of a group goes with its loss (Fig. 3, 4, 8).

    The parameters are those of the notebook ``04_gradients_and_curvature``.
    """

    sample: int

    def __post_init__(self) -> None:
        super().__post_init__()
        config.whole("sample", self.sample, 2)
        measurable = [m for m, kind in methods.PIPELINES.items() if issubclass(kind, Finetuned)]
        if not set(measurable) & set(self.methods):
            raise ValueError(
                f"methods={list(self.methods)}: one of them must keep the teacher's weights, which are "
                f"{', '.join(measurable)}"
            )

    def explain(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """The long table of :mod:`relufair.explain`, computing what is missing.

        Only of methods whose networks have the teacher's weights: there are no others to compare.
        """
        return self._compared(partial(explain.measured, sample=self.sample), folder, store)

    def account(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame:
        """The table of :func:`relufair.explain.account` for every seed of the first such method."""
        return self._compared(explain.account, folder, store, first=True)

    def _compared(
        self,
        measure: Callable[[Finetuned], pd.DataFrame],
        folder: Path | None,
        store: Store | None,
        first: bool = False,
    ) -> pd.DataFrame:
        """Tables of the runs whose networks have the teacher's weights; of the first method only."""
        store, folder = store or Store(), data_folder(folder)
        pipes = [stages(run, store, folder) for run in self.runs()]
        pipes = [pipe for pipe in pipes if isinstance(pipe, Finetuned)]
        pipes = [p for p in pipes if not first or p.run.method == pipes[0].run.method]
        return pd.concat(self._each(pipes, measure), ignore_index=True)

    def turned(self, folder: Path | None = None, store: Store | None = None) -> pd.DataFrame | None:
        """The first method's tally with the two halves of the classes changing places.

        None where the data set has no such halves.
        """
        if not self.choice.halved():
            return None
        names = [f.name for f in fields(AccuracyDrops)]
        changes = {"keep": "rotated", "methods": self.methods[:1]}
        return AccuracyDrops(**{n: getattr(self, n) for n in names} | changes).run(folder, store)


def _attempt(function: Callable, run: Run | Pipeline) -> pd.DataFrame | NotPublished:
    try:
        return function(run)
    except NotPublished as missing:
        return missing


def measure(
    run: Run, store: Store, folder: Path | None, split: str, base: str | None = None
) -> pd.DataFrame:
    """The tally of one run, in any process."""
    pipe = stages(run, store, folder)
    table = (_against(pipe, base) if base else pipe).measure(split)
    commits = fact_by_budget(pipe, "commit", "unknown")
    return table.assign(study=identity(run), commit=table["budget"].map(commits))


def fact_by_budget(pipe: Pipeline, name: str, otherwise: str) -> dict[float, str]:
    """A fact of the predictions of a run's networks by budget, the teacher's at 1."""
    networks = {pipe.units.get(units, 1.0): units for units in (None, *pipe.reached)}
    return {b: pipe.predictions(u).facts.get(name) or otherwise for b, u in networks.items()}


def _against(pipe: Pipeline, base: str) -> Pipeline:
    """The same run, compared with the networks of the method ``base`` on the same images."""
    other = stages(replace(pipe.run, method=base), pipe.store, pipe.folder)

    class Against(type(pipe)):
        def bases(self, found: dict[int | None, Artifact]) -> dict[int | None, Artifact]:
            return {units: other.predictions(units) for units in found}

    compared = Against(pipe.run, pipe.store, pipe.folder)
    compared.relus = pipe.relus
    return compared


def criticality(run: Run, store: Store, folder: Path | None) -> pd.DataFrame:
    """What each stage's ReLUs are worth in one run, in any process."""
    return methods.DeepReDuce(run, store, folder).criticality()


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of ``workers`` processes that share the cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    )
