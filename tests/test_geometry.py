"""Measures of geometry against dense float64 matrices, closed forms and brute force."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from relufair import geometry, masks, models, tracing
from relufair.geometry import weights
from relufair.groups import ALL
from relufair.training import Samples


def samples(n=40, shape=(6,), classes=3, seed=0):
    """Random images, normalised to numbers of either sign; the first quarter is group 1."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (n, *shape), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, classes, n))
    half = torch.full((shape[0], *[1] * (len(shape) - 1)), 0.5)
    return Samples(images, labels, (torch.arange(n) < n // 4).long(), half, half / 2)


def mlp(frozen=False, classes=3, seed=0):
    """A masked MLP whose masks are neither 0 nor 1, or frozen to both."""
    torch.manual_seed(seed)
    net = tracing.masked(models.MLP(6, (7, 5), classes), (6,))
    for site in masks.sites(net).values():
        site.alpha.data.uniform_()
    return masks.freeze(net, masks.largest(net, 6)) if frozen else net


def conv(width=3, seed=0):
    """A small masked convolutional network with the batch norm's statistics of some training."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    nn.init.uniform_(net[1].weight, 0.5, 2)
    return tracing.masked(net, (1, 6, 6))


CASES = {
    "trained masks": (mlp(), samples()),
    "frozen masks": (mlp(frozen=True), samples()),
    "convolution and norm": (conv(), samples(shape=(1, 6, 6))),
    "channels last": (conv(16), samples(n=12, shape=(1, 6, 6))),
}
cases = pytest.mark.parametrize(("net", "data"), CASES.values(), ids=CASES)


def functional(net, data, index, loss=F.cross_entropy):
    """The loss as a function of one float64 vector of weights, and that vector."""
    twin = copy.deepcopy(net).double().eval().requires_grad_(False)
    theta = weights(twin)
    x, y = data.inputs(index).double(), data.labels[index]

    def value(flat):
        parts = flat.split([p.numel() for p in theta.values()])
        named = {k: f.view(p.shape) for (k, p), f in zip(theta.items(), parts, strict=True)}
        return loss(functional_call(twin, named, (x,)), y)

    return value, torch.cat([p.flatten() for p in theta.values()])


def hessian(value):
    """The dense matrix, by reverse mode twice."""
    return torch.func.jacrev(torch.func.grad(value))


def spectrum(net, data, index, loss=F.cross_entropy):
    """All eigenvalues of the Hessian, ascending."""
    value, theta = functional(net, data, index, loss)
    return np.linalg.eigvalsh(hessian(value)(theta))


def flat(parts):
    return torch.cat([part.flatten() for part in parts.values()]).double()


@cases
@pytest.mark.parametrize("size", [1, 7, 64])
def test_gradient_is_that_of_the_mean_loss_for_any_batch_size(net, data, size):
    index = torch.arange(1, len(data))
    value, theta = functional(net, data, index)
    ours = geometry.gradient(net, data, index, size)
    torch.testing.assert_close(flat(ours), torch.func.grad(value)(theta), rtol=1e-4, atol=1e-6)


@cases
def test_top_eigenvalue_is_that_of_the_dense_hessian(net, data):
    """Within the tolerance; the lowest Ritz value lies inside the spectrum."""
    index = torch.arange(len(data))
    dense = spectrum(net, data, index)
    for tol, size in {1e-3: 5, 1e-5: 64}.items():
        ours = geometry.top_eigenvalue(net, data, index, tol, size=size)
        assert ours.value == pytest.approx(dense[-1], rel=max(tol, 1e-5))
        assert ours.error <= tol * ours.value and ours.error <= ours.residual
        assert dense[0] - 1e-5 <= ours.lowest <= ours.value
        assert ours.n == len(data) and 2 <= ours.products <= len(dense)


def test_the_residual_is_that_of_the_vector_found():
    """Checked on a matrix, with the vector by inverse iteration at the value."""
    torch.manual_seed(0)
    a = torch.randn(60, 60)
    matrix = a + a.T
    value, residual, error, lowest, steps = geometry._lanczos(matrix.__matmul__, a[0], 1e-2, "LA")
    near = np.abs(np.linalg.eigvalsh(matrix.double().numpy()) - value).min()
    assert 0 < near <= error <= 1e-2 * value < residual
    assert steps < 60 and lowest < 0


def symmetric(top, rest, seed, overlap):
    """A random matrix with these eigenvalues, and a start with this cosine to the first's vector."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(rest) + 1,) * 2))
    other = q[:, 1:] @ rng.normal(size=len(rest))
    start = overlap * q[:, 0] + np.sqrt(1 - overlap**2) * other / np.linalg.norm(other)
    matrix = q * np.array([top, *rest]) @ q.T
    return torch.from_numpy((matrix + matrix.T) / 2), torch.from_numpy(start)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 40), st.floats(0.1, 1), st.floats(0.2, 3),
    st.sampled_from(["normal", "standard_cauchy", "uniform", "few"]), st.sampled_from(["LA", "LM"]),
)  # fmt: skip
def test_the_tolerance_is_that_of_the_value(seed, n, overlap, gap, kind, which):
    """Against LAPACK: within ten times the tolerance, where the largest stands clear of the others.

    Repeated values among them, and, where the largest by sign is asked for, larger negative ones.
    """
    rng = np.random.default_rng(seed)
    rest = rng.choice([-2.0, 0.3, 1.0], n) if kind == "few" else getattr(rng, kind)(size=n)
    rest *= rng.choice([-1, 1])
    size = np.abs(rest).max()
    top = (size if which == "LM" else rest.max()) + gap * size
    assume(top > 1e-3 * size)
    matrix, start = symmetric(top, rest, seed, overlap)
    true = torch.linalg.eigvalsh(matrix)[-1].item()
    value, residual, error, *_ = geometry._lanczos(matrix.__matmul__, start, 1e-3, which)
    assert abs(value - true) <= 1e-2 * true
    assert error <= residual * (1 + 1e-12) and error <= 1e-3 * max(value, 1e-3 * matrix.norm())


