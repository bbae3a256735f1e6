r"""Masked ReLUs: the activation that is part ReLU, part identity; to count, to choose and to fix.

A mask :math:`\alpha` interpolates, unit by unit, between a ReLU and the identity (Cho et al., 2022):

.. math:: \alpha\,\mathrm{relu}(x) + (1-\alpha)\,x \;=\; \max(x,0) + (1-\alpha)\min(x,0).

So a masked ReLU is a leaky ReLU whose slope on the negative side, :math:`1-\alpha`, belongs to each
(channel, row, column). At :math:`\alpha=1` it is the ReLU, bit for bit, and at :math:`\alpha=0` the
identity.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def leaky(x: Tensor, slope: Tensor) -> Tensor:
    """``max(x, 0) + slope * min(x, 0)``; ``slope`` is broadcast over the batch.

    The derivative at 0 is ``slope``: 0 for the ReLU, 1 for the identity.
    """
    # Adding 0 makes the -0 of a zero slope the 0 of a ReLU.
    return torch.where(x > 0, x, slope * x + 0).to(x.dtype)


def _grad_input(grad: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, grad, slope * grad).to(x.dtype)


def _grad_both(grad: Tensor, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    to_slope = (grad * x.clamp_max(0)).sum(0, dtype=slope.dtype)
    return _grad_input(grad, x, slope), to_slope


@functools.cache
def _compiled(kernel: Callable, device: str, dtype: torch.dtype) -> Callable:
    """``kernel`` as one compiled loop, or as it is where no compiler works (said once).

    One kernel serves every layer: all arguments are matrices of any size (batch x units).
    """
    # On a machine without a GPU the compiler would remark on that at every start.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    fast = torch.compile(kernel, dynamic=True)
    probe, slope = torch.ones(4, 32, device=device, dtype=dtype), torch.ones(32, device=device)
    try:
        fast(*((probe, slope) if kernel is leaky else (probe, probe, slope)))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"masks run uncompiled, at about half the speed: {reason}", RuntimeWarning, stacklevel=2
        )
        return kernel
    return fast


def _call(kernel: Callable, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Run a compiled kernel outside the graph of derivatives, which is built by hand."""
    fast = _compiled(kernel, args[0].device.type, args[0].dtype)
    return fast(*(arg.detach() for arg in args))


class _FusedLeaky(torch.autograd.Function):
    """:func:`leaky` on matrices (batch, units) in one pass forward and one backward."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return _call(leaky, x, slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, slope = ctx.saved_tensors
        kernel = _grad_both if ctx.needs_input_grad[1] else _grad_input
        grads = _call(kernel, grad.contiguous(), x, slope)
        return grads if ctx.needs_input_grad[1] else (grads, None)


_fusing = False


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """Within this block large masked ReLUs run as compiled kernels: twice as fast, one derivative.

    Training uses it. Outside, masks are plain tensor operations that can be differentiated twice.
    """
    global _fusing
    before, _fusing = _fusing, True
    try:
        yield
    finally:
        _fusing = before


# Below this many elements, calling a compiled kernel costs more than it saves.
FUSE_FROM = 2**18


class MaskedReLU(nn.Module):
    """A ReLU with one mask a unit.

    Args:
        shape: shape of one sample at this site, e.g. ``(channels, rows, columns)``.

    Attributes:
        alpha: the masks, float32, of shape ``shape``; a trainable parameter that starts at 1, or,
            after :meth:`freeze`, a buffer of zeros and ones (so that no optimizer shrinks it).

    Raises:
        ValueError: for inputs of another size. Masks of one row and column would fit any.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(shape))

    def freeze(self, kept: Tensor) -> None:
        """Fix the masks: ReLU where the boolean ``kept`` is true, identity elsewhere."""
        if kept.shape != self.alpha.shape or kept.dtype != torch.bool:
            raise ValueError(
                f"kept is {kept.dtype} {tuple(kept.shape)}: must be torch.bool "
                f"{tuple(self.alpha.shape)}"
            )
        device = self.alpha.device
        del self.alpha
        self.register_buffer("alpha", kept.to(device, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.alpha.shape:
            raise ValueError(
                f"the masks were made for samples of {tuple(self.alpha.shape)}, here they are "
                f"{tuple(x.shape[1:])}: give masked() the shape of the images that you use"
            )
        slope = 1 - self.alpha
        if not (_fusing and x.numel() >= FUSE_FROM):
            return leaky(x, slope)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            # In memory the channels come last: a matrix of that order is a view, not a copy.
            rows = x.permute(0, 2, 3, 1)
            flat = _FusedLeaky.apply(rows.flatten(1), slope.permute(1, 2, 0).flatten())
            return flat.view(rows.shape).permute(0, 3, 1, 2)
        return _FusedLeaky.apply(x.flatten(1), slope.flatten()).view(x.shape)

    def extra_repr(self) -> str:
        return f"shape={tuple(self.alpha.shape)}, trained={isinstance(self.alpha, nn.Parameter)}"


def sites(net: nn.Module) -> dict[str, MaskedReLU]:
    """The masked ReLUs of ``net`` by name, in order."""
    return {name: m for name, m in net.named_modules() if isinstance(m, MaskedReLU)}


def total(net: nn.Module) -> int:
    """Number of ReLU units R in ``net``, kept or not."""
    return sum(site.alpha.numel() for site in sites(net).values())


def count(net: nn.Module, threshold: float = 0.0) -> int:
    """Number of ReLU units r still kept: masks above ``threshold``."""
    return int(sum((site.alpha > threshold).sum() for site in sites(net).values()))


def freeze(net: nn.Module, kept: dict[str, Tensor]) -> nn.Module:
    """Fix all masks of ``net`` in place to the boolean tensors ``kept``, by site. Returns ``net``."""
    for name, site in sites(net).items():
        site.freeze(kept[name])
    return net


def top(scores: dict[str, Tensor], units: int) -> dict[str, Tensor]:
    """By site, the booleans that keep the ``units`` highest of all ``scores``; ties as they come."""
    values = torch.cat([score.flatten() for score in scores.values()])
    if not 0 <= units <= len(values):
        raise ValueError(
            f"units={units!r}: must be between 0 and {len(values)}, the ReLUs there are"
        )
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[values.argsort(descending=True, stable=True)[:units]] = True
    parts = kept.split([score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def largest(net: nn.Module, units: int) -> dict[str, Tensor]:
    """By site, the booleans that keep the ``units`` largest masks of the whole network."""
    return top({name: site.alpha.detach() for name, site in sites(net).items()}, units)


def units(budget: float, relus: int) -> int:
    """How many of ``relus`` a budget (a share between 0 and 1) allows: rounded down, never above.

    Raises:
        ValueError: if the budget is no share, or is positive but would leave no ReLU at all.

    >>> units(0.02, 491_520)
    9830
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"budget={budget!r}: must be a share between 0 and 1, e.g. 0.02 for 2 %")
    kept = int(budget * relus * (1 + 1e-12))
    if budget and not kept:
        raise ValueError(
            f"budget={budget!r}: would leave none of the {relus} ReLUs. The smallest is "
            f"{1 / relus:.2g}; ask for 0 if you want the fully linear network"
        )
    return kept
