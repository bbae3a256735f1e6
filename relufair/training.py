"""The one training loop: device, precision, seeded batches, progress, and resuming.

The images stay on the device as bytes; a batch is picked, normalised and fed to the network there.
Every epoch draws its batches from its own generator, made of the seed and the epoch's number, so that
a training taken up again after an interruption is the training that was not interrupted.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from relufair import masks
from relufair.data import GroupedImages
from relufair.objectives import Batch, Objective


def pick_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type.upper()} ({platform.machine()}{threads})"


def widest(net: nn.Module) -> int:
    """Channels of the network's first convolution, or 0 where it has none."""
    return next((m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 0)


@dataclass
class Samples:
    """A data set on the device, ready to be fed in batches.

    Attributes:
        images: (n, C, H, W), uint8.
        labels, groups: (n,), int64.
        mean, std: (C, 1, 1), of the training set, on the scale from 0 to 1.
        teacher: (flips, n, classes): the teacher's logits for the images as they are and, where a
            flip is asked for, mirrored. None without a teacher.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor
    mean: Tensor
    std: Tensor
    teacher: Tensor | None = None

    @classmethod
    def put(cls, data: GroupedImages, train: GroupedImages, device: torch.device) -> Samples:
        """``data`` on ``device``, to be normalised by the statistics of ``train``."""
        mean, std = train.statistics()
        arrays = (data.images, data.labels, data.groups, mean[:, None, None], std[:, None, None])
        return cls(*(torch.from_numpy(a).to(device) for a in arrays))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Samples:
        """The samples at ``index``, without the teacher's logits."""
        index = index.to(self.labels.device)
        parts = (self.images[index], self.labels[index], self.groups[index])
        return Samples(*parts, self.mean, self.std)

    def inputs(self, index: Tensor, mirror: Tensor | None = None) -> Tensor:
        """The normalised images at ``index``, mirrored where ``mirror`` is true; float32."""
        x = self.images[index]
        if mirror is not None:
            x = torch.where(mirror[:, None, None, None], x.flip(3), x)
        return (x.float() / 255 - self.mean) / self.std


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A random order of ``range(n)`` in even batches of ``min(size, n)``; the rest waits an epoch."""
    size = min(size, n) // 2 * 2
    order = rng.permutation(n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


@torch.no_grad()
def logits(net: nn.Module, samples: Samples, *, mirrored: bool = False, size: int = 512) -> Tensor:
    """Logits (n, classes) in evaluation mode and float32, on the device."""
    net.eval()
    every = torch.arange(len(samples), device=samples.labels.device)
    mirror = torch.tensor(True, device=every.device) if mirrored else None
    parts = [
        net(samples.inputs(index, mirror if mirror is None else mirror.expand(len(index))))
        for index in every.split(size)
    ]
    return torch.cat(parts).float()


def step_decay(epoch: int, epochs: int) -> float:
    """1, then 0.1 after half of the epochs, then 0.01 after three quarters."""
    return 0.1 ** ((epoch >= epochs / 2) + (epoch >= 3 * epochs / 4))


def cosine(epoch: int, epochs: int) -> float:
    """From 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def constant(epoch: int, epochs: int) -> float:
    """1."""
    return 1.0


def sgd(
    net: nn.Module, lr: float, weight_decay: float, nesterov: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 on all trainable parameters."""
    return torch.optim.SGD(
        net.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=nesterov, fused=_fuses(net)
    )


def adam(net: nn.Module, lr: float, masks_lr: float) -> torch.optim.Optimizer:
    """Adam on the weights at ``lr`` and on trainable masks at ``masks_lr``; no weight decay."""
    alphas = [site.alpha for site in masks.sites(net).values()]
    ours = {id(alpha) for alpha in alphas}
    weights = [p for p in net.parameters() if id(p) not in ours]
    groups = [{"params": weights, "lr": lr}, {"params": alphas, "lr": masks_lr}]
    return torch.optim.Adam(groups, fused=_fuses(net))


def _fuses(net: nn.Module) -> bool:
    return next(net.parameters()).device.type in ("cpu", "cuda")


@contextmanager
def progress(total: int | None, label: str, start: int = 0, unit: str = "epoch") -> Iterator[tqdm]:
    """A bar on a terminal or where ``RELUFAIR_PROGRESS`` says, with the time left if there is a total.

    The variable may be ``stderr`` or the path of a file to append to; without it, and without a
    terminal, there is no bar.
    """
    target = os.environ.get("RELUFAIR_PROGRESS")
    shown = nullcontext(sys.stderr) if target in (None, "", "stderr") else Path(target).open("a")
    about = {"total": total, "initial": start, "desc": label, "unit": unit, "ncols": 100}
    with shown as out, tqdm(**about, file=out, disable=False if target else None) as bar:
        yield bar


def fit(
    net: nn.Module,
    samples: Samples,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    seed: Sequence[int],
    decay: Callable[[int, int], float] = constant,
    flip: bool = False,
    checkpoint: Path | None = None,
    label: str = "training",
) -> pd.DataFrame:
    """Train ``net`` in place until ``epochs`` are over or the objective says stop.

    Args:
        net: on the samples' device.
        samples: the training set.
        objective: what to minimise.
        optimizer: over the network's parameters.
        epochs: passes over the data, at most.
        batch: images a step.
        seed: whole numbers, of the batches' order and the flips.
        decay: factor on the learning rate, from the epoch and the number of epochs.
        flip: mirror each image with probability one half.
        checkpoint: file that is rewritten after every epoch, and from which training goes on if
            it is there.
        label: name on the progress bar.

    Returns:
        A table with one row an epoch and the columns ``epoch`` (from 1), ``loss`` (mean over the
        steps), ``lr`` (of the first parameter group), and what the objective's ``end_epoch``
        returns (by group: ``loss:0`` and the like, which the bar does not show). An epoch that the
        objective cut short has no row.
    """
    device = samples.labels.device
    wide = widest(net) >= 16
    net.to(memory_format=torch.channels_last if wide else torch.contiguous_format)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=wide and has_bfloat16(device))
    rates = [group["lr"] for group in optimizer.param_groups]
    log = _resume(checkpoint, net, optimizer, objective)
    with masks.fused(), progress(epochs, label, len(log)) as bar:
        for epoch in range(len(log), epochs):
            net.train()
            rng = np.random.default_rng([*seed, epoch])
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * decay(epoch, epochs)
            losses = []
            for chosen in batches(len(samples), batch, rng):
                index = torch.from_numpy(chosen).to(device)
                mirror = (
                    torch.from_numpy(rng.random(len(chosen)) < 0.5).to(device) if flip else None
                )
                x = samples.inputs(index, mirror)
                x = x.contiguous(memory_format=torch.channels_last) if wide else x
                with autocast:
                    z = net(x)
                loss = objective.loss(_batch(z.float(), samples, index, mirror))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                if objective.after_step():
                    return pd.DataFrame(log)
            row = {"epoch": epoch + 1, "loss": torch.stack(losses).mean().item()}
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"{label}: the loss is {row['loss']} in epoch {epoch + 1}")
            log.append(row | {"lr": optimizer.param_groups[0]["lr"]} | objective.end_epoch())
            _save(checkpoint, net, optimizer, objective, log)
            shown = {k: v for k, v in log[-1].items() if k not in ("epoch", "lr") and ":" not in k}
            bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()})
            bar.update()
    return pd.DataFrame(log)


def _batch(z: Tensor, samples: Samples, index: Tensor, mirror: Tensor | None) -> Batch:
    teacher = samples.teacher
    if teacher is not None:
        teacher = teacher[0 if mirror is None else mirror.long(), index]
    return Batch(z, samples.labels[index], samples.groups[index], index, teacher)


def _save(path: Path | None, net, optimizer, objective: Objective, log: list[dict]) -> None:
    if path is None:
        return
    state: dict[str, Any] = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "objective": objective.state(),
        "log": log,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
    partial.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What :func:`fit` saved at ``path``; None, said on the terminal, where it is damaged.

    Nothing in the file is executed, and nothing is read whose checksum does not fit.
    """
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        print(f"relufair: {path} is damaged: starting over", file=sys.stderr)
        return None
    return torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)


def _resume(path: Path | None, net, optimizer, objective: Objective) -> list[dict]:
    """Load the checkpoint, if there is one, and return the log so far. Runs no code from it."""
    state = read_checkpoint(path) if path and path.exists() else None
    if state is None:
        return []
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    objective.restore(state["objective"])
    return state["log"]