def test_the_tolerance_is_met_in_most_cases():
    """Random symmetric matrices with nothing arranged: at most one in twenty is missed."""
    missed = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        matrix = torch.from_numpy(rng.normal(size=(80, 80)))
        matrix, start = matrix + matrix.T, torch.from_numpy(rng.normal(size=80))
        true = torch.linalg.eigvalsh(matrix)
        for which, end in {"LA": true[-1], "LM": true.abs().max()}.items():
            value, *_ = geometry._lanczos(matrix.__matmul__, start, 1e-3, which)
            missed.append(abs(abs(value) - end) > 1e-3 * end)
    assert np.mean(missed) <= 0.05


def test_where_the_tolerance_is_missed():
    """Two values at the top, 1 % apart, are first seen as one between them; and so is a hidden one.

    A smaller tolerance tells them apart. In each case some eigenvalue is within the residual.
    """
    rest, wrong = np.linspace(-0.5, 0.7, 200), 0
    for seed in range(20):
        matrix, start = symmetric(1.0, [0.99, *rest], seed, 0.1)
        for tol in (1e-3, 1e-6):
            value, residual, *_ = geometry._lanczos(matrix.__matmul__, start, tol, "LA")
            assert min(abs(value - 1), abs(value - 0.99)) <= residual
        assert value == pytest.approx(1, rel=1e-6)
        value, *_ = geometry._lanczos(matrix.__matmul__, start, 1e-3, "LA")
        wrong += value < 1 - 1e-3
        assert 0.99 - 1e-3 < value <= 1
    assert wrong > 10
    matrix, start = symmetric(1.0, [0.5, 0.5, 0.1], 0, 1e-6)
    value, residual, *_ = geometry._lanczos(matrix.__matmul__, start, 1e-3, "LA")
    assert value == pytest.approx(0.5, rel=1e-3) and abs(value - 0.5) <= residual


@pytest.mark.parametrize(
    ("ritz", "residuals", "error"),
    [
        ([0, 1, 3], [0.5, 0.25, 0.1], 0.01 / 1.75),  # the second is nearest
        ([0, 2, 3], [2.75, 0.25, 0.1], 0.01 / 0.25),  # the first is nearer than it seems
        ([0, 2, 3], [0.1, 0.95, 0.1], 0.1),  # a gap below the residual
        ([0, 2, 3], [0.1, 1.1, 0.1], 0.1),  # no gap
        ([0, 3], [0, 0.1], 0.1),  # too few to tell
        ([3], [0.1], 0.1),
    ],
)
def test_the_estimate_of_the_error(ritz, residuals, error):
    expected = len(ritz) - 1, pytest.approx(error)
    assert geometry._estimate(np.array(ritz, float), np.array(residuals)) == expected


