"""Controls: which ReLUs to keep when nothing, or only a first guess, says which.

Drawn at random, or those of largest effect: neither needs a search. What a method such as SNL adds
shows against them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relufair import masks
from relufair.training import Samples


def random(net: nn.Module, units: int, seed: int) -> dict[str, Tensor]:
    """By site of the masked ``net``, booleans that keep ``units`` units, every set as likely."""
    shapes = {name: site.alpha.shape for name, site in masks.sites(net).items()}
    order = torch.randperm(masks.total(net), generator=torch.Generator().manual_seed(seed))
    parts = order.split([shape.numel() for shape in shapes.values()])
    ranks = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
    return masks.top(ranks, units)


def effects(net: nn.Module, samples: Samples, *, size: int = 256) -> dict[str, Tensor]:
    r"""By site: how much linearizing each unit alone changes the loss, to first order.

    The identity in place of the ReLU adds :math:`\min(x, 0)` to the unit's output. So the loss of one
    sample changes by about :math:`g \min(x, 0)`, with the derivative :math:`g` of its cross-entropy by
    that output. The effect is the mean of the absolute value over the samples.

    Args:
        net: a masked network, all masks at 1, on the samples' device; left in evaluation mode.
        samples: the training set.
        size: samples a pass.
    """
    net.eval()
    sums = {name: torch.zeros_like(s.alpha.detach()) for name, s in masks.sites(net).items()}
    hooks = [
        site.register_forward_hook(_adding_to(sums[name]))
        for name, site in masks.sites(net).items()
    ]
    with torch.enable_grad():
        for index in torch.arange(len(samples), device=samples.labels.device).split(size):
            x = samples.inputs(index).requires_grad_()
            # In evaluation mode samples do not mix: the sum's derivative is that of each sample.
            loss = F.cross_entropy(net(x), samples.labels[index], reduction="sum")
            torch.autograd.grad(loss, x)
    for hook in hooks:
        hook.remove()
    return {name: total / len(samples) for name, total in sums.items()}


def _adding_to(total: Tensor) -> Callable:
    """A hook on a site that adds its effects to ``total`` once the loss is differentiated."""

    def forward(_: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        removed = inputs[0].detach().clamp_max(0)

        def backward(grad: Tensor) -> None:
            total.add_((grad * removed).abs().sum(0))

        out.register_hook(backward)

    return forward
