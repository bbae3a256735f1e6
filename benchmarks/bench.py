"""Speed, as ratios measured side by side in one run.

``make bench`` prints the table; nothing else should run on the machine meanwhile.
"""

import subprocess
import sys
import tempfile
import time
from statistics import median

import numpy as np
import torch

from relufair import config, masks, models, tracing, training
from relufair.data import GroupedImages
from relufair.linearize import snl
from relufair.objectives import CrossEntropy, Detached, Distillation, GroupDRO, Objective, Parity
from relufair.pipeline import Snl
from relufair.store import Store
from relufair.study import AccuracyDrops
from relufair.training import Samples

WIDTH, SIZE, BATCH, STEPS, ROUNDS = 16, 32, 256, 8, 7
KEPT = 0.1  # share of the ReLUs in a finetune


def synthetic(groups: int = 5) -> Samples:
    """Random images with a cached teacher, on the device."""
    rng, n = np.random.default_rng(0), BATCH * STEPS
    data = GroupedImages(
        rng.integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8),
        rng.integers(0, 5, n),
        rng.integers(0, groups, n),
        np.arange(n),
        tuple("abcde"),
        tuple(map(str, range(groups))),
    )
    samples = Samples.put(data, data, training.pick_device())
    return Samples(
        **vars(samples) | {"teacher": torch.randn(1, n, 5, device=samples.labels.device)}
    )


def linearized(device: torch.device) -> torch.nn.Module:
    """The network with its masks fixed, as in a finetune."""
    net = tracing.masked(models.build("resnet18", classes=5, width=WIDTH), (3, SIZE, SIZE))
    return masks.freeze(net, masks.largest(net, masks.units(KEPT, masks.total(net)))).to(device)


def stages(samples: Samples) -> dict[str, tuple]:
    """Samples, network, objective and optimizer of each kind of step."""
    plan, device = config.SCHEDULES["laptop"], samples.labels.device
    plain = models.build("resnet18", classes=5, width=WIDTH).to(device)
    search, eager = (tracing.masked(plain, (3, SIZE, SIZE)) for _ in range(2))
    fixed = linearized(device)

    def descent(net: torch.nn.Module) -> snl.Descent:
        return snl.Descent(
            net, [1], print, crossings={}, temperature=plan.temperature, lasso=0.0, growth=1.0,
            rule="every", threshold=plan.threshold,
        )  # fmt: skip

    kinds = {
        "plain ReLU, teacher's step": (plain, CrossEntropy(), training.sgd(plain, 0.01, 5e-4)),
        "SNL search step": (search, descent(search), training.adam(search, 1e-3, 1e-3)),
        "finetune step, masks fixed": (fixed, Distillation(4), training.sgd(fixed, 0.01, 5e-4)),
        "SNL search step, masks not fused": (eager, descent(eager), training.adam(eager, 1e-3, 1e-3)),
    }  # fmt: skip
    return {name: (samples, *kind) for name, kind in kinds.items()}


def finetunes(device: torch.device) -> dict[str, tuple]:
    """A plain finetune's step, and the remedies' at several numbers of groups."""

    def kind(objective: Objective, groups: int = 5) -> tuple:
        net = linearized(device)
        return synthetic(groups), net, objective, training.sgd(net, 0.01, 5e-4)

    pulled = {
        f"Algorithm 1, {k} groups": kind(Parity(0.1, k, temperature=4), k) for k in (5, 10, 100)
    }
    return {"finetune step": kind(Distillation(4))} | pulled | {
        "detached, 5 groups": kind(Detached(0.1, 5, temperature=4)),
        "group DRO, 5 groups": kind(GroupDRO(0.1, 5, temperature=4)),
    }  # fmt: skip


def race(kinds: dict[str, tuple], rounds: int = ROUNDS) -> None:
    """Images per second of each kind of step, and the ratio to the first one in the same round."""
    rates, device = {}, training.pick_device()
    for round_ in range(rounds + 1):  # the first one compiles
        for name, (samples, net, objective, optimizer) in kinds.items():
            threshold, masks.FUSE_FROM = masks.FUSE_FROM, 2**60 if "not fused" in name else 1
            start = time.perf_counter()
            training.fit(
                net, samples, objective, optimizer, epochs=1, batch=BATCH, seed=(round_,)
            )  # fmt: skip
            masks.FUSE_FROM = threshold
            if round_:
                rates.setdefault(name, []).append(len(samples) / (time.perf_counter() - start))
    first = next(iter(rates.values()))
    print(f"\nResNet-18, width {WIDTH}, {SIZE} x {SIZE}, batch {BATCH}, {rounds} rounds, "
          f"{training.device_name(device)}")  # fmt: skip
    for name, own in rates.items():
        ratios = sorted(a / b for a, b in zip(own, first, strict=True))
        print(f"{name:34} {median(own):7.0f} images/s   ratio {median(ratios):.2f} "
              f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]")  # fmt: skip


def budgets() -> None:
    """Epochs of one descent through six budgets, against six descents."""
    study = AccuracyDrops(
        "digits", "auto", "auto", "paper", False, 0, "resnet18", 8, ["snl"],
        [0.5, 0.2, 0.1, 0.05, 0.02, 0.01], [0], "ci", {"lasso_growth": 1.1}, 1, False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Snl(study.runs()[0], Store(folder), None)
        epochs = [snapshot.facts["epoch"] for snapshot in pipeline.snapshots.values()]
    print(f"\nEpochs to each of six budgets (digits, width 8): {epochs}")
    print(
        f"one descent {max(epochs)}, six descents {sum(epochs)}: {sum(epochs) / max(epochs):.1f} x"
    )


def imports() -> None:
    """Seconds to import the package, in a fresh process, and whether that brings torch."""
    code = (
        "import time, sys; t = time.perf_counter(); import relufair; "
        "print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            for _ in range(5)]  # fmt: skip
    seconds = median(float(run.stdout.split()[0]) for run in runs)
    print(f"\nimport relufair: {seconds:.3f} s; imports torch: {runs[0].stdout.split()[1]}")


if __name__ == "__main__":
    race(stages(synthetic()))
    race(finetunes(training.pick_device()), rounds=3 * ROUNDS)
    budgets()
    imports()
