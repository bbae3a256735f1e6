"""Putting masks on a network: torch.fx records what it does, and masks what stands in its ReLUs' place.

What the record cannot hold would be missing from the masked network, silently. So it is looked for, and
a network that does such a thing is refused, with the reason.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._python_dispatch import TorchDispatchMode

from relufair.masks import MaskedReLU, sites


def masked(net: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """A copy of ``net`` with a masked ReLU, all masks at 1, at each call of a ReLU.

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
