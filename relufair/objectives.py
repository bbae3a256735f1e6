"""What the training loop minimises. Each objective is a small class around ``loss(batch)``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
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
        t, (z, teacher) = self.temperature, self._softened(batch)
        soft = F.kl_div(z, teacher, reduction="batchmean", log_target=True)
        return self.hard * F.cross_entropy(batch.logits, batch.labels) + self.soft * t**2 * soft

    def each(self, batch: Batch) -> Tensor:
        """The same loss of each sample (n,); its mean is that of ``loss``, up to rounding."""
        t, (z, teacher) = self.temperature, self._softened(batch)
        soft = F.kl_div(z, teacher, reduction="none", log_target=True).sum(1)
        return self.hard * self.hardness(batch) + self.soft * t**2 * soft

    def hardness(self, batch: Batch) -> Tensor:
        """The cross-entropy of each sample (n,)."""
        return F.cross_entropy(batch.logits, batch.labels, reduction="none")

    def _softened(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student and teacher at the temperature, each (n, classes)."""
        t = self.temperature
        return F.log_softmax(batch.logits / t, 1), F.log_softmax(batch.teacher / t, 1)


class Grouped(Distillation):
    """Distillation that watches the loss of each group; the base of all that follow.

    Subclasses say in ``combine`` what is minimised. The log shows, after each epoch, the mean
    loss of each group over the epoch's own batches, with the weights as they were at each batch.

    Args:
        groups: how many groups there are.
        temperature, hard, soft: see :class:`Distillation`.
    """

    def __init__(self, groups: int, **loss: float):
        super().__init__(**loss)
        self.seen = torch.zeros(2, groups)  # sums of losses, and samples, by group

    def loss(self, batch: Batch) -> Tensor:
        each = self.each(batch)
        sums, counts = _by_group(each, batch.groups, self.seen.shape[1])
        self.seen = self.seen.to(each.device) + torch.stack([sums.detach(), counts])
        return self.combine(batch, each, sums / counts.clamp(min=1), counts > 0)

    @abstractmethod
    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        """What to minimise.

        Args:
            batch: the mini-batch.
            each: (n,), the loss of each sample.
            means: (groups,), the mean loss of each group in the batch, 0 where it has no sample.
            there: (groups,), whether it has one.
        """

    def end_epoch(self) -> dict[str, float]:
        means = self.seen[0] / self.seen[1]  # nan, as it should be, for a group without a sample
        self.seen = torch.zeros_like(self.seen)
        return {f"loss:{a}": value for a, value in enumerate(means.tolist())}


