"""Cost of the measures of geometry: against PyHessian, against training, and in memory.

Run it alone on the machine: ``OMP_NUM_THREADS=2 python benchmarks/geometry.py``. On a shared one only
the ratios tell, since both sides are measured in turn. The network is a ResNet-18, untrained or trained
for two epochs on enlarged digits; PyHessian must be installed.
"""

import contextlib
import copy
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from unittest import mock

import pyhessian
import torch
import torch.nn.functional as F

from relufair import bounds, data, geometry, models, tracing, training
from relufair.objectives import CrossEntropy
from relufair.store import Store
from relufair.training import Samples

TOL, ROUNDS, MOST = 1e-3, 3, 100


def digits(size: int) -> Samples:
    """1,294 training images; the ten classes are the groups."""
    with tempfile.TemporaryDirectory() as folder:
        choice = data.Choice("digits", groups="label", keep="all", size=size)
        train = data.load(choice, 0, None, Store(folder)).train
    return Samples.put(train, train, torch.device("cpu"))


def lanczos(net, samples, index, truth: float, seed: int) -> list[tuple[float, float]]:
    """Value and seconds after each product of ours, to its own stop."""
    steps, estimate, begin = [], geometry._estimate, time.perf_counter()

    def traced(ritz, residuals):
        steps.append((ritz.max(), time.perf_counter() - begin))
        return estimate(ritz, residuals)

    with mock.patch.object(geometry, "_estimate", traced):
        geometry.top_eigenvalue(net, samples, index, TOL, seed)
    return steps


def power(net, samples, index, truth: float, seed: int) -> list[tuple[float, float]]:
    """The same of PyHessian, on the same batches, from the same start, for ``MOST`` products.

    Or fewer, where both its own rule and the tolerance are met.
    """
    batches = [(samples.inputs(i), samples.labels[i]) for i in index.split(geometry.BATCH)]
    begin, steps = time.perf_counter(), []
    runner = pyhessian.hessian(net, torch.nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    product = runner.dataloader_hv_product

    def traced(v):
        found = product(v)
        steps.append((found[0], time.perf_counter() - begin))
        if settled(steps) and accurate(steps, truth):
            raise StopIteration
        return found

    runner.dataloader_hv_product = traced
    sizes = [p.numel() for p in runner.params]
    parts = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).split(sizes)
    parts = [v.view_as(p) for v, p in zip(parts, runner.params, strict=True)]
    with contextlib.suppress(StopIteration), mock.patch.object(torch, "randn", side_effect=parts):
        runner.eigenvalues(maxIter=MOST, tol=0)
    net.zero_grad()
    return steps


def settled(steps: list[tuple[float, float]]) -> int:
    """The product after which PyHessian stops at TOL: the value hardly changes any more; else 0."""
    values = [value for value, _ in steps]
    pairs = enumerate(itertools.pairwise(values), 2)
    return next((i for i, (a, b) in pairs if abs(b / a - 1) < TOL), 0)


def accurate(steps: list[tuple[float, float]], truth: float) -> int:
    """The product after which the value first is within TOL of the truth; else 0."""
    return next((i for i, (v, _) in enumerate(steps, 1) if abs(v / truth - 1) <= TOL), 0)


def spread(ratios: list[float]) -> str:
    """Median and range."""
    return f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def eigenvalue(width: int, size: int, images: int, epochs: int, seeds: range) -> None:
    """Products and seconds to a true error of TOL, and to where each stops by its own rule."""
    samples, index = digits(size), torch.arange(images)
    net = models.build("resnet18", classes=10, channels=1, width=width)
    optimizer = training.sgd(net, 0.05, 5e-4)
    training.fit(net, samples, CrossEntropy(), optimizer, epochs=epochs, batch=64, seed=(0,))
    truth = geometry.top_eigenvalue(net, samples, index, 1e-5, seed=99).value
    print(f"\nTop eigenvalue {truth:.4f}: width {width}, {size} x {size}, {images} images, {epochs} "
          f"epochs; products and seconds to a true error of {TOL:g} | to the own stop, and its "
          "true error", flush=True)  # fmt: skip
    ratios = {"products": [], "seconds": [], "seconds, ours to its stop": []}
    for seed in seeds:
        found = {}
        for work in (lanczos, power) if seed % 2 else (power, lanczos):
            steps = work(net, samples, index, truth, seed)
            there = accurate(steps, truth)
            stop = settled(steps) if work is power else len(steps)
            found[work] = there or len(steps), steps[there - 1][1], steps[stop - 1][1]
            print(f"seed {seed} {work.__name__:8}{there or f'over {len(steps)}':>8} "
                  f"{steps[there - 1][1]:6.2f} s |{stop or f'over {len(steps)}':>8} "
                  f"{steps[stop - 1][1]:6.2f} s {abs(steps[stop - 1][0] / truth - 1):.0e}",
                  flush=True)  # fmt: skip
        ours, theirs = found[lanczos], found[power]
        pairs = (ours[0], theirs[0]), (ours[1], theirs[1]), (ours[2], theirs[1])
        for own, (a, b) in zip(ratios.values(), pairs, strict=True):
            own.append(a / b)
    print("Lanczos / power: " + ", ".join(f"{k} {spread(own)}" for k, own in ratios.items()))


