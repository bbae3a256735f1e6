r"""Geometry of a network on a group: gradient, curvature, distance to the boundary, and a bound.

The paper explains who loses accuracy by three measures of the network with all its ReLUs: the norm of
the gradient of a group's loss, the largest eigenvalue of its Hessian (both in Theorem 4.4), and the
distance of its images to the decision boundary (Proposition 4.5). All are taken here on the mean
cross-entropy :math:`J(\theta; S^a)` of the *whole* group, or of a subsample of fixed size, so that they
do not depend on how many of a group meet in a mini-batch. What the released code computes instead is
in :func:`released_gradient_norm` and :func:`released_eigenvalue`.

The coordinates :math:`\theta` are the weights: every parameter but the masks, trained or frozen. The
network is in evaluation mode (and is left in it) and in float32. Images go through it in batches of
``size``, which bounds the memory and changes no result beyond rounding.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relufair import config, masks, training
from relufair.groups import ALL
from relufair.training import Samples

BATCH = 128
OVERSHOOT = 1.02  # of a step to the linearised boundary, to land behind it


def weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """The coordinates: all parameters of ``net`` by name, without the masks."""
    ours = {id(site.alpha) for site in masks.sites(net).values()}
    return {name: p for name, p in net.named_parameters() if id(p) not in ours}


def layers(net: nn.Module) -> dict[str, list[str]]:
    """Names of the weights by layer (a module with weights of its own); the last is all of them."""
    own: dict[str, list[str]] = {}
    for name in weights(net):
        own.setdefault(name.rpartition(".")[0], []).append(name)
    return own | {ALL: list(weights(net))}


def members(samples: Samples) -> dict[int, Tensor]:
    """By group, the places of its samples, in order."""
    return {g: (samples.groups == g).nonzero()[:, 0] for g in samples.groups.unique().tolist()}


def subsample(index: Tensor, n: int, seed: int) -> Tensor:
    """``n`` of ``index`` without replacement, in order, so that groups of different size compare.

    Raises:
        ValueError: if there are fewer.
    """
    if not 1 <= n <= len(index):
        raise ValueError(f"n={n!r}: must be a whole number from 1 to the {len(index)} samples here")
    drawn = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:n]
    return index[drawn.sort().values.to(index.device)]


@dataclass(frozen=True)
class _Feed:
    """The images and labels at ``index`` in batches; can be gone through again and again."""

    net: nn.Module
    samples: Samples
    index: Tensor
    size: int

    def __post_init__(self) -> None:
        config.whole("size", self.size, 1)
        if not len(self.index):
            raise ValueError("index: must name at least one sample")
        self.net.eval()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        wide = training.widest(self.net) >= 16
        layout = torch.channels_last if wide else torch.contiguous_format
        for part in self.index.split(self.size):
            x = self.samples.inputs(part).contiguous(memory_format=layout)
            yield x, self.samples.labels[part]


# ------------------------------------------------------------------------------- first derivatives


def gradient(
    net: nn.Module, samples: Samples, index: Tensor, size: int = BATCH
) -> dict[str, Tensor]:
    """Gradient of the mean loss over the samples at ``index``, by name of the weight.

    It is the sum over all samples divided by their number, not a mean over mini-batches.
    """
    theta = weights(net)
    total = {name: torch.zeros_like(p) for name, p in theta.items()}
    for x, y in _Feed(net, samples, index, size):
        loss = F.cross_entropy(net(x), y, reduction="sum")
        parts = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
        for sum_, part in zip(total.values(), parts, strict=True):
            sum_ += part
    return {name: sum_ / len(index) for name, sum_ in total.items()}


def _norm(tensors: dict[str, Tensor], names: list[str]) -> float:
    return torch.stack([tensors[name].detach().norm() for name in names]).norm().item()


def layer_norms(net: nn.Module, samples: Samples, size: int = BATCH) -> pd.DataFrame:
    r"""Norms of each group's gradient, layer by layer, in one pass over the images.

    A batch norm undoes the scale of the weights before it. Multiplying these (and the running
    statistics) by c leaves the network as it is and divides their gradient by c. So norms of
    gradients compare between networks only after multiplication by the norm of the weights.

    Returns:
        A row a group × layer, ``all`` being the whole network, with the columns ``group``, ``n``,
        ``layer``, ``gradient`` (:math:`\|g_l\|`), ``weights`` (:math:`\|\theta_l\|`) and ``product``
        of the two, which for a layer is free of scale.
    """
    theta, rows = weights(net), []
    for group, index in members(samples).items():
        own = gradient(net, samples, index, size)
        for layer, names in layers(net).items():
            about = {"group": group, "n": len(index), "layer": layer}
            rows.append(about | {"gradient": _norm(own, names), "weights": _norm(theta, names)})
    table = pd.DataFrame(rows)
    return table.assign(product=table["gradient"] * table["weights"])


def gradient_norms(net: nn.Module, samples: Samples, size: int = BATCH) -> pd.DataFrame:
    r"""Norm of the gradient of each group's mean loss, :math:`\|g_a\|` (Figs. 3, 8, 13).

    Returns:
        A row a group with the columns ``group``, ``n`` and ``gradient``.
    """
    table = layer_norms(net, samples, size)
    return table.loc[table["layer"] == ALL, ["group", "n", "gradient"]].reset_index(drop=True)


def weight_change(before: nn.Module, after: nn.Module) -> pd.DataFrame:
    r"""How far the weights moved, :math:`\|\tilde\theta - \theta\|` (Fig. 8, left).

    Masks and the statistics of batch norms are no weights.

    Returns:
        A row a layer, the last one ``all``, with the columns ``layer``, ``change`` and ``weights``
        (the norm before).

    Raises:
        ValueError: if the networks have not the same weights.
    """
    a, b = weights(before), weights(after)
    if {k: p.shape for k, p in a.items()} != {k: p.shape for k, p in b.items()}:
        raise ValueError("before, after: must have weights of the same names and shapes")
    moved = {name: b[name] - a[name] for name in a}
    return pd.DataFrame(
        {"layer": layer, "change": _norm(moved, names), "weights": _norm(a, names)}
        for layer, names in layers(before).items()
    )


# --------------------------------------------------------------------------------------- curvature


@dataclass(frozen=True)
class Eigenvalue:
    r"""An extreme eigenvalue of a symmetric matrix H, by Lanczos.

    Attributes:
        value: the Ritz value :math:`\lambda`.
        residual: :math:`\|Hv - \lambda v\|` for its unit vector; some eigenvalue is this close.
        error: estimate of how far the value is from the eigenvalue, at most ``residual``.
        lowest: the smallest Ritz value. It is never below the smallest eigenvalue (rounding apart):
            if it is negative, so is some curvature; if it is not, nothing is known. It comes free
            of charge, and is the less converged the fewer the products.
        products: matrix-vector products spent.
        n: number of samples behind H.
    """

    value: float
    residual: float
    error: float
    lowest: float
    products: int
    n: int


def top_eigenvalue(
    net: nn.Module,
    samples: Samples,
    index: Tensor,
    tol: float = 1e-3,
    seed: int = 0,
    size: int = BATCH,
) -> Eigenvalue:
    r"""Largest eigenvalue of the Hessian of the mean loss, :math:`\lambda(H_a)` (Thm 4.4, Fig. 4).

    Largest by sign, not by size: where the strongest curvature is negative, power iteration finds
    that one instead. Lanczos goes on until the estimated error of the value is at most ``tol`` times
    the value. The estimate is the smaller of the residual r and :math:`r^2 / \delta` (Kato-Temple).
    The gap δ to the next eigenvalue is not known. In its place, from three products on, stands the
    smallest distance to another Ritz value, less that one's own residual.

    So it is an estimate, no proof. What holds for certain is that some eigenvalue lies within r.
    The estimate is too small where two eigenvalues at the top differ by more than ``tol`` but less
    than about the square root of ``tol``, relatively. Lanczos first sees them as one, and may stop
    at a value between them. Even where the top stands clear, the error may be a few times the
    estimate; in the tests on random matrices this happens in a few per cent. And like any iteration
    from a random start, it can overlook an eigenvector nearly orthogonal to the start.

    Needs curvlinops. Memory: the activations of a few passes of one batch, and one vector of weights
    a product. ``benchmarks/geometry.py`` counts products and seconds.

    Args:
        net, samples, index: which network, on which samples.
        tol: of the value's error, relative to the value; at least 1e-6.
        seed: of the start vector.
        size: images a batch.
    """
    return _top("hessian", nn.CrossEntropyLoss(), net, samples, index, tol, seed, size)


def top_gauss_newton(
    net: nn.Module,
    samples: Samples,
    index: Tensor,
    tol: float = 1e-3,
    seed: int = 0,
    size: int = BATCH,
) -> Eigenvalue:
    r"""Largest eigenvalue of the Gauss-Newton part of the same Hessian, for any number of classes.

    With the Jacobian :math:`J_i` of an image's logits in the weights, its softmax p and
    :math:`S_i = \mathrm{diag}(p) - pp^\top`,

    .. math:: H = G + R, \quad G = \operatorname{mean}_i J_i^\top S_i J_i, \quad
        R = \operatorname{mean}_i \textstyle\sum_k (p_k - y_k) \nabla^2 z_k.

    G is what Proposition 4.5 calls proximity to the boundary, R its other term. By Weyl,
    :math:`\lambda(H) - \lambda(G)` lies between the smallest and the largest eigenvalue of R.
    Arguments as in :func:`top_eigenvalue`.
    """
    return _top("gauss-newton", nn.CrossEntropyLoss(), net, samples, index, tol, seed, size)


def eigenvalues(
    net: nn.Module,
    samples: Samples,
    n: int | None = None,
    tol: float = 1e-3,
    seed: int = 0,
    size: int = BATCH,
) -> pd.DataFrame:
    """:func:`top_eigenvalue` of each group (Fig. 4): a row a group, the columns as its fields.

    Args:
        net, samples, tol, seed, size: as there.
        n: samples to draw of each group; None: the whole group.
    """
    return pd.DataFrame(
        {"group": group} | vars(top_eigenvalue(net, samples, index, tol, seed, size))
        for group, index in _drawn(samples, n, seed).items()
    )


def _drawn(samples: Samples, n: int | None, seed: int) -> dict[int, Tensor]:
    every = members(samples)
    return every if n is None else {g: subsample(i, n, seed) for g, i in every.items()}


def _top(
    kind: str, loss: nn.Module, net, samples, index, tol, seed, size, which: str = "LA"
) -> Eigenvalue:
    """Extreme eigenvalue of a matrix of second derivatives of the ``loss`` over the samples."""
    config.in_range("tol", tol, 1e-6, 0.5)
    feed, theta = _Feed(net, samples, index, size), list(weights(net).values())
    start = torch.randn(
        sum(p.numel() for p in theta), generator=torch.Generator().manual_seed(seed)
    )
    with warnings.catch_warnings():
        # Remarks on torch's own future, and on the speed of one small operation.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        operator = _operators()[kind](
            net, loss, theta, feed, check_deterministic=False, num_data=len(index)
        )
        found = _lanczos(operator.__matmul__, start.to(theta[0].device), tol, which)
    return Eigenvalue(*found, n=len(index))


@functools.cache
def _operators() -> dict[str, type]:
    """Curvlinops' matrices by name; the Hessian with a product of its own."""
    import curvlinops

    class Hessian(curvlinops.HessianLinearOperator):
        """Two reverse passes a vector, in 0.4 to 0.9 of the time of forward over reverse."""

        def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:
            loss, theta = self._loss_func(self._model_func(X), y), self._params
            own = {"materialize_grads": True}
            slopes = torch.autograd.grad(loss, theta, create_graph=True, **own)
            along = sum((g * m[..., 0]).sum() for g, m in zip(slopes, M, strict=True))
            if not along.requires_grad:  # the loss is linear
                return [torch.zeros_like(m) for m in M]
            return [h[..., None] for h in torch.autograd.grad(along, theta, **own)]

    return {"hessian": Hessian, "gauss-newton": curvlinops.GGNLinearOperator}