def _by_group(each: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum of ``each`` (n,), and the number of samples, by group (count,); without a loop.

    As a product of matrices, for scattering adds in an order that changes from run to run on a GPU.
    """
    member = (groups[:, None] == torch.arange(count, device=groups.device)).to(each.dtype)
    return each @ member, member.sum(0)


class Parity(Grouped):
    r"""Algorithm 1 of the paper: a multiplier a group pulls its loss to everyone's.

    A step goes down the gradient of

    .. math:: L(B) + \sum_a \lambda_a \rho_a, \qquad \rho_a = |L(B) - L_a(B)|,

    with the mean loss :math:`L(B)` of the batch and :math:`L_a(B)` of the group's samples in it; a
    group without one does not count. After each epoch :math:`\lambda_a` grows by :math:`\mu` times the
    same gap over the whole epoch. Its losses are those that the epoch's own batches had, so they
    lag half an epoch behind those of a pass of its own over the training set.

    Args:
        mu: the step of the multipliers, :math:`\mu`, at least 0.
        groups, temperature, hard, soft: see :class:`Grouped`.
    """

    def __init__(self, mu: float, groups: int, **loss: float):
        super().__init__(groups, **loss)
        self.mu, self.multipliers = mu, torch.zeros(groups)

    def loss(self, batch: Batch) -> Tensor:
        self.multipliers = self.multipliers.to(batch.logits.device)
        return super().loss(batch)

    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        whole = Distillation.loss(self, batch)  # to the bit what plain finetuning minimises
        return whole + (self.multipliers * self.violations(means, each.mean()) * there).sum()

    def violations(self, means: Tensor, mean: Tensor) -> Tensor:
        r"""How far each group is off, :math:`\rho_a` (groups,), from the mean losses."""
        return (mean - means).abs()

    def growth(self, means: Tensor, mean: Tensor) -> Tensor:
        r"""What the multipliers grow by over :math:`\mu` (groups,), from the epoch's mean losses."""
        return self.violations(means, mean)

    def end_epoch(self) -> dict[str, float]:
        sums, counts = self.seen
        off = self.growth(sums / counts, sums.sum() / counts.sum()).nan_to_num()
        used = {f"multiplier:{a}": value for a, value in enumerate(self.multipliers.tolist())}
        violated = {f"violation:{a}": value for a, value in enumerate(off.tolist())}
        self.multipliers = self.multipliers + self.mu * off
        return super().end_epoch() | violated | used

    def state(self) -> dict[str, Any]:
        return {"multipliers": self.multipliers}

    def restore(self, state: dict[str, Any]) -> None:
        self.multipliers = state["multipliers"]


class OneSided(Parity):
    """Algorithm 1 that leaves the groups alone whose loss is below everyone's."""

    def violations(self, means: Tensor, mean: Tensor) -> Tensor:
        return F.relu(means - mean)  # whose derivative at equality is 0


class Detached(Parity):
    """The mitigation as released: the penalty is a number without a gradient.

    Besides, the multipliers grow with the sum of the batches' gaps, not with the epoch's gap.
    """

    def __init__(self, mu: float, groups: int, **loss: float):
        super().__init__(mu, groups, **loss)
        self.gaps = torch.zeros(groups)

    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        gaps = (self.violations(means, each.mean()) * there).detach()
        self.gaps = self.gaps.to(gaps.device) + gaps
        return Distillation.loss(self, batch) + (self.multipliers * gaps).sum()

    def growth(self, means: Tensor, mean: Tensor) -> Tensor:
        gaps, self.gaps = self.gaps, torch.zeros_like(self.gaps)
        return gaps


class GroupDRO(Grouped):
    r"""Group DRO (Sagawa et al., 2020): the worse a group fares, the more it weighs.

    At each step :math:`q_a \propto q_a \exp(\eta L_a(B))`, then :math:`\sum_a q_a L_a(B)` is minimised.
    A group without a sample in the batch has the loss 0 there, as in the authors' code.

    Args:
        eta: the step of the weights, :math:`\eta`, at least 0.
        groups, temperature, hard, soft: see :class:`Grouped`.
    """

    def __init__(self, eta: float, groups: int, **loss: float):
        super().__init__(groups, **loss)
        self.eta = eta
        self.log_q = torch.zeros(groups).log_softmax(0)  # the log, lest a small weight become 0

    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        grown = self.log_q.to(means.device) + self.eta * means.detach()
        self.log_q = grown.log_softmax(0)
        return self.log_q.exp() @ means

    def end_epoch(self) -> dict[str, float]:
        weights = enumerate(self.log_q.exp().tolist())
        return super().end_epoch() | {f"weight:{a}": q for a, q in weights}

    def state(self) -> dict[str, Any]:
        return {"log_q": self.log_q}

    def restore(self, state: dict[str, Any]) -> None:
        self.log_q = state["log_q"]


class Weighted(Grouped):
    """Each sample's loss times its weight.

    Args:
        weights: (n,), of the training set's samples; of mean 1, so that the rate keeps its meaning.
        groups, temperature, hard, soft: see :class:`Grouped`.
    """

    def __init__(self, weights: Tensor, groups: int, **loss: float):
        super().__init__(groups, **loss)
        self.weights = weights

    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        return (self.weights[batch.index] * each).mean()


class LogitAdjusted(Grouped):
    r"""Logit adjustment (Menon et al., 2021): rare classes must win by a margin.

    The cross-entropy is taken of :math:`z + \tau \log \pi` with the classes' shares :math:`\pi` of
    the training set; the distillation term is as ever.

    Args:
        tau: :math:`\tau`, at least 0.
        shares: (classes,), :math:`\pi`.
        groups, temperature, hard, soft: see :class:`Grouped`.
    """

    def __init__(self, tau: float, shares: Tensor, groups: int, **loss: float):
        super().__init__(groups, **loss)
        self.shift = torch.xlogy(tau, shares)  # 0, not nan, for no share and a tau of 0

    def hardness(self, batch: Batch) -> Tensor:
        return F.cross_entropy(batch.logits + self.shift, batch.labels, reduction="none")

    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        return each.mean()


class CVaR(Grouped):
    """The mean of the largest losses in the batch (Levy et al., 2020); who is in which group is moot.

    Args:
        share: of the batch that counts, above 0; 1 is plain finetuning.
        groups, temperature, hard, soft: see :class:`Grouped`.
    """

    def __init__(self, share: float, groups: int, **loss: float):
        super().__init__(groups, **loss)
        self.share = share

    def combine(self, batch: Batch, each: Tensor, means: Tensor, there: Tensor) -> Tensor:
        worst = math.ceil(self.share * len(each) - 1e-9)  # 0.55 * 100 is a little above 55
        return each.topk(worst).values.mean()