def test_a_value_that_is_rounding_only_is_no_reason_to_go_on():
    """Zero at the top of a large negative spectrum has no relative error in float32."""
    matrix, start = symmetric(0.0, -np.linspace(1, 2, 60), 0, 0.3)
    matrix, start = matrix.float(), start.float()
    value, _, error, lowest, steps = geometry._lanczos(matrix.__matmul__, start, 1e-3, "LA")
    assert abs(value) <= 1e-5 and error <= 1e-6 * abs(lowest) and steps < 9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), st.integers(0, 9))
def test_lanczos_finds_the_end_of_any_small_spectrum(values, seed):
    """Repeated eigenvalues and zeros, too; the largest by sign, or in size."""
    torch.manual_seed(seed)
    spectrum_ = torch.tensor(values)
    start = torch.randn(len(values)).sign() + 0.1
    top, *_ = geometry._lanczos(lambda v: spectrum_ * v, start, 1e-6, "LA")
    biggest, *_ = geometry._lanczos(lambda v: spectrum_ * v, start, 1e-6, "LM")
    slack = 5e-3 * max(map(abs, values)) + 1e-30  # values as near as this may be seen as one
    assert abs(top - max(values)) <= slack
    assert abs(abs(biggest) - max(map(abs, values))) <= slack


def test_lanczos_says_when_it_gives_up():
    spread = torch.linspace(0, 1, 500)
    with pytest.warns(RuntimeWarning, match="after 5 products the error is about"):
        geometry._lanczos(lambda v: spread * v, torch.ones(500), 1e-6, "LA", limit=5)


class Chain(nn.Module):
    """Logits 0 and z = c relu(b relu(a x)), with three weights and no others."""

    def __init__(self, a, b, c):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(float(v))) for v in (a, b, c))

    def forward(self, x):
        z = self.c * (self.b * (self.a * x).relu()).relu()
        return torch.cat([torch.zeros_like(z), z], 1)


def one(label):
    """A single sample x = 1."""
    return Samples(
        torch.tensor([[255]], dtype=torch.uint8), torch.tensor([label]), torch.tensor([0]),
        torch.zeros(1), torch.ones(1),
    )  # fmt: skip


def pyhessian(net, data, index, **how):
    """The largest eigenvalue in size, by PyHessian's power iteration."""
    import pyhessian as library

    torch.manual_seed(0)
    batch = data.inputs(index), data.labels[index]
    (value,), _ = library.hessian(net, nn.CrossEntropyLoss(), data=batch, cuda=False).eigenvalues(
        **how
    )
    net.zero_grad()
    return value


create_graph = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")


@create_graph
def test_negative_curvature_does_not_win():
    """Where the lowest eigenvalue is the largest in size, power iteration returns that one."""
    net, data, index = Chain(0.5, 0.5, 0.5), one(1), torch.tensor([0])
    dense = spectrum(net, data, index)
    assert dense[0] < -1.5 * dense[-1] < 0
    ours = geometry.top_eigenvalue(net, data, index)
    assert pyhessian(net, data, index) == pytest.approx(dense[0], rel=1e-2)
    assert ours.value == pytest.approx(dense[-1], rel=1e-4)
    assert ours.lowest < 0


@create_graph
def test_agrees_with_pyhessian_where_the_largest_is_positive():
    net, data = CASES["frozen masks"]
    index = torch.arange(len(data))
    theirs = pyhessian(net, data, index, maxIter=1000, tol=1e-6)
    assert geometry.top_eigenvalue(net, data, index).value == pytest.approx(theirs, rel=1e-3)


@cases
def test_gauss_newton_part(net, data):
    """Against the dense matrix; what it lacks is between the ends of the rest (Weyl)."""
    index = torch.arange(len(data))
    value, theta = functional(net, data, index, lambda z, y: z)
    z, jacobian = value(theta), torch.func.jacrev(value)(theta)
    p = z.softmax(1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    dense = torch.einsum("nki,nkl,nlj->ij", jacobian, s, jacobian) / len(data)
    ours = geometry.top_gauss_newton(net, data, index)
    assert ours.value == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-3)
    assert ours.lowest > -1e-5
    loss, _ = functional(net, data, index)
    rest = torch.linalg.eigvalsh(hessian(loss)(theta) - dense)
    part = geometry.top_eigenvalue(net, data, index).value - ours.value
    assert rest[0] - 1e-3 <= part <= rest[-1] + 1e-3


