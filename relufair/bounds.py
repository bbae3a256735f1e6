r"""What a group loses when ReLUs go: the paper's bounds (Theorem 4.4, Proposition 4.5), and exactly.

The loss J is the mean cross-entropy. The bounds need dense Hessians, so small networks;
:func:`line_integral` is for networks of any size. :class:`Theory` judges Section 4 by all of them.
"""

from __future__ import annotations

import copy
import datetime
import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from relufair import config, masks, pieces, theory

# Theorem 4.4 ------------------------------------------------------------------------------------


def flat(net: nn.Module) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The weights of ``net`` as one vector, and ``net`` as a function of such a vector and inputs."""
    named = dict(net.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def call(theta: Tensor, x: Tensor) -> Tensor:
        parts = zip(named.items(), theta.split(sizes), strict=True)
        return functional_call(net, {name: v.view_as(p) for (name, p), v in parts}, (x,))

    return nn.utils.parameters_to_vector(named.values()).detach(), call


def taylor(
    net: nn.Module, other: nn.Module, x: Tensor, y: Tensor, steps: Sequence[float]
) -> pd.DataFrame:
    r"""Both sides of Theorem 4.4 without its remainder, on the way from ``net`` to ``other``.

    The activations are those of ``net``, the weights :math:`\theta + t(\tilde\theta - \theta)`.

    Returns:
        A row a step, with ``t``; ``excess``, the loss minus that of ``net``; ``bound``; and
        ``remainder``, the distance of the excess to the expansion of second order.
    """
    theta, call = flat(net)
    way, t = flat(other)[0] - theta, torch.tensor(steps, dtype=theta.dtype)

    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(call(at, x), y)

    gradient, curvature = grad(loss)(theta), jacrev(grad(loss))(theta)
    excess = vmap(loss)(theta + t[:, None] * way) - loss(theta)
    expansion = t * (gradient @ way) + t**2 / 2 * (way @ curvature @ way)
    length, top = t * way.norm(), torch.linalg.eigvalsh(curvature)[-1]
    bound = gradient.norm() * length + top / 2 * length**2
    columns = {"t": t, "excess": excess, "bound": bound, "remainder": (excess - expansion).abs()}
    return pd.DataFrame({name: column.detach().numpy() for name, column in columns.items()})


# Proposition 4.5 --------------------------------------------------------------------------------


def logit(net: nn.Module) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The weights, and the logit z of two outputs, second minus first, for weights and one input."""
    theta, call = flat(net)
    return theta, lambda at, x: call(at, x[None])[0].diff()[0]


