"""Cost of the measures of geometry: against PyHessian, against training, and in memory.

Run it alone on the machine: ``OMP_NUM_THREADS=2 python benchmarks/geometry.py``. The network is a
ResNet-18, untrained or trained for two epochs on enlarged digits; PyHessian must be installed.
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from statistics import median

import pyhessian
import torch
import torch.nn.functional as F

from relufair import data, geometry, masks, models, training
from relufair.objectives import CrossEntropy
from relufair.store import Store
from relufair.training import Samples

TOL, ROUNDS = 1e-3, 3


def digits(size: int) -> Samples:
    """1,294 training images; the ten classes are the groups."""
    with tempfile.TemporaryDirectory() as folder:
        choice = data.Choice("digits", groups="label", keep="all", size=size)
        train = data.load(choice, 0, None, Store(folder)).train
    return Samples.put(train, train, torch.device("cpu"))


def power(net, samples, index, truth: float, seed: int) -> dict[str, float]:
    """PyHessian's products and seconds to a true error of TOL, and its error where it would stop."""
    batches = [(samples.inputs(i), samples.labels[i]) for i in index.split(geometry.BATCH)]
    runner = pyhessian.hessian(net, torch.nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    product, values, found = runner.dataloader_hv_product, [], {}
    start = time.perf_counter()

    def traced(v):
        value, hv = product(v)
        values.append(value)
        error = abs(value / truth - 1)
        if error <= TOL and "products" not in found:
            found.update(products=len(values), seconds=time.perf_counter() - start)
        if len(values) > 1 and "stop" not in found and abs(value / values[-2] - 1) < TOL:
            found.update(stop=len(values), error=error)
        if {"products", "stop"} <= set(found):
            raise StopIteration  # both its own rule and the tolerance are met
        return value, hv

    runner.dataloader_hv_product = traced
    torch.manual_seed(seed)
    with contextlib.suppress(StopIteration):
        runner.eigenvalues(maxIter=200, tol=0)
    net.zero_grad()
    return found


def eigenvalue(width: int, size: int, images: int, epochs: int, seeds: range) -> None:
    """Products and seconds of Lanczos at two tolerances, and of power iteration."""
    samples, index = digits(size), torch.arange(images)
    net = models.build("resnet18", classes=10, channels=1, width=width)
    optimizer = training.sgd(net, 0.05, 5e-4)
    training.fit(net, samples, CrossEntropy(), optimizer, epochs=epochs, batch=64, seed=(0,))
    truth = geometry.top_eigenvalue(net, samples, index, 1e-4, seed=99).value
    print(f"\nTop eigenvalue {truth:.4f}: width {width}, {size} x {size}, {images} images, "
          f"{epochs} epochs (products, seconds, true error)", flush=True)  # fmt: skip
    for seed in seeds:
        theirs = power(net, samples, index, truth, seed)
        print(f"PyHessian {theirs['products']:3}, {theirs['seconds']:.1f} s, {TOL:.0e} "
              f"(stops at {theirs['stop']}, {theirs['error']:.0e})", end="")  # fmt: skip
        for tol in (TOL, 0.03):
            start = time.perf_counter()
            ours = geometry.top_eigenvalue(net, samples, index, tol, seed)
            seconds, error = time.perf_counter() - start, abs(ours.value / truth - 1)
            print(f" | tol={tol:g}: {ours.products:3}, {seconds:.1f} s, {error:.0e}, ratio "
                  f"{ours.products / theirs['products']:.2f}, {seconds / theirs['seconds']:.2f}",
                  end="", flush=True)  # fmt: skip
        print()


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
    for name, net in {"plain": plain, "masked": masks.masked(plain, (1, 32, 32))}.items():
        net.to(memory_format=torch.channels_last)
        spent = {passes: [], geometry.gradient_norms: []}
        for _ in range(ROUNDS + 1):  # the first one warms up
            for work, seconds in spent.items():
                start = time.perf_counter()
                work(net, samples)
                seconds.append(time.perf_counter() - start)
        epoch, ours = (seconds[1:] for seconds in spent.values())
        ratios = sorted(a / b for a, b in zip(ours, epoch, strict=True))
        print(f"\nGradient norms of 10 groups, {name}: {median(ours):.2f} s, one epoch's passes "
              f"{median(epoch):.2f} s, ratio {median(ratios):.2f} [{ratios[0]:.2f}, "
              f"{ratios[-1]:.2f}]", flush=True)  # fmt: skip


MEASURES = {
    "gradient_norms": geometry.gradient_norms,
    "eigenvalues": lambda net, samples: geometry.eigenvalues(net, samples, tol=0.5),
    "distances": geometry.distances,
    "losses": geometry.losses,
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
        print(f"{measure:16}" + "".join(f"{int(run.stdout):8}" for run in runs), flush=True)


if len(sys.argv) > 1:
    peak(sys.argv[1], int(sys.argv[2]))
elif __name__ == "__main__":
    warnings.filterwarnings("ignore", "Using backward")
    memory()  # first: a child's peak starts from what its parent has in memory
    gradients()
    for job in ((8, 16, 100, 0, range(3)), (8, 16, 100, 2, range(3)), (16, 32, 1000, 2, range(1))):
        eigenvalue(*job)