def test_masks_are_no_coordinates():
    """The same masks, trained or frozen: the same names, gradient and eigenvalue."""
    frozen = mlp(frozen=True)
    trained = copy.deepcopy(frozen)
    for site in masks.sites(trained).values():
        alpha = site.alpha
        del site.alpha
        site.alpha = nn.Parameter(alpha)
    data, index = samples(), torch.arange(40)
    assert sum(name.endswith("alpha") for name, _ in trained.named_parameters()) == 2
    assert list(weights(trained)) == [name for name, _ in frozen.named_parameters()]
    ours, theirs = (flat(geometry.gradient(net, data, index)) for net in (trained, frozen))
    assert torch.equal(ours, theirs)
    ours, theirs = (geometry.top_eigenvalue(net, data, index) for net in (trained, frozen))
    assert ours == theirs
    assert all(p.grad is None for p in trained.parameters())


def test_seeds_decide_and_subsamples_have_their_size():
    net, data = CASES["trained masks"]
    every = torch.arange(3, 40)
    drawn = geometry.subsample(every, 20, 1)
    assert torch.equal(drawn, geometry.subsample(every, 20, 1))
    assert not torch.equal(drawn, geometry.subsample(every, 20, 2))
    assert len(drawn.unique()) == 20 and set(drawn.tolist()) <= set(every.tolist())
    first, again, other = (geometry.top_eigenvalue(net, data, drawn, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert first.value == pytest.approx(other.value, rel=1e-3)
    table = geometry.eigenvalues(net, data, n=5)
    assert table["n"].tolist() == [5, 5] and table["group"].tolist() == [0, 1]
    state = torch.get_rng_state()
    geometry.eigenvalues(net, data, n=5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("count", [100, 1000])
def test_memory_is_bounded_by_the_batch(count):
    """However large the group, the network never sees more images at once."""
    net, data, seen = mlp(), samples(count), []
    net.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    index = torch.arange(count)
    geometry.gradient(net, data, index, 50)
    geometry.layer_norms(net, data, 50)
    geometry.top_eigenvalue(net, data, index, size=50)
    geometry.top_gauss_newton(net, data, index, size=50)
    geometry.distances(net, data, size=50)
    geometry.losses(net, data, 50)
    assert max(seen) == 50


# ------------------------------------------------------------------------------------ norms


def test_norms_by_group_and_layer():
    """The total is that of the group's own gradient, and the layers' squares add up to it."""
    net, data = CASES["convolution and norm"]
    table, totals = geometry.layer_norms(net, data), geometry.gradient_norms(net, data, 3)
    assert totals["n"].tolist() == [30, 10]
    for group, index in geometry.members(data).items():
        own = table[table["group"] == group].set_index("layer")
        assert list(own.index) == ["0", "1", "5", ALL]
        norm = flat(geometry.gradient(net, data, index)).norm().item()
        assert totals["gradient"][group] == pytest.approx(norm, rel=1e-4)
        assert own["gradient"].drop(ALL).pow(2).sum() == pytest.approx(norm**2, rel=1e-5)
    np.testing.assert_allclose(table["product"], table["gradient"] * table["weights"])


def test_products_do_not_depend_on_the_scale_before_a_norm():
    """Three times the weights, with the norm's statistics to match: the same network."""
    net, data = conv(), samples(shape=(1, 6, 6))
    net[1].eps = 0
    scaled = copy.deepcopy(net)
    scaled[0].weight.data *= 3
    scaled[1].running_mean *= 3
    scaled[1].running_var *= 9
    before, after = (geometry.layer_norms(n, data) for n in (net, scaled))
    layer = before["layer"] == "0"
    np.testing.assert_allclose(3 * after["gradient"][layer], before["gradient"][layer], rtol=1e-4)
    np.testing.assert_allclose(
        after["product"][before["layer"] != ALL],
        before["product"][before["layer"] != ALL],
        rtol=1e-4,
    )


def test_weight_change_counts_weights_only():
    """A known step; other masks and statistics count for nothing."""
    before, after = conv(), conv()
    after[1].running_mean += 5
    after[2].alpha.data.zero_()
    assert (geometry.weight_change(before, after)["change"] == 0).all()
    after[0].weight.data[0, 0, 0, 0] += 3
    after[5].bias.data[1] -= 4
    table = geometry.weight_change(before, after).set_index("layer")["change"]
    assert table.round(5).to_dict() == {"0": 3, "1": 0, "5": 4, ALL: 5}
    with pytest.raises(ValueError, match="same names and shapes"):
        geometry.weight_change(before, mlp())


# -------------------------------------------------------------------------------- distances


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=5))
def test_gap_and_margin_are_differences_of_the_first_two(row):
    z = torch.tensor([row])
    second, first = sorted(row)[-2:]
    p = np.exp(np.array(row) - first)
    expected = (1 - math.exp(second - first)) / p.sum()
    assert geometry.logit_margin(z).item() == pytest.approx(first - second, abs=1e-5)
    assert geometry.softmax_gap(z).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_distance_to_a_linear_boundary_is_exact(classes):
    """Both kinds, for any number of classes and any batch size."""
    torch.manual_seed(0)
    data, net = samples(), nn.Linear(6, classes)
    index = torch.arange(5, 40)
    with torch.no_grad():
        z, w = net(data.inputs(index)).double(), net.weight.double()
    y = z.argmax(1)
    lead = z.gather(1, y[:, None]) - z
    ways = (w[y][:, None] - w).norm(dim=2)
    exact = (lead / ways).nan_to_num(math.inf).min(1).values
    for size in (4, 128):
        linear, refined = geometry.input_distance(net, data, index, size=size)
        torch.testing.assert_close(linear.double(), exact, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(refined.double(), exact, rtol=1e-4, atol=1e-5)


def nearest(net, x, angles=360, radii=300, reach=3.0):
    """Brute force in two dimensions: the smallest radius at which any direction changes class."""
    angle = torch.linspace(0, 2 * math.pi, angles + 1)[:-1]
    radius = torch.linspace(0, reach, radii + 1)[1:, None, None]
    around = radius * torch.stack([angle.cos(), angle.sin()], 1)
    with torch.no_grad():
        other = net(x + around).argmax(-1) != net(x[None]).argmax()
    hit = other.any(1).nonzero()
    return radius[hit[0]].item() if len(hit) else math.inf


def test_refined_distance_is_an_upper_bound_close_to_brute_force():
    """The brute force is up to one radius too long, and up to a share of 1e-4 for its angles."""
    torch.manual_seed(2)
    net, data = models.MLP(2, (16,), 3), samples(40, (2,))
    for p in net.parameters():
        p.data *= 3
    index = torch.arange(40)
    _, refined = geometry.input_distance(net, data, index)
    exact = torch.tensor([nearest(net, x) for x in data.inputs(index)])
    seen = exact.isfinite()
    assert seen.sum() > 20
    assert (refined[seen] > (exact[seen] - 0.0101) * (1 - 1e-3)).all()
    far = exact.isfinite() & (exact > 0.2)
    assert 0.9 < (refined[far] / exact[far]).median() < 1.1


def test_a_boundary_that_is_not_found_is_infinitely_far():
    """A constant network has none; a network that is flat around an image has none in sight."""
    net, data = nn.Linear(6, 3), samples()
    nn.init.zeros_(net.weight)
    table = geometry.distances(net, data)
    assert np.isinf(table["linear"]).all() and np.isinf(table["refined"]).all()


def test_table_of_distances():
    net, data = CASES["convolution and norm"]
    index = torch.tensor([30, 2, 5])
    table = geometry.distances(net, data, index)
    assert table["sample"].tolist() == [30, 2, 5] and table["group"].tolist() == [0, 1, 1]
    whole = geometry.distances(net, data, size=7)
    assert len(whole) == 40
    for column in ("gap", "margin", "linear", "refined"):
        np.testing.assert_allclose(whole[column][index.numpy()], table[column], rtol=1e-3)
    z = net(data.inputs(index)).softmax(1).sort(1).values
    np.testing.assert_allclose(table["gap"], (z[:, -1] - z[:, -2]).detach(), rtol=1e-5)


# ----------------------------------------------------------------------------------- bounds


def test_proposition_4_5_needs_the_spectral_norm():
    """Two hidden ReLUs: the Hessian of z has the eigenvalues 1, 1 and -2, and the bound is tight."""
    net, data = Chain(1, 1, -1), one(1)
    sigma = 1 / (1 + math.e)
    (row,) = geometry.curvature_bounds(net, data).to_dict("records")
    assert row["proximity"] == pytest.approx(3 * sigma * (1 - sigma), rel=1e-4)
    assert row["error"] == pytest.approx(2 * (1 - sigma), rel=1e-4)
    assert (
        row["eigenvalue"]
        == pytest.approx(row["bound"], rel=1e-4)
        == pytest.approx(2.05195, rel=1e-4)
    )
    assert row["holds"] and row["proximity"] + row["error"] / 2 < row["eigenvalue"]


def test_terms_of_proposition_4_5_are_those_of_dense_derivatives():
    net, data = mlp(classes=2), samples(classes=2)
    index = torch.tensor([0, 20, 33])
    table = geometry.logit_curvature(net, data, index, tol=1e-4)
    assert table["sample"].tolist() == index.tolist() and table["group"].tolist() == [1, 0, 0]
    for i, row in zip(index, table.itertuples(), strict=True):
        logit, theta = functional(net, data, i[None], lambda z, y: (z[:, 1] - z[:, 0]).sum())
        sigma = logit(theta).sigmoid().item()
        slope = torch.func.grad(logit)(theta).norm().item()
        norm = np.linalg.norm(hessian(logit)(theta), 2)
        error = abs(sigma - data.labels[i].item())
        assert row.proximity == pytest.approx(sigma * (1 - sigma) * slope**2, rel=1e-3)
        assert row.error == pytest.approx(error * norm, rel=1e-3)
    bounds = geometry.curvature_bounds(net, data, n=6)
    assert bounds["holds"].all() and (bounds["n"] == 6).all()


def test_logistic_regression_has_no_second_term():
    torch.manual_seed(0)
    table = geometry.curvature_bounds(nn.Linear(6, 2), samples(classes=2))
    assert (table["error"] == 0).all() and table["holds"].all()


# --------------------------------------------------------------------------- as released, errors


def test_released_measures_depend_on_the_batch():
    """In one batch they are the whole group's; in smaller ones they are larger."""
    net, data = mlp(), samples(80)
    exact = geometry.gradient_norms(net, data)["gradient"]
    whole = geometry.released_gradient_norm(net, data, batch=80)
    small = geometry.released_gradient_norm(net, data, batch=8)
    np.testing.assert_allclose(whole["value"], exact, rtol=1e-4)
    assert whole["n"].tolist() == small["n"].tolist() == [60, 20]
    assert whole["batches"].tolist() == [1, 1] and small["batches"][0] == 10
    parts = [i for group, i in geometry._mixed(data, 8, 0) if group == 1]
    each = [flat(geometry.gradient(net, data, part)).norm().item() for part in parts]
    assert small["value"][1] == pytest.approx(np.mean(each), rel=1e-5)
    growth = small["value"] / whole["value"]
    assert growth[1] > growth[0]
    exact = geometry.eigenvalues(net, data)["value"]
    whole, small = (geometry.released_eigenvalue(net, data, batch) for batch in (80, 20))
    np.testing.assert_allclose(whole["value"], exact, rtol=1e-3)
    parts = [i for group, i in geometry._mixed(data, 20, 0) if group == 1]
    each = [geometry.top_eigenvalue(net, data, part).value for part in parts]
    assert small["value"][1] == max(each) > whole["value"][1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, d, i: geometry.gradient(n, d, i[:0]), "index: must name at least one"),
        (lambda n, d, i: geometry.gradient(n, d, i, 0), "size=0"),
        (lambda n, d, i: geometry.top_eigenvalue(n, d, i, tol=0), "tol=0.*at least 1e-06"),
        (lambda n, d, i: geometry.eigenvalues(n, d, n=11), "n=11.*from 1 to the 10 samples"),
        (lambda n, d, i: geometry.input_distance(n, d, i, steps=0), "steps=0"),
        (lambda n, d, i: geometry.released_gradient_norm(n, d, batch=0), "batch=0"),
        (lambda n, d, i: geometry.logit_curvature(n, d, i), "net has 3 logits: must have 2"),
    ],
)
def test_impossible_values_are_named(call, message):
    net, data = CASES["trained masks"]
    with pytest.raises(ValueError, match=message):
        call(net, data, torch.arange(40))