def passes(net: torch.nn.Module, samples: Samples) -> None:
    """Forward and backward of one epoch as in training, in float32, without the optimizer's step."""
    net.train()
    for index in torch.randperm(len(samples)).split(geometry.BATCH):
        x = samples.inputs(index).contiguous(memory_format=torch.channels_last)
        net.zero_grad()
        F.cross_entropy(net(x), samples.labels[index]).backward()


def gradients() -> None:
    """Seconds for the gradient norms of all groups, and the ratio to one epoch's passes."""
    samples, plain = digits(32), models.build("resnet18", classes=10, channels=1, width=16)
    for name, net in {"plain": plain, "masked": tracing.masked(plain, (1, 32, 32))}.items():
        net.to(memory_format=torch.channels_last)
        spent = {passes: [], geometry.gradient_norms: []}
        for _ in range(ROUNDS + 1):  # the first one warms up
            for work, seconds in spent.items():
                start = time.perf_counter()
                work(net, samples)
                seconds.append(time.perf_counter() - start)
        epoch, ours = (seconds[1:] for seconds in spent.values())
        ratios = [a / b for a, b in zip(ours, epoch, strict=True)]
        print(f"\nGradient norms of 10 groups, {name}: {median(ours):.2f} s, one epoch's passes "
              f"{median(epoch):.2f} s, ratio {spread(ratios)}", flush=True)  # fmt: skip


def along(net: torch.nn.Module, samples: Samples) -> None:
    """The line integral at one point, to a network of smaller weights."""
    other = copy.deepcopy(net)
    for p in other.parameters():
        p.data *= 0.9
    about = samples.inputs, samples.labels, samples.groups
    bounds.line_integral(net, other, *about, tolerance=1e9, points=1, batch=geometry.BATCH)


def everyone(measure: Callable, **how) -> Callable:
    """A measure of samples by their places, of all samples."""
    return lambda net, samples: measure(net, samples, torch.arange(len(samples)), **how)


MEASURES = {
    "gradient_norms": geometry.gradient_norms,
    "top_eigenvalue": everyone(geometry.top_eigenvalue, tol=0.5),
    "top_gauss_newton": everyone(geometry.top_gauss_newton, tol=0.5),
    "logit_curvature": everyone(geometry.logit_curvature, tol=0.5),
    "distances": geometry.distances,
    "losses": geometry.losses,
    "released_gradient_norm": geometry.released_gradient_norm,
    "released_eigenvalue": partial(geometry.released_eigenvalue, tol=0.5),
    "line_integral": along,
}


def peak(measure: str, images: int) -> None:
    """Print by how many MB one measure raises this process's peak memory, after a small warm-up."""
    net, half = models.ResNet((1, 0, 0, 0), classes=2, channels=1, width=8), torch.full((1,), 0.5)
    for n in (2, images):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pictures, labels = torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8), torch.arange(n)
        MEASURES[measure](net, Samples(pictures, labels % 2, labels % 2, half, half))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def memory() -> None:
    """Peak memory of every measure, each in a process of its own."""
    print(f"\nRise of peak memory in MB at 1,000 and 10,000 images, batch {geometry.BATCH}")
    # Freed memory goes back at once, so that the peak is what was in use at one time.
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for measure in MEASURES:
        runs = [subprocess.run([sys.executable, __file__, measure, n], capture_output=True, env=own,
                               check=True) for n in ("1000", "10000")]  # fmt: skip
        print(f"{measure:24}" + "".join(f"{int(run.stdout):8}" for run in runs), flush=True)


if len(sys.argv) > 1:
    peak(sys.argv[1], int(sys.argv[2]))
elif __name__ == "__main__":
    warnings.filterwarnings("ignore", "Using backward")
    memory()  # first: a child's peak starts from what its parent has in memory
    gradients()
    for job in ((8, 16, 100, 0, range(5)), (8, 16, 100, 2, range(5)), (16, 32, 1000, 2, range(2))):
        eigenvalue(*job)