def curvature_bounds(
    theta: Tensor, z: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> dict[str, float]:
    r"""The largest eigenvalue of the loss's Hessian, and three readings of its bound.

    With the logit z and the probability :math:`\sigma(z)`, the Hessian is the mean over samples of

    .. math:: \sigma(1-\sigma)\,\nabla z\,\nabla z^\top + (\sigma - y)\,\nabla^2 z.

    So its largest eigenvalue is at most the mean of :math:`\sigma(1-\sigma)\|\nabla z\|^2 +
    |\sigma-y|\,\|\nabla^2 z\|_2`: with the spectral norm, as the residual can have either sign.

    Args:
        theta: (p,), the weights. The samples' Hessians take n p² numbers.
        z: the logit of one input, as a function of weights and input.
        x, y: inputs (n, ...) and labels (n,), 0 or 1.

    Returns:
        ``eigenvalue``; ``spectral``, the bound above; ``largest``, with the largest eigenvalue of
        :math:`\nabla^2 z` in place of its norm; ``probability``, with that and with the
        probability's derivatives in place of the logit's, as the paper writes it.
    """
    y = y.to(theta.dtype)

    def loss(at: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(vmap(z, (None, 0))(at, x), y)

    def h(at: Tensor, one: Tensor) -> Tensor:
        return z(at, one).sigmoid()

    def derivatives(f: Callable) -> tuple[Tensor, Tensor]:
        first, second = (vmap(d, (None, 0))(theta, x) for d in (grad(f), jacrev(grad(f))))
        return (first**2).sum(1), torch.linalg.eigvalsh(second)

    said = vmap(h, (None, 0))(theta, x)
    spread, residual = said * (1 - said), (said - y).abs()
    (squares, curves), (squares_h, curves_h) = derivatives(z), derivatives(h)
    found = {
        "eigenvalue": torch.linalg.eigvalsh(jacrev(grad(loss))(theta))[-1],
        "spectral": (spread * squares + residual * curves.abs().amax(1)).mean(),
        "largest": (spread * squares + residual * curves[:, -1]).mean(),
        "probability": (spread * squares_h + residual * curves_h[:, -1]).mean(),
    }
    return {name: value.item() for name, value in found.items()}


# Appendix A.1 -----------------------------------------------------------------------------------


def minimum(x: np.ndarray, y: np.ndarray, weight_decay: float = 0.0) -> np.ndarray:
    """The minimum of logistic regression to machine precision, by Newton's method.

    Args:
        x, y: features (n, p) and labels (n,), 0 or 1, that no plane separates.
        weight_decay: half of it times the squared weights is added to the mean loss.
    """
    theta = np.zeros(x.shape[1])
    for _ in range(50):
        h = 1 / (1 + np.exp(-x @ theta))
        gradient = x.T @ (h - y) / len(y) + weight_decay * theta
        curvature = (x.T * (h * (1 - h))) @ x / len(y) + weight_decay * np.eye(len(theta))
        theta = theta - np.linalg.solve(curvature, gradient)
    return theta


def group_gradients(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Gradient at ``theta`` of each group's mean logistic loss: (groups, p)."""
    gradients = (1 / (1 + np.exp(-x @ theta)) - y)[:, None] * x
    return np.stack([gradients[groups == group].mean(0) for group in np.unique(groups)])


# The exact account ------------------------------------------------------------------------------

Inputs = Tensor | Callable[[Tensor], Tensor]
MOST_INTERVALS = 4096


def line_integral(
    net_a: nn.Module, net_b: nn.Module, x: Inputs, y: Tensor, groups: Tensor,
    *, tolerance: float = 1e-3, points: int = 3, batch: int = 512,
) -> pd.DataFrame:  # fmt: skip
    r"""What each group loses from ``net_a`` to ``net_b``, shared out among weights, slopes, buffers.

    Along the straight way :math:`s(t)` between the two networks' weights, masks and normalisation
    buffers, in evaluation mode, the loss of a group changes by

    .. math:: J(s(1)) - J(s(0)) = \sum_k \int_0^1 \frac{\partial J}{\partial s_k}\,\Delta s_k\,dt,

    whatever lies between, since J is continuous and smooth but for kinks. The integral is taken by
    Gauss-Legendre quadrature on intervals. As J is known at their ends, so is the error of each; the
    worst is halved until the errors add up to no more than the tolerance. What a part is given
    depends on the way: this is the account along the straight one.

    Args:
        net_a, net_b: masked networks with the same entries, e.g. a teacher and a linearized student.
        x: inputs (n, ...), or a function that returns those at given places (to save memory).
        y, groups: labels and groups (n,), int64.
        tolerance: bound on the error of every group's sum.
        points: on an interval; each takes one pass forward and one back over all samples.
        batch: samples a pass.

    Returns:
        A row a group × part × layer, with ``group``, ``part`` (``weights``, ``slopes`` or
        ``buffers``), ``layer`` (the module's name) and ``value``.

    Raises:
        ValueError: if the networks' entries differ.
        RuntimeError: if the tolerance is not reached on ``MOST_INTERVALS`` intervals.
    """
    way = _Way(net_a, net_b, x, y, groups, batch)
    losses = functools.cache(way.losses)
    nodes, weights = (values.tolist() for values in np.polynomial.legendre.leggauss(points))

    def interval(low: float, high: float) -> tuple[float, float, float, Tensor]:
        half, quadrature = (high - low) / 2, zip(nodes, weights, strict=True)
        value = sum(w * half * way.rates(low + half * (1 + node)) for node, w in quadrature)
        error = (value.sum(1) - losses(high) + losses(low)).abs().max().item()
        return -error, low, high, value

    heap = [interval(0.0, 1.0)]
    while (error := -sum(entry[0] for entry in heap)) > tolerance:
        if len(heap) >= MOST_INTERVALS:
            raise RuntimeError(f"tolerance={tolerance}: not reached, the error is {error:.2g}")
        _, low, high, _ = heapq.heappop(heap)
        middle = (low + high) / 2
        heapq.heappush(heap, interval(low, middle))
        heapq.heappush(heap, interval(middle, high))
    return way.table(sum(entry[3] for entry in heap))


class _Way:
    """The straight way between two networks' entries, and the groups' losses on it."""

    def __init__(
        self, a: nn.Module, b: nn.Module, x: Inputs, y: Tensor, groups: Tensor, batch: int
    ):
        self.start, end = (
            {k: v for k, v in net.state_dict().items() if v.is_floating_point()} for net in (a, b)
        )
        shapes, others = ({k: v.shape for k, v in own.items()} for own in (self.start, end))
        for name in shapes | others:
            if shapes.get(name) != others.get(name):
                raise ValueError(f"net_b: must have the same entries as net_a; {name} differs")
        self.step = {name: end[name] - value for name, value in self.start.items()}
        self.net, self.y = _differentiable(a), y
        self.inputs = x.__getitem__ if isinstance(x, Tensor) else x
        names = groups.unique().tolist()
        self.members = {g: (groups == g).nonzero()[:, 0].split(batch) for g in names}

    def _means(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """``measure`` summed over each group's batches, divided by its size: (groups, ...)."""
        return torch.stack([
            sum(measure(batch).cpu().double() for batch in batches) / sum(map(len, batches))
            for batches in self.members.values()
        ])  # fmt: skip

    def _at(self, t: float) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
        """The entries at ``t`` from 0 to 1, and the summed loss of a batch there."""
        state = {k: (v + t * self.step[k]).requires_grad_() for k, v in self.start.items()}

        def loss(batch: Tensor) -> Tensor:
            logits = functional_call(self.net, state, (self.inputs(batch),))
            return F.cross_entropy(logits, self.y[batch], reduction="sum")

        return state, loss

    @torch.no_grad()
    def losses(self, t: float) -> Tensor:
        """The mean loss of each group at ``t``: (groups,)."""
        return self._means(self._at(t)[1])

    def rates(self, t: float) -> Tensor:
        """Its derivative in ``t``, by entry: (groups, entries)."""
        state, loss = self._at(t)

        def rate(batch: Tensor) -> Tensor:
            grads = torch.autograd.grad(loss(batch), list(state.values()))
            shares = zip(grads, self.step.values(), strict=True)
            return torch.stack([(gradient * step).sum() for gradient, step in shares])

        return self._means(rate)

    def table(self, values: Tensor) -> pd.DataFrame:
        """Values (groups, entries) as rows, those of a module's weights added up."""
        parts = {"alpha": "slopes", "running_mean": "buffers", "running_var": "buffers"}
        rows = [
            {"group": group, "part": parts.get(leaf, "weights"), "layer": layer, "value": value}
            for group, line in zip(self.members, values.tolist(), strict=True)
            for (layer, _, leaf), value in zip(
                (name.rpartition(".") for name in self.start), line, strict=True
            )
        ]
        keys = ["group", "part", "layer"]
        return pd.DataFrame(rows).groupby(keys, sort=False, as_index=False)["value"].sum()


def _differentiable(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch norms can be differentiated in their buffers."""
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = functools.partial(_normalise, module)
    return net


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch norm in evaluation mode, in operations that have all derivatives."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    scale, shift = (v.view(-1, *[1] * (x.dim() - 2)) for v in (scale, shift))
    return x * scale + shift


# The chapter's checks ---------------------------------------------------------------------------

MINORITY, DECAY, TOLERANCE = 0.2, 1e-3, 1e-3
# By name: where it stands (* marks what the paper does not say), the statement, and its test.
STATEMENTS = {
    "best": ("4.1", "the error of the n best pieces falls like 1/n²", "power of n", "−2"),
    "even": ("4.1*", "it does with pieces of equal length, too", "power of n", "−2"),
    "arora": ("4.2", "at most 2^(k−1)(w₁+1)w₂…w_k pieces", "largest share of it", "≤ 1"),
    "most": ("4.2*", "with r_i ReLUs left, at most ∏(r_i+1)", "largest share of it", "≤ 1"),
    "sharp": ("4.2*", "∏(r_i+1) is attained", "a sawtooth's pieces", "the bound"),
    "naive": ("4.2*", "2^(k−1)(r₁+1)r₂…r_k bounds them, too", "a sawtooth's pieces", "≤ the bound"),
    "B.1": ("B.1", "2 ReLUs make 3 pieces; if one is linear, 2", "most of 20 networks", "[3, 2]"),
    "everyone": ("4.3*", "best fits: fewer pieces cost everyone", "least excess loss", "≥ 0"),
    "group": ("4.3", "best fits: fewer pieces cost every group", "least excess loss", "≥ 0"),
    "softplus": ("4.4", "the remainder is cubic, smooth activation", "power of t", "3"),
    "ReLU": ("4.4*", "the remainder is cubic, ReLU, same steps", "power of t", "3"),
    "bound": ("4.4", "the bound holds without its remainder", "largest loss / bound", "≤ 1"),
    "cut": ("4.4*", "it holds if only ReLUs go: the bound is 0", "largest excess loss", "≤ 0"),
    "account": ("4.4*", "the line integral is the excess loss", "difference", f"≤ {TOLERANCE}"),
    "spectral": ("4.5*", "bound with logits: ∇z, ‖∇²z‖₂", "largest λ / bound", "≤ 1"),
    "largest": ("4.5", "bound with logits: ∇z, λ(∇²z)", "bound, λ: an example", "bound ≥ λ"),
    "probability": ("4.5", "bound with probabilities: ∇h, λ(∇²h)", "bound, λ: an example", "bound ≥ λ"),
    "balance": ("A.1", "|S_a| g_a = −|S_b| g_b at a minimum", "norm of sum / of part", "0"),
    "decay": ("A.1*", "with weight decay, too", "norm of sum / of part", "0"),
    "three": ("A.1*", "of 3 groups, the smallest has the largest ‖g‖", "‖g‖ / largest group's", "≥ 1"),
}  # fmt: skip
COLUMNS = ["section", "statement", "computed", "expected", "found", "verdict"]
Row = tuple[str, str, bool]


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """Train ``net`` in place on all samples by L-BFGS, with weight decay ``DECAY``; returns it."""
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = sum((p**2).sum() for p in net.parameters())
        loss = F.cross_entropy(net(x), y) + DECAY / 2 * decay
        loss.backward()
        return loss

    optimizer.step(closure)
    return net


def smooth(net: nn.Module) -> nn.Module:
    """A copy of a masked network with a softplus at every ReLU, kept or not."""
    net = copy.deepcopy(net)
    for name in masks.sites(net):
        net.set_submodule(name, nn.Softplus())
    return net


def _span(values: Iterable[float]) -> str:
    low, high = (f"{value:.3g}".replace("-", "−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _pieces(net: nn.Module) -> int:
    return len(pieces.breakpoints(net, [0.0], [1.0])) + 1


@dataclass(frozen=True)
class Theory:
    """The study of Section 4. The parameters are those of the notebook ``02_theory``.

    Tables are computed when first asked for; :attr:`checks` judges the statements by them.

    Raises:
        ValueError: for a value that cannot be, naming the parameter and what is allowed.
    """

    functions: Sequence[str]
    most_pieces: int
    hidden: Sequence[int]
    budgets: Sequence[float]
    samples: int
    steps: int
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("functions", "budgets", "seeds"):
            config.distinct(name, getattr(self, name))
        for name in self.functions:
            config.one_of("functions", name, pieces.CURVES)
        for name, low in {"most_pieces": 32, "samples": 100, "steps": 1}.items():
            config.whole(name, getattr(self, name), low)
        for name, low in {"hidden": 1, "seeds": 0}.items():
            for value in getattr(self, name):
                config.whole(name, value, low)
        if not self.hidden:
            raise ValueError("hidden=[]: must name the width of at least one layer")
        for budget in self.budgets:
            if not 0 < sum(self.kept(budget)) < sum(self.hidden):
                raise ValueError(f"budgets={budget!r}: must leave some ReLUs, and take some away")

    def check_data(self, folder: Path | None) -> None:
        """Nothing to check: the samples are drawn."""

    def note(self, networks: bool = True) -> str:
        """Data, networks, seeds, device and date, as they stand under a figure."""
        device = f"double precision on a CPU · {datetime.date.today()}"
        if not networks:
            return f"every tier · functions in closed form, no data, no seed · {device}"
        seeds, layers = ", ".join(map(str, self.seeds)), " and ".join(map(str, self.hidden))
        return (
            f"every tier · toy, {self.samples} points · MLP with layers of {layers} · evenly spread\n"
            f"n = {len(self.seeds)} seeds ({seeds}) · {device}"
        )

    def kept(self, budget: float) -> list[int]:
        """ReLUs left in each layer."""
        return [masks.units(budget, width) for width in self.hidden]

    def sample(self, seed: int) -> tuple[Tensor, Tensor]:
        """Points (n, 2) of the toy problem in double precision, and labels, which are the groups."""
        x, y = theory.sample(self.samples, MINORITY, np.random.default_rng([seed, 0]))
        return torch.from_numpy(x).double(), torch.from_numpy(y)

    @functools.cached_property
    @theory.one_thread()
    def networks(self) -> dict[tuple[int, float], nn.Module]:
        """The trained network of each seed, and those linearized from it and trained on, by budget."""
        found: dict[tuple[int, float], nn.Module] = {}
        for seed in self.seeds:
            net = pieces.masked_mlp(2, self.hidden, 2, self.hidden, seed)
            found[seed, 1.0] = train(net, *self.sample(seed), self.steps)
            for budget in sorted(self.budgets, reverse=True):
                student = pieces.linearized(found[seed, 1.0], self.kept(budget))
                found[seed, budget] = train(student, *self.sample(seed), self.steps)
        return found

    def _pairs(self) -> Iterator[tuple[int, nn.Module, nn.Module, Tensor, Tensor]]:
        """By seed: the network, that with the fewest ReLUs, and the samples."""
        for seed in self.seeds:
            nets = self.networks[seed, 1.0], self.networks[seed, min(self.budgets)]
            yield seed, *nets, *self.sample(seed)

    @functools.cached_property
    def rates(self) -> pd.DataFrame:
        """Errors of the best pieces, see :func:`relufair.pieces.rates`."""
        return pieces.rates(self.functions, self.most_pieces)

    @functools.cached_property
    def counts(self) -> pd.DataFrame:
        """Pieces of random and trained networks along five random lines a seed, and their bounds."""
        rows = []
        for ((seed, budget), net), line in itertools.product(self.networks.items(), range(5)):
            kept = self.kept(budget)
            ray = np.random.default_rng([seed, 2, line]).normal(size=(2, 2))
            about = {"seed": seed, "budget": budget, "relus": sum(kept), "line": line}
            about |= {"most": pieces.most_pieces(kept), "arora": pieces.arora(self.hidden)}
            random = pieces.masked_mlp(2, self.hidden, 2, kept, seed)
            for weights, own in {"random": random, "trained": net}.items():
                found = len(pieces.breakpoints(own, *ray)) + 1
                rows.append(about | {"weights": weights, "pieces": found})
        return pd.DataFrame(rows)

    @functools.cached_property
    def profile(self) -> pd.DataFrame:
        """The first seed's logit ``z`` along a horizontal line, and where it ``bends``, by budget."""
        start, way, parts = np.array([0.0, -0.2]), np.array([1.0, 0.0]), []
        for budget in (1.0, *sorted(self.budgets, reverse=True)):
            net = self.networks[self.seeds[0], budget]
            kinks = pieces.breakpoints(net, start, way)
            x = np.unique([*np.linspace(-1.5, 1.5, 61), *kinks[np.abs(kinks) < 1.5]])
            with torch.no_grad():
                z = net(torch.from_numpy(start + x[:, None] * way)).diff()[:, 0].numpy()
            about = {"budget": budget, "x": x, "z": z, "bends": np.isin(x, kinks)}
            parts.append(pd.DataFrame(about))
        return pd.concat(parts, ignore_index=True)

    @functools.cached_property
    def fits(self) -> pd.DataFrame:
        """Best fits of x² by 1 to 5 pieces, to 20 even points and ``few`` at which one piece is exact.

        Returns:
            A row a point and number ``n`` of pieces, with ``x``, ``y``, ``few``, ``fit``, ``error``.
        """
        even, knots = np.arange(-19, 20, 2) / 20, np.arange(-8, 9, 2) / 10
        cross = np.sqrt((even**2).mean())  # the best line is flat, at the mean of x²
        x = np.array([*even, -cross, cross])
        points = pd.DataFrame({"x": x, "y": x**2, "few": np.abs(x) == cross})
        fits = [points.assign(n=n, fit=pieces.best_fit(x, x**2, knots, n)) for n in range(1, 6)]
        return pd.concat(fits).assign(error=lambda table: (table["fit"] - table["y"]) ** 2)

    @functools.cached_property
    @theory.one_thread()
    def paths(self) -> pd.DataFrame:
        """Theorem 4.4 on the way between the weights, with ReLUs and with softplus in their place."""
        parts = []
        for seed, net, other, x, y in self._pairs():
            forms = {"softplus": smooth(net), "ReLU": net}
            for group, (activation, own) in itertools.product((0, 1), forms.items()):
                found = taylor(own, other, x[y == group], y[y == group], 2.0 ** -np.arange(15))
                parts.append(found.assign(seed=seed, group=group, activation=activation))
        return pd.concat(parts, ignore_index=True)

    @functools.cached_property
    def losses(self) -> pd.DataFrame:
        """Excess loss of the fewest ReLUs before (``cut``) and after training on, and the ``bound``."""
        rows = []
        for seed, net, other, x, y in self._pairs():
            cut = pieces.linearized(net, self.kept(min(self.budgets)))
            each = (F.cross_entropy(n(x), y, reduction="none") for n in (net, cut, other))
            base, before, after = (loss.detach().numpy() for loss in each)
            found = {"seed": seed, "group": y, "cut": before - base, "excess": after - base}
            rows.append(pd.DataFrame(found).groupby(["seed", "group"], as_index=False).mean())
        whole = self.paths.query("t == 1 and activation == 'ReLU'")[["seed", "group", "bound"]]
        return pd.concat(rows).merge(whole)

    @functools.cached_property
    @theory.one_thread()
    def shares(self) -> pd.DataFrame:
        """The exact account of the excess loss, by seed, see :func:`line_integral`."""
        parts = [
            line_integral(net, other, x, y, y, tolerance=TOLERANCE).assign(seed=seed)
            for seed, net, other, x, y in self._pairs()
        ]
        return pd.concat(parts, ignore_index=True)

    @functools.cached_property
    @theory.one_thread()
    def checks(self) -> pd.DataFrame:
        """The statements, what was found, and by that, whether each holds or fails."""
        parts = (
            self._approximation, self._counting, self._best_fits, self._taylor, self._curvature,
            self._minima,
        )  # fmt: skip
        rows = [
            (*STATEMENTS[name], found, "holds" if holds else "fails")
            for part in parts
            for name, found, holds in part()
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def section(self, name: str) -> pd.DataFrame:
        """The rows of :attr:`checks` whose section begins with ``name``."""
        own = self.checks[self.checks["section"].str.startswith(name)]
        return own.set_index("section")

    def _approximation(self) -> Iterator[Row]:
        large = self.rates[self.rates["n"] ** 2 >= self.most_pieces].groupby("function")
        for kind in ("best", "even"):
            powers = [pieces.exponent(own["n"], own[kind]) for _, own in large]
            yield kind, _span(powers), all(abs(power + 2) < 0.1 for power in powers)

    def _counting(self) -> Iterator[Row]:
        for bound in ("arora", "most"):
            share = (self.counts["pieces"] / self.counts[bound]).max()
            yield bound, _span([share]), share <= 1
        kept = [3, 0, 2]
        found, most = _pieces(pieces.sawtooth(kept)), pieces.most_pieces(kept)
        yield "sharp", f"{found}, bound {most}", found == most
        yield "naive", f"{found}, bound {pieces.arora(kept)}", found <= pieces.arora(kept)
        each = [[_pieces(pieces.masked_mlp(1, [2], 1, [r], s)) for s in range(20)] for r in (2, 1)]
        found = [max(counts) for counts in each]
        yield "B.1", f"{found}", found == [3, 2]

    def _best_fits(self) -> Iterator[Row]:
        for who, own in {"everyone": self.fits, "group": self.fits[self.fits["few"]]}.items():
            cost = -own.groupby("n")["error"].mean().diff().max()
            yield who, _span([cost]), cost >= -1e-12

    def _taylor(self) -> Iterator[Row]:
        short = self.paths[self.paths["t"].between(2**-12, 2**-6)]
        for activation, own in short.groupby("activation", sort=False):
            paths = [path for _, path in own.groupby(["seed", "group"])]
            powers = [pieces.exponent(path["t"], path["remainder"]) for path in paths]
            yield activation, _span(powers), all(abs(power - 3) < 0.3 for power in powers)
        ratio, cut = (self.losses["excess"] / self.losses["bound"]).max(), self.losses["cut"].max()
        yield "bound", _span([ratio]), ratio <= 1
        yield "cut", _span([cut]), cut <= 0
        total = self.shares.groupby(["seed", "group"], sort=False)["value"].sum().to_numpy()
        error = np.abs(total - self.losses["excess"]).max()
        yield "account", _span([error]), error <= TOLERANCE

    def _curvature(self) -> Iterator[Row]:
        found = [
            curvature_bounds(*logit(own), x[y == group], y[y == group])
            for seed, net, _, x, y in self._pairs()
            for own in (net, pieces.masked_mlp(2, self.hidden, 2, self.hidden, seed))
            for group in (0, 1)
        ]
        ratio = max(bounds["eigenvalue"] / bounds["spectral"] for bounds in found)
        yield "spectral", _span([ratio]), ratio <= 1
        examples = {
            "largest": (_two_relus, [1.0, 1.0, -1.0], 1),
            "probability": (torch.dot, [0.0], 0),
        }
        for reading, (z, weights, label) in examples.items():
            theta, x = torch.tensor(weights).double(), torch.ones(1, 1).double()
            found = curvature_bounds(theta, z, x, torch.tensor([label]))
            true, bound = found["eigenvalue"], found[reading]
            yield reading, f"{bound:.4g}, λ = {true:.4g}", bound >= true

    def _minima(self) -> Iterator[Row]:
        found: dict[str, list[float]] = {"balance": [], "decay": [], "three": []}
        for seed in self.seeds:
            points, y = (values.numpy() for values in self.sample(seed))
            x = np.column_stack([points, np.ones(len(y))])
            for name, decay in {"balance": 0.0, "decay": DECAY}.items():
                sums = group_gradients(minimum(x, y, decay), x, y, y) * np.bincount(y)[:, None]
                found[name].append(np.linalg.norm(sums.sum(0)) / np.linalg.norm(sums[0]))
            third = np.where(np.arange(len(y)) % 10, y, 2)  # a tenth of either group
            norms = np.linalg.norm(group_gradients(minimum(x, y), x, y, third), axis=1)
            found["three"].append(norms[2] / norms[0])
        for name in ("balance", "decay"):
            yield name, _span(np.round(found[name], 9)), max(found[name]) < 1e-9
        yield "three", _span(found["three"]), min(found["three"]) >= 1


def _two_relus(weights: Tensor, x: Tensor) -> Tensor:
    return weights[2] * (weights[1] * (weights[0] * x[0]).relu()).relu()
