r"""Masked ReLUs: the activation that is part ReLU, part identity, and the networks that carry it.

A mask :math:`\alpha` interpolates, unit by unit, between a ReLU and the identity (Cho et al., 2022):

.. math:: \alpha\,\mathrm{relu}(x) + (1-\alpha)\,x \;=\; \max(x,0) + (1-\alpha)\min(x,0).

So a masked ReLU is a leaky ReLU whose slope on the negative side, :math:`1-\alpha`, belongs to each
(channel, row, column). At :math:`\alpha=1` it is the ReLU, bit for bit, and at :math:`\alpha=0` the
identity.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._python_dispatch import TorchDispatchMode


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


# Putting masks on a network


def masked(net: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """A copy of ``net`` with a :class:`MaskedReLU`, all masks at 1, at each call of a ReLU.

    The network may come from anywhere: torch.fx records the operations of its forward pass, and the
    copy follows this record with the ReLUs replaced. Calls of an ``nn.ReLU`` count, and those of
    ``F.relu``, ``torch.relu`` and ``x.relu()``, in place or not. The masks take the name of the
    ``nn.ReLU``; at further calls of one module a number follows (``relu``, ``relu_2``), and those of
    a function are named ``relu`` in the module that calls it. All other parameters and buffers keep
    their names. Other activations stay, and so does a ReLU written as, say, ``x.clamp(min=0)``.

    The copy can be trained, moved, deep-copied, and saved by its ``state_dict``. It works as a whole:
    of its inner modules only those of ``torch.nn`` and the masked ReLUs can be called or hooked.

    Args:
        net: a network that maps a batch of images to one tensor.
        image_shape: shape of one image, without the batch dimension.

    Raises:
        ValueError: saying why, if there is no ReLU, if torch.fx cannot record the network, or if the
            record would leave out some of what the network does.
    """
    if isinstance(net, fx.GraphModule) or sites(net):
        raise ValueError(_refusal(net, "it is a graph or has masks: give the network it came from"))
    device = next(net.parameters(), torch.empty(0)).device
    net = copy.deepcopy(net).cpu()
    plain = copy.deepcopy(net)
    expected = [_step(plain, image_shape, training) for training in (False, True)]
    modes = {name: module.training for name, module in net.named_modules()}
    graph, entered = _record(plain, net)
    _place(net, graph, _shapes(net, graph, image_shape))
    net.forward = functools.partial(type(fx.GraphModule(net, graph)).forward, net)
    for module in entered:
        vars(module).update(dict.fromkeys(CLOSED, _closed))
    _check(net, image_shape, expected)
    for name, module in net.named_modules():
        module.training = modes.get(name, modes[""])
    return net.to(device)


def _refusal(net: nn.Module, reason: str) -> str:
    return f"{type(net).__name__} cannot be masked: {reason}"


class _Tracer(fx.Tracer):
    """Enters all modules but those of ``torch.nn``, and ``nn.ReLU``, which is a call of F.relu."""

    # What forward does to a buffer is then recorded, instead of being done here and never again.
    proxy_buffer_attributes = True

    def __init__(self):
        super().__init__()
        self.entered: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is not nn.ReLU and super().is_leaf_module(m, module_qualified_name):
            return True
        if m._forward_hooks or m._forward_pre_hooks:
            raise ValueError(f"{module_qualified_name} has a hook, which would never be called")
        self.entered.append(m)
        return False


def _record(plain: nn.Module, net: nn.Module) -> tuple[fx.Graph, list[nn.Module]]:
    """The operations of ``net`` as a graph, the same in both modes, and the modules entered."""
    (graph, entered), (other, _) = _trace(net.train()), _trace(plain.eval())
    codes = [g.python_code("self").src.splitlines() for g in (graph, other)]
    for lines in itertools.zip_longest(*codes, fillvalue=""):
        train, evaluation = (line.partition(";")[0].strip() for line in lines)
        if train != evaluation:
            reason = f"its forward is {train!r} in training, {evaluation!r} in evaluation"
            raise ValueError(_refusal(net, f"{reason}: use a module such as nn.Dropout for that"))
    return graph, entered


def _trace(net: nn.Module) -> tuple[fx.Graph, list[nn.Module]]:
    tracer, (before, drawn) = _Tracer(), _surroundings(net)
    try:
        graph = tracer.trace(net, _defaults(net))
    except Exception as error:  # whatever the code of the network may raise
        raise ValueError(_refusal(net, f"torch.fx cannot record it: {error}")) from error
    after, redrawn = _surroundings(net)
    if changed := [name for name, value in after.items() if value is not before.get(name)]:
        raise ValueError(_refusal(net, f"its forward sets {', '.join(changed)}"))
    if drawn != redrawn:
        raise ValueError(_refusal(net, "its forward draws random numbers outside a module"))
    return graph, tracer.entered


def _defaults(net: nn.Module) -> dict[str, Any]:
    """The arguments of forward beside the images: the record holds for their defaults."""
    parameters = inspect.signature(net.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _surroundings(net: nn.Module) -> tuple[dict[str, Any], tuple]:
    """What the Python code of a forward pass might change: attributes, and random generators."""
    attributes = {
        f"{name}.{key}".lstrip("."): value
        for name, module in net.named_modules()
        for key, value in [*vars(module).items(), *module._buffers.items()]
        if not key.startswith("_tensor_constant")  # set by the tracer
    }
    # A forward pass that draws from NumPy's old global generator is what we are looking for.
    generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2:]  # noqa: NPY002
    return attributes, generators


RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}


def _shapes(
    net: nn.Module, graph: fx.Graph, image_shape: tuple[int, ...]
) -> dict[fx.Node, tuple[int, ...]]:
    """The calls of a ReLU in ``graph``, and the shape of one sample at each."""
    functions = (node for node in graph.nodes if node.op in ("call_function", "call_method"))
    calls = [node for node in functions if node.target in RELUS]
    probe = ShapeProp(fx.GraphModule(copy.deepcopy(net).eval(), graph))
    two, three = (_run(probe, calls, _images(net, batch, image_shape)) for batch in (2, 3))
    for call, shape in two.items():
        if (shape, three[call]) != ((2, *shape[1:]), (3, *shape[1:])):
            reason = f"a ReLU acts on {shape} for 2 images and {three[call]} for 3"
            raise ValueError(_refusal(net, f"{reason}: masks need one shape for every sample"))
    return {call: shape[1:] for call, shape in two.items()}


@torch.no_grad()
def _run(probe: ShapeProp, calls: list[fx.Node], images: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    probe.propagate(images)
    return {call: tuple(call.meta["tensor_meta"].shape) for call in calls}


def _images(net: nn.Module, n: int, image_shape: tuple[int, ...]) -> Tensor:
    dtype = next(net.parameters(), torch.empty(0)).dtype
    return torch.randn(n, *image_shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _place(net: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
    """Make every ReLU of ``graph`` the call of a new masked one in ``net``."""
    now: dict[fx.Node, fx.Node] = {}  # what in-place ReLUs overwrote, and what stands there since
    for node in graph.nodes:
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda n: now.get(n, n))
        if node in shapes:
            x, name = node.all_input_nodes[0], _name(net, node)
            home, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(home), leaf, MaskedReLU(shapes[node]))
            if _in_place(node):
                now.update({old: node for old in [x, *(k for k, v in now.items() if v is x)]})
            node.op, node.target, node.args, node.kwargs = "call_module", name, (x,), {}


def _in_place(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", node.target)
    return name.endswith("_") or bool(node.kwargs.get("inplace"))


def _name(net: nn.Module, node: fx.Node) -> str:
    """Where in ``net`` the masks of this call go: to the nn.ReLU's place, or a free one by it."""
    path = next((path for path, _ in reversed(node.meta.get("nn_module_stack", {}).values())), "")
    caller = net.get_submodule(path)
    if path and type(caller) is nn.ReLU:
        return path
    first = path if isinstance(caller, MaskedReLU) else f"{path}.relu".lstrip(".")
    further = (f"{first}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([first], further) if not _taken(net, name))


def _taken(net: nn.Module, name: str) -> bool:
    home, _, leaf = name.rpartition(".")
    return hasattr(net.get_submodule(home), leaf)


CLOSED = (
    "forward",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
)


def _closed(*_, **__) -> None:
    """Stands in for what would silently have no masks, or no effect, in an inner module."""
    raise RuntimeError(
        "this module is a part of a masked network, which works only as a whole: call the network, "
        "and hook its masked ReLUs or its modules of torch.nn"
    )


class _CountReLUs(TorchDispatchMode):
    """Counts the plain ReLUs that are computed, wherever they are written."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.relu, torch.ops.aten.relu_)
        return func(*args, **(kwargs or {}))


def _check(net: nn.Module, image_shape: tuple[int, ...], expected: list[dict]) -> None:
    """Compare ``net``, all its masks at 1, with what is ``expected`` in evaluation and training.

    Raises:
        ValueError: if there is no ReLU, if some are out of reach, or if the output, the gradient of
            the images or a buffer differs, as where a part of forward is meant to have no gradient,
            which torch.fx does not record.
    """
    for training, before in enumerate(expected):
        with _CountReLUs() as seen:
            now = _step(net, image_shape, bool(training))
        if seen.count:
            reason = f"{seen.count} of its ReLUs are inside modules or functions that torch.fx does"
            raise ValueError(_refusal(net, f"{reason} not enter, like nn.TransformerEncoderLayer"))
        if changed := [name for name in before if not _equal(before[name], now[name])]:
            reason = f"torch.fx did not record all it does: {changed[0]} would differ in"
            mode = "training" if training else "evaluation"
            raise ValueError(_refusal(net, f"{reason} {mode}"))
    if not sites(net):
        raise ValueError(_refusal(net, "it has no ReLU"))


def _equal(a: Tensor, b: Tensor) -> bool:
    close = torch.allclose(a.double(), b.double(), equal_nan=True)
    return close and a.requires_grad == b.requires_grad


def _step(net: nn.Module, image_shape: tuple[int, ...], training: bool) -> dict[str, Tensor]:
    """The output for two images, their gradient, and the buffers afterwards; ``net`` keeps its own."""
    x = _images(net, 2, image_shape).requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        out = torch.func.functional_call(net.train(training), buffers, (x,))
        if not isinstance(out, Tensor):
            reason = f"it returns a {type(out).__name__}, and must return one tensor"
            raise ValueError(_refusal(net, reason))
        (grad,) = torch.autograd.grad(out.float().square().sum(), x, materialize_grads=True)
    return {"the output": out, "the gradient of the images": grad, **buffers}
