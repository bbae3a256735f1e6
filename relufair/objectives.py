"""What the training loop minimises. Each objective is a small class around ``loss(batch)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Batch:
    """What an objective may look at: a mini-batch after the forward pass.

    Attributes:
        logits: (n, classes), float32.
        labels, groups: (n,), int64.
        index: (n,), the samples' places in the training set.
        teacher: (n, classes), the teacher's logits, or None.
    """

    logits: Tensor
    labels: Tensor
    groups: Tensor
    index: Tensor
    teacher: Tensor | None = None


class Objective(ABC):
    """Base class: what the loop calls, and what a checkpoint keeps."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise on ``batch``."""

    def after_step(self) -> bool:
        """Called after each optimizer step; returning True ends the training there."""
        return False

    def end_epoch(self) -> dict[str, float]:
        """Called after each epoch; returns what the log shall show of it."""
        return {}

    def state(self) -> dict[str, Any]:
        """What must survive an interruption: numbers and tensors."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 (most have no state)
        """Take up :meth:`state` again."""


class CrossEntropy(Objective):
    """The mean cross-entropy."""

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(batch.logits, batch.labels)


class Distillation(Objective):
    r"""Cross-entropy plus distillation from the teacher (Hinton et al., 2015), as in SNL.

    .. math:: h\,\mathrm{CE}(z, y) + s\,T^2\,\mathrm{KL}\bigl(\sigma(z_t/T)\,\|\,\sigma(z/T)\bigr)

    with the softmax :math:`\sigma`, both terms averaged over the batch.

    Args:
        temperature: T, softening both distributions.
        hard, soft: the weights h and s; SNL's are 1 and 1, DeepReDuce's 0.5 and 0.5.
    """

    def __init__(self, temperature: float, hard: float = 1.0, soft: float = 1.0):
        self.temperature, self.hard, self.soft = temperature, hard, soft

    def loss(self, batch: Batch) -> Tensor:
        t = self.temperature
        soft = F.kl_div(
            F.log_softmax(batch.logits / t, 1),
            F.log_softmax(batch.teacher / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return self.hard * F.cross_entropy(batch.logits, batch.labels) + self.soft * t**2 * soft
