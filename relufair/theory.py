"""The toy problem of the paper's Fig. 2: a convex boundary, a small class inside it, fewer ReLUs."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relufair import config, groups, masks, tracing
from relufair.models import MLP

CLASSES = ("majority (below)", "minority (above)")
TEST = 20_000


def curve(x: np.ndarray) -> np.ndarray:
    """The true boundary, a parabola: strictly convex."""
    return 1.5 * x**2 - 0.5


def sample(n: int, minority: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of the square [-1, 1]², a share ``minority`` of them above the curve.

    Returns:
        Points (n, 2), float32, and labels (n,), 1 above the curve; each class uniform on its side.
    """
    labels = (np.arange(n) < round(minority * n)).astype(np.int64)
    points = np.empty((n, 2), np.float32)
    for label in (0, 1):
        drawn = rng.uniform(-1, 1, (10 * n + 100, 2)).astype(np.float32)
        own = drawn[(drawn[:, 1] > curve(drawn[:, 0])) == bool(label)]
        points[labels == label] = own[: (labels == label).sum()]
    return points, labels


def spread(units: int, kept: float) -> Tensor:
    """Booleans (units,) that keep ``floor(kept * units)`` of them, evenly spaced.

    >>> spread(4, 0.5).tolist()
    [False, True, False, True]
    """
    steps = torch.floor(torch.arange(units + 1, dtype=torch.float64) * kept + 1e-9)
    return steps.diff() > 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on matrices this small, others only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Toy:
    """One seed of the toy problem: its points and its two trained networks."""

    seed: int
    points: np.ndarray
    labels: np.ndarray
    networks: dict[float, nn.Module]

    @torch.no_grad()
    def score(self, kept: float, points: np.ndarray) -> np.ndarray:
        """Logit of class 1 minus that of class 0 at ``points`` (n, 2): positive means minority."""
        z = self.networks[kept](torch.from_numpy(np.asarray(points, np.float32)))
        return (z[:, 1] - z[:, 0]).numpy()


@dataclass(frozen=True)
class DecisionBoundary:
    """The study of Fig. 2. The parameters are those of the notebook ``01_decision_boundary``.

    Raises:
        ValueError: for a value that cannot be, naming the parameter and what is allowed.
    """

    budgets: Sequence[float]
    minority: float
    samples: int
    hidden: Sequence[int]
    steps: int
    lr: float
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        config.in_range("minority", self.minority, 0.001, 0.5)
        config.in_range("lr", self.lr, 1e-6)
        config.whole("samples", self.samples, 20)
        config.whole("steps", self.steps, 1)
        for width in self.hidden:
            config.whole("hidden", width, 1)
        for seed in self.seeds:
            config.whole("seeds", seed, 0, config.LARGEST_SEED)
        config.distinct("seeds", self.seeds)
        config.distinct("budgets", self.budgets)
        if not self.hidden:
            raise ValueError("hidden=[]: must name the width of at least one layer")
        for budget in self.budgets:
            for width in self.hidden:  # every layer keeps its share
                masks.units(budget, width)
        if round(self.minority * self.samples) < 1:
            raise ValueError(f"minority={self.minority}: leaves no minority among {self.samples}")

    def check_data(self, folder: Path | None) -> None:
        """Nothing to check: the points are drawn."""

    @one_thread()
    def toys(self) -> list[Toy]:
        """Draw the points of every seed and train its networks, all from the same start.

        The networks train side by side as one batched computation; none sees another.
        """
        kept = (1.0, *sorted((b for b in self.budgets if b < 1), reverse=True))
        drawn = {
            s: sample(self.samples, self.minority, np.random.default_rng([s, 0]))
            for s in self.seeds
        }
        jobs = [(seed, share) for seed in self.seeds for share in kept]
        nets = [self._network(share, seed) for seed, share in jobs]
        x, y = (torch.from_numpy(np.stack([drawn[s][i] for s, _ in jobs])) for i in (0, 1))
        trained = dict(zip(jobs, train_together(nets, x, y, self.steps, self.lr), strict=True))
        return [Toy(s, *drawn[s], {share: trained[s, share] for share in kept}) for s in self.seeds]

    def _network(self, kept: float, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = tracing.masked(MLP(2, tuple(self.hidden), 2), (2,))
        return masks.freeze(
            net, {name: spread(len(site.alpha), kept) for name, site in masks.sites(net).items()}
        )

    def measure(self, toys: Sequence[Toy]) -> pd.DataFrame:
        """The tally (columns in :mod:`relufair.groups`) on 20,000 fresh points a seed."""
        rows = []
        for toy in toys:
            points, labels = sample(TEST, self.minority, np.random.default_rng([toy.seed, 1]))
            right = {k: (toy.score(k, points) > 0) == (labels == 1) for k in toy.networks}
            for kept, net in toy.networks.items():
                counted = groups.tally(right[kept], right[1.0], labels, CLASSES)
                counted.insert(1, "train_n", np.bincount(toy.labels, minlength=2))
                about = {"seed": toy.seed, "budget": kept, "relus": masks.count(net)}
                about |= {"device": "CPU", "date": datetime.date.today().isoformat()}
                rows.append(counted.assign(**about)[[*about, *counted.columns]])
        layers = " and ".join(map(str, self.hidden))
        what = f"toy, {self.samples:,} points · MLP with layers of {layers}"
        table = pd.concat(rows, ignore_index=True)
        return table.assign(tier="every", what=what, method="evenly spread")


def train_together(
    nets: Sequence[nn.Module], x: Tensor, y: Tensor, steps: int, lr: float
) -> Sequence[nn.Module]:
    """Train networks of one shape, each on its own data, with Adam on all of its samples.

    Args:
        nets: networks that differ in weights and masks only; changed in place.
        x, y: inputs (networks, n, inputs) and labels (networks, n).
        steps, lr: of Adam.
    """
    weights, buffers = torch.func.stack_module_state(list(nets))

    def loss(weights: dict, buffers: dict, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(nets[0], (weights, buffers), (x,)), y)

    optimizer = torch.optim.Adam(weights.values(), lr, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.vmap(loss)(weights, buffers, x, y).sum().backward()
        optimizer.step()
    for i, net in enumerate(nets):
        net.load_state_dict({k: v[i] for k, v in {**weights, **buffers}.items()})
        net.eval()
    return nets
