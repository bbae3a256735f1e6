r"""What the last training of a linearized network may minimise: the paper's remedy and its rivals.

Each starts from the same weights and masks, sees the same batches, and has one strength.

===================== ============= ==================================================================
name                  strength      what it does
===================== ============= ==================================================================
``plain``             none          distillation, as SNL and DeepReDuce have it
``algorithm1``        :math:`\mu`   pulls each group's loss to everyone's (Section 6, Algorithm 1)
``one_sided``         :math:`\mu`   the same, only for groups whose loss is above everyone's
``detached``          :math:`\mu`   the same, with a penalty without gradient, as released
``group_dro``         :math:`\eta`  weighs groups by how they fare (Sagawa et al., 2020)
``inverse_frequency`` power         weighs a sample by its group's size to this negative power
``class_balanced``    :math:`\beta` weighs by the group's effective size (Cui et al., 2019)
``logit_adjustment``  :math:`\tau`  shifts the logits by the classes' shares (Menon et al., 2021)
``cvar``              share         minimises this worst share of the losses (Levy et al., 2020)
``jtt``               factor        weighs what the plain network gets wrong (Liu et al., 2021)
``swa``               start         averages the weights from this share of the epochs on, at a
                                    constant rate (Izmailov et al., 2018)
===================== ============= ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from relufair import training
from relufair.config import Remedy
from relufair.objectives import (
    Batch,
    CVaR,
    Detached,
    Distillation,
    GroupDRO,
    LogitAdjusted,
    Objective,
    OneSided,
    Parity,
    Weighted,
)  # fmt: skip
from relufair.training import Samples


def objective(
    remedy: Remedy,
    samples: Samples,
    classes: int,
    groups: int,
    first: Callable[[], nn.Module],
    **loss: float,
) -> Distillation:
    """What ``remedy`` minimises.

    Args:
        remedy: which, and how strongly.
        samples: the training set.
        classes, groups: how many there are.
        first: gives the network that plain training makes of the same masks; only JTT asks.
        loss: the arguments of :class:`relufair.objectives.Distillation`.
    """
    strength, place = remedy.strength, {"device": samples.labels.device, "dtype": torch.float32}
    if remedy.per_class:
        loss["soft"] = loss.get("soft", 1.0) / classes
    match remedy.name:
        case "algorithm1" | "one_sided" | "detached" | "group_dro" | "cvar":
            return SIMPLE[remedy.name](strength, groups, **loss)
        case "logit_adjustment":
            shares = _sizes(samples.labels, classes) / len(samples)
            return LogitAdjusted(strength, shares.to(**place), groups, **loss)
        case "inverse_frequency" | "class_balanced":
            by_group = SIZES[remedy.name](_sizes(samples.groups, groups), strength).to(**place)
            return Weighted(_mean_one(by_group[samples.groups]), groups, **loss)
        case "jtt":
            wrong = training.logits(first(), samples).argmax(1) != samples.labels
            return Weighted(_mean_one(torch.where(wrong, strength, 1.0)), groups, **loss)
    return Distillation(**loss)  # plain, and what weights are averaged around


SIMPLE = {
    "algorithm1": Parity, "one_sided": OneSided, "detached": Detached, "group_dro": GroupDRO,
    "cvar": CVaR,
}  # fmt: skip
# The weight of a group's sample, from the groups' sizes and the strength.
SIZES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "inverse_frequency": lambda sizes, power: sizes**-power,
    "class_balanced": lambda sizes, beta: (1 - beta) / (1 - beta**sizes),
}


def _sizes(places: Tensor, count: int) -> Tensor:
    """How many samples there are at each of ``count`` places; on the CPU, for its float64."""
    return torch.bincount(places.cpu(), minlength=count).double()


def _mean_one(weights: Tensor) -> Tensor:
    return weights / weights.mean()


class Averaging(Objective):
    """Stochastic weight averaging around an objective: the mean of the weights after late epochs.

    Args:
        inner: what is minimised.
        net: what is trained.
        start: share of the epochs after which averaging begins.
        epochs: how many there are.
    """

    def __init__(self, inner: Distillation, net: nn.Module, start: float, epochs: int):
        self.inner, self.net, self.epochs = inner, net, epochs
        # The last always counts; 0.29 * 100 is a little below 29.
        self.first = min(math.floor(start * epochs + 1e-9), epochs - 1)
        self.mean, self.epoch = AveragedModel(net), 0

    def loss(self, batch: Batch) -> Tensor:
        return self.inner.loss(batch)

    def end_epoch(self) -> dict[str, float]:
        if self.epoch >= self.first:
            self.mean.update_parameters(self.net)
        self.epoch += 1
        return self.inner.end_epoch()

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean.state_dict(), "epoch": self.epoch}

    def restore(self, state: dict[str, Any]) -> None:
        self.mean.load_state_dict(state["mean"])
        self.epoch = state["epoch"]

    def finish(self, samples: Samples, batch: int) -> None:
        """Give the network the mean weights, and batch norms the statistics that these have.

        They are those of batches as in training, and of the same ones in every run.
        """
        order = training.batches(len(samples), batch, np.random.default_rng(0))
        index = (torch.from_numpy(chosen).to(samples.labels.device) for chosen in order)
        update_bn((samples.inputs(chosen) for chosen in index), self.mean)
        self.net.load_state_dict(self.mean.module.state_dict())