def _lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, tol: float, which: str, limit: int = 100
) -> tuple[float, float, float, float, int]:
    """Largest (``LA``) or largest in size (``LM``) Ritz value, and the rest of :class:`Eigenvalue`.

    Each new vector is made orthogonal to all before it, twice, since rounding would bring back what
    has converged.
    """
    from scipy.linalg import eigh_tridiagonal

    basis, diagonal, off = [start / start.norm()], [], []
    while True:
        w = product(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        for v in basis * 2:
            w = w - (w @ v) * v
        ritz, vectors = eigh_tridiagonal(diagonal, off)
        off.append(float(w.norm()))
        residuals, sizes = off[-1] * np.abs(vectors[-1]), np.abs(ritz)
        i, error = _estimate(ritz if which == "LA" else sizes, residuals)
        # Below a millionth of the largest curvature there is nothing but rounding.
        done = error <= max(tol * sizes[i], 1e-6 * sizes.max())
        if done or len(ritz) == min(limit, len(start)):
            break
        basis.append(w / off[-1])
    if not done and len(ritz) == limit:
        message = f"after {limit} products the error is about {error:.2g} of {ritz[i]:.4g}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return float(ritz[i]), float(residuals[i]), error, float(ritz[0]), len(ritz)


def _estimate(ritz: np.ndarray, residuals: np.ndarray) -> tuple[int, float]:
    """Place of the largest Ritz value, and its error as :func:`top_eigenvalue` estimates it."""
    i = int(ritz.argmax())
    residual, gaps = float(residuals[i]), np.delete(ritz[i] - ritz - residuals, i)
    if len(ritz) < 3 or gaps.min() <= 0:
        return i, residual
    return i, min(residual, float(residual**2 / gaps.min()))


# ------------------------------------------------------------------------ distance to the boundary


def softmax_gap(logits: Tensor) -> Tensor:
    """Largest minus second largest softmax probability (n,): the released code's distance.

    It says how sure the network is, not how far an image is from being classified otherwise.
    """
    return logit_margin(logits.softmax(1))


def logit_margin(logits: Tensor) -> Tensor:
    """Largest minus second largest of the logits (n, classes), per sample (n,)."""
    first, second = logits.topk(2, 1).values.unbind(1)
    return first - second


def input_distance(
    net: nn.Module, samples: Samples, index: Tensor, steps: int = 10, size: int = BATCH
) -> tuple[Tensor, Tensor]:
    r"""Euclidean distance to the decision boundary in the space of normalised images (n,), twice.

    *Linear*: to the boundary of the linearised network (Moosavi-Dezfooli et al., 2016),

    .. math:: \min_{k \ne y} |z_y - z_k| \,/\, \|\nabla_x (z_y - z_k)\|

    with the predicted class y; exact where the network is linear all the way, otherwise neither an
    upper nor a lower bound. *Refined*: such steps are repeated until another class is predicted, and
    the segment from the image to that point is bisected. It ends on the boundary, so its length is
    an upper bound on the true distance; infinite where ``steps`` steps did not cross. Pixels may
    leave their range.
    """
    config.whole("steps", steps, 1)
    parts = [_to_boundary(net, x, steps) for x, _ in _Feed(net, samples, index, size)]
    linear, refined = (torch.cat(part) for part in zip(*parts, strict=True))
    return linear, refined


@torch.no_grad()
def _predict(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).argmax(1)


def _over(values: Tensor, x: Tensor) -> Tensor:
    """One value a sample (n,), shaped to be broadcast over ``x``."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _linear_step(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (n,) and way (like ``x``) to where class ``y`` ends, to first order."""
    x = x.detach().requires_grad_()
    z = net(x)
    lead = z.gather(1, y[:, None]) - z
    nearest, way = torch.full_like(lead[:, 0], math.inf), torch.zeros_like(x)
    for k, ahead in enumerate(lead.unbind(1)):
        (normal,) = torch.autograd.grad(ahead.sum(), x, retain_graph=k + 1 < lead.shape[1])
        ahead, length = ahead.detach(), normal.flatten(1).norm(dim=1)
        distance = ahead / length  # 0 / 0 for k = y, which is never closer
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        way = torch.where(_over(closer, x), -_over(distance / length, x) * normal, way)
    return nearest, way


def _to_boundary(net: nn.Module, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Linear and refined distance (n,) of one batch."""
    y = _predict(net, x)
    linear, way = _linear_step(net, x, y)
    far, live = x + OVERSHOOT * way, torch.arange(len(x), device=x.device)
    for _ in range(steps - 1):
        live = live[_predict(net, far[live]) == y[live]]
        if not len(live):
            break
        far[live] += OVERSHOOT * _linear_step(net, far[live], y[live])[1]
    crossed = _predict(net, far) != y
    share = _bisect(lambda t: _predict(net, x + (far - x) * _over(t, x)) != y, len(x), x.device)
    refined = share * (far - x).flatten(1).norm(dim=1)
    return linear, torch.where(crossed, refined, math.inf)


def _bisect(crossed: Callable[[Tensor], Tensor], n: int, device: torch.device) -> Tensor:
    """Shares (n,) of a way, just behind a point where ``crossed`` turns true; true at 1."""
    near, behind = torch.zeros(n, device=device), torch.ones(n, device=device)
    for _ in range(18):  # a relative 4e-6, about what float32 resolves
        middle = (near + behind) / 2
        over = crossed(middle)
        near, behind = torch.where(over, near, middle), torch.where(over, middle, behind)
    return behind


def distances(
    net: nn.Module,
    samples: Samples,
    index: Tensor | None = None,
    steps: int = 10,
    size: int = BATCH,
) -> pd.DataFrame:
    """Every distance to the decision boundary, image by image (Figs. 8, 14).

    Returns:
        A row a sample of ``index`` (None: all) with the columns ``sample`` (its place), ``group``,
        ``gap`` (:func:`softmax_gap`), ``margin`` (:func:`logit_margin`), ``linear`` and ``refined``
        (:func:`input_distance`).
    """
    index = torch.arange(len(samples), device=samples.labels.device) if index is None else index
    with torch.no_grad():
        z = torch.cat([net(x) for x, _ in _Feed(net, samples, index, size)])
    linear, refined = input_distance(net, samples, index, steps, size)
    columns = {
        "sample": index, "group": samples.groups[index], "gap": softmax_gap(z),
        "margin": logit_margin(z), "linear": linear, "refined": refined,
    }  # fmt: skip
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


# -------------------------------------------------------------------------------------- two bounds


def losses(net: nn.Module, samples: Samples, size: int = BATCH) -> dict[int, float]:
    r"""Mean cross-entropy of each group, :math:`J(\theta; S^a)`."""
    z = training.logits(net, samples, size=size).cpu().double()
    each = F.cross_entropy(z, samples.labels.cpu(), reduction="none")
    return {group: each[index.cpu()].mean().item() for group, index in members(samples).items()}


class _Logit(nn.Module):
    """The logit of class 1 against class 0, z = z_1 - z_0, summed; as a loss that needs no labels."""

    reduction = "sum"

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (z[:, 1] - z[:, 0]).sum()


def logit_curvature(
    net: nn.Module, samples: Samples, index: Tensor, tol: float = 1e-3, seed: int = 0
) -> pd.DataFrame:
    r"""The two terms of Proposition 4.5, sample by sample, for a network with two logits.

    With z the logit of class 1 against class 0 and σ its sigmoid, they are
    :math:`\sigma(1-\sigma)\|\nabla z\|^2` and :math:`|\sigma - y| \, \|\nabla^2 z\|_2`. In the paper
    the derivatives are those of the probability, and the norm is the largest eigenvalue. The chain
    rule through the cross-entropy wants derivatives of the logit; and since :math:`\sigma - y` may be
    negative, the eigenvalue must be the largest *in size*. Lanczos finds it for each sample: this is
    for small subsamples.

    Returns:
        A row a sample with the columns ``sample``, ``group``, ``proximity`` and ``error`` (the terms).

    Raises:
        ValueError: if the network has not two logits.
    """
    return pd.DataFrame(_terms(net, samples, one, tol, seed) for one in index.split(1))


def _terms(net: nn.Module, samples: Samples, one: Tensor, tol: float, seed: int) -> dict:
    ((x, y),) = _Feed(net, samples, one, 1)
    logits = net(x)
    if logits.shape[1] != 2:
        raise ValueError(f"net has {logits.shape[1]} logits: must have 2 for Proposition 4.5")
    z = _Logit()(logits, y)
    parts = torch.autograd.grad(z, list(weights(net).values()), materialize_grads=True)
    squared = sum((part**2).sum().item() for part in parts)
    sigma = z.detach().cpu().double().sigmoid().item()
    top = _top("hessian", _Logit(), net, samples, one, tol, seed, 1, which="LM")
    return {
        "sample": one.item(),
        "group": samples.groups[one].item(),
        "proximity": sigma * (1 - sigma) * squared,
        "error": abs(sigma - y.item()) * abs(top.value),
    }


def curvature_bounds(
    net: nn.Module,
    samples: Samples,
    n: int | None = None,
    tol: float = 1e-3,
    seed: int = 0,
    size: int = BATCH,
) -> pd.DataFrame:
    r"""Both sides of Proposition 4.5 as corrected in :func:`logit_curvature`, by group.

    For more than two classes the same argument gives
    :math:`\lambda(H_a) \le \operatorname{mean}_i \lambda(S_i) \|J_i\|_2^2 + \|R_i\|_2` in the terms of
    :func:`top_gauss_newton`, which tells more there: it needs no bound for the first part.

    Args:
        net, samples, tol, seed, size: as in :func:`top_eigenvalue`.
        n: samples to draw of each group; None: the whole group.

    Returns:
        A row a group with the columns ``group``, ``n``, ``eigenvalue`` (the left side, on the same
        samples), ``proximity``, ``error`` (means of the terms), ``bound`` (their sum) and ``holds``
        (up to the tolerance, since each norm is found to ``tol``).
    """
    rows = []
    for group, index in _drawn(samples, n, seed).items():
        terms = logit_curvature(net, samples, index, tol, seed)[["proximity", "error"]].mean()
        top = top_eigenvalue(net, samples, index, tol, seed, size).value
        rows.append({"group": group, "n": len(index), "eigenvalue": top} | terms.to_dict())
    table = pd.DataFrame(rows)
    bound = table["proximity"] + table["error"]
    return table.assign(bound=bound, holds=table["eigenvalue"] <= bound * (1 + tol))


# ------------------------------------------------------------------ as in the paper's released code


def _mixed(samples: Samples, batch: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Each group's part of each mini-batch of all samples in random order, where it has one."""
    config.whole("batch", batch, 1)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    for part in order.to(samples.groups.device).split(batch):
        for group in samples.groups[part].unique().tolist():
            yield group, part[samples.groups[part] == group]


def _released(
    samples: Samples, batch: int, seed: int, measure: Callable[[Tensor], float], pool: str
) -> pd.DataFrame:
    parts = _mixed(samples, batch, seed)
    rows = [{"group": group, "n": len(part), "value": measure(part)} for group, part in parts]
    by = pd.DataFrame(rows).groupby("group", as_index=False)
    return by.agg(n=("n", "sum"), batches=("n", "size"), value=("value", pool))


def released_gradient_norm(
    net: nn.Module, samples: Samples, batch: int = 256, seed: int = 0
) -> pd.DataFrame:
    """The released code's gradient norm: the mean, over mini-batches, of the norm in each.

    Of a mini-batch's gradient much is noise, the more the fewer of the group are in it. So this
    grows as a group shrinks, by itself. The released code counts trained masks among the
    coordinates; here, as everywhere, they are left out. Mini-batches without the group do not count.

    Returns:
        A row a group with the columns ``group``, ``n``, ``batches`` (that have any of it), ``value``.
    """

    def norm(part: Tensor) -> float:
        return _norm(gradient(net, samples, part), list(weights(net)))

    return _released(samples, batch, seed, norm, "mean")


def released_eigenvalue(
    net: nn.Module, samples: Samples, batch: int = 256, seed: int = 0, tol: float = 1e-3
) -> pd.DataFrame:
    """The released code's curvature: the maximum, over mini-batches, of the top eigenvalue in each.

    The largest of several noisy values grows with their number and with their noise. The released
    code counts trained masks among the coordinates and takes the eigenvalue largest in size, by
    power iteration; here it is that of :func:`top_eigenvalue`. Columns as in
    :func:`released_gradient_norm`.
    """

    def top(part: Tensor) -> float:
        return top_eigenvalue(net, samples, part, tol, seed).value

    return _released(samples, batch, seed, top, "max")
