"""Bounds against dense references, the exact account against losses, and the chapter's verdicts."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from relufair import bounds, masks, models, pieces, plots, tracing

SMALL = {
    "functions": ["square", "steep"], "most_pieces": 32, "hidden": [4, 3], "budgets": [0.5],
    "samples": 100, "steps": 40, "seeds": [0],
}  # fmt: skip


def data(n=20, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def mlp(seed=0, kept=(5, 4), hidden=(5, 4)):
    return pieces.masked_mlp(2, hidden, 2, kept, seed)


def images(seed=0):
    """Two small ResNets that differ in weights, masks and buffers, and samples of three groups."""
    torch.manual_seed(seed)
    x, y = torch.randn(12, 1, 16, 16, dtype=torch.float64), torch.randint(3, (12,))
    net = tracing.masked(
        models.build("resnet18", classes=3, channels=1, width=2, seed=1), (1, 16, 16)
    )
    net = net.double()
    for seed in range(3):  # buffers away from 0 and 1
        net.train()(x + seed)
    other = copy.deepcopy(net)
    other.train()(2 * x)
    masks.freeze(other, masks.largest(other, masks.total(net) // 2))
    with torch.no_grad():
        for p in other.parameters():
            p += 0.02 * torch.randn_like(p)
    return net.eval(), other.eval(), x, y, torch.arange(12) % 3


@torch.no_grad()
def excess(a, b, x, y, groups):
    """Per group, by plain evaluation."""
    per = [F.cross_entropy(net.eval()(x), y, reduction="none") for net in (a, b)]
    return np.array([(per[1] - per[0])[groups == g].mean().item() for g in groups.unique()])


# Theorem 4.4 -------------------------------------------------------------------------------------


def test_taylor_against_finite_differences():
    """Gradient and largest eigenvalue by differences of the loss in every direction."""
    net, other, (x, y) = bounds.smooth(mlp(0, (2, 2), (2, 2))), mlp(1, (2, 2), (2, 2)), data()
    theta, call = bounds.flat(net)
    way = bounds.flat(other)[0] - theta

    def loss(at):
        return F.cross_entropy(call(at, x), y).item()

    unit, h = torch.eye(len(theta), dtype=torch.float64), 1e-4
    plus = [[loss(theta + h * (u + v)) for u in unit] for v in unit]
    single = [loss(theta + h * u) for u in unit]
    base = loss(theta)
    curvature = (
        np.array(
            [
                [plus[i][j] - single[i] - single[j] + base for j in range(len(unit))]
                for i in range(len(unit))
            ]
        )
        / h**2
    )
    gradient = np.array([loss(theta + h * u) - loss(theta - h * u) for u in unit]) / (2 * h)
    top, length = np.linalg.eigvalsh(curvature)[-1], way.norm().item()
    table = bounds.taylor(net, other, x, y, [0.5, 1.0])
    expected = [
        t * np.linalg.norm(gradient) * length + t**2 / 2 * top * length**2 for t in (0.5, 1.0)
    ]
    np.testing.assert_allclose(table["bound"], expected, rtol=1e-3)
    assert table["excess"].iloc[1] == pytest.approx(loss(theta + way) - base)


def test_the_remainder_is_cubic_where_smooth():
    """An eighth for half of the step; at the start nothing is left over."""
    (x, y), steps = data(), [0.0, *(2.0 ** -np.arange(6, 12))]
    table = bounds.taylor(bounds.smooth(mlp(0)), mlp(1), x, y, steps)
    assert table["remainder"].iloc[0] < 1e-15
    assert pieces.exponent(table["t"][1:], table["remainder"][1:]) == pytest.approx(3, abs=0.1)
    assert (table["excess"] <= table["bound"] + table["remainder"]).all()


# Proposition 4.5 ---------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_the_corrected_bound_holds(seed, hidden):
    """With any weights; with one hidden layer the spectrum is symmetric, so λ is the norm."""
    x, y = data(8, seed=seed)
    found = bounds.curvature_bounds(*bounds.logit(mlp(seed, hidden, hidden)), x, y)
    assert found["eigenvalue"] <= found["spectral"] * (1 + 1e-9)
    assert found["largest"] <= found["spectral"] * (1 + 1e-9)
    if len(hidden) == 1:
        assert found["largest"] == pytest.approx(found["spectral"])


def test_where_the_other_readings_fail():
    """By hand: logistic regression, and c·relu(b·relu(a·x)) at a = b = x = y = 1, c = −1."""
    x = torch.tensor([[3.0, 4.0]]).double()
    found = bounds.curvature_bounds(torch.zeros(2).double(), torch.dot, x, torch.tensor([0]))
    assert found["eigenvalue"] == pytest.approx(25 / 4)
    assert found["spectral"] == found["largest"] == pytest.approx(25 / 4)
    assert found["probability"] == pytest.approx(25 / 64)
    weights, one = torch.tensor([1.0, 1, -1]).double(), torch.ones(1, 1).double()
    found = bounds.curvature_bounds(weights, bounds._two_relus, one, torch.tensor([1]))
    # z = abc: its gradient is (−1, −1, 1), and its Hessian has the eigenvalues −1, −1 and 2.
    h = 1 / (1 + np.e)
    spread, residual = 3 * h * (1 - h), 1 - h
    second = np.array([[0, -1, 1], [-1, 0, 1], [1, 1, 0]])
    first = np.array([-1, -1, 1])
    true = np.linalg.eigvalsh(h * (1 - h) * np.outer(first, first) + (h - 1) * second)[-1]
    assert found["eigenvalue"] == pytest.approx(true) == pytest.approx(2.052, abs=1e-3)
    assert found["spectral"] == pytest.approx(spread + residual * 2)
    assert found["largest"] == pytest.approx(spread + residual) == pytest.approx(1.321, abs=1e-3)


# Appendix A.1 ------------------------------------------------------------------------------------


def test_gradients_balance_at_a_minimum():
    """Sizes times gradients add up to zero, or to minus n times the pull of the weight decay."""
    x, y = (values.numpy() for values in data(60))
    groups = np.arange(60) % 7 % 3
    for decay in (0.0, 0.1):
        theta = bounds.minimum(x, y, decay)
        sums = bounds.group_gradients(theta, x, y, groups) * np.bincount(groups)[:, None]
        np.testing.assert_allclose(sums.sum(0), -60 * decay * theta, atol=1e-12)
    h = 1 / (1 + np.exp(-x @ theta))
    own = groups == 1
    expected = ((h - y)[own, None] * x[own]).mean(0)
    np.testing.assert_allclose(bounds.group_gradients(theta, x, y, groups)[1], expected)


# The exact account -------------------------------------------------------------------------------


def test_the_account_adds_up_on_a_resnet():
    """For every group; each part of the network moves, and each has its rows."""
    a, b, x, y, groups = images()
    table = bounds.line_integral(a, b, x, y, groups, tolerance=1e-3)
    total = table.groupby("group")["value"].sum()
    np.testing.assert_allclose(total, excess(a, b, x, y, groups), atol=1e-3)
    assert np.abs(excess(a, b, x, y, groups)).min() > 1e-2
    parts = table.groupby("part")["value"].agg(lambda v: v.abs().sum())
    assert set(parts.index) == {"weights", "slopes", "buffers"} and (parts > 1e-4).all()
    assert {"conv1", "bn1", "layer1.0.relu1", "fc"} <= set(table["layer"])
    assert len(table) == len(table[["group", "part", "layer"]].drop_duplicates())


@pytest.mark.parametrize("part", ["weights", "slopes", "buffers"])
def test_only_what_moves_has_a_share(part):
    """Where only one kind differs, it is given everything."""
    a, b, x, y, groups = images()
    kinds = {"alpha": "slopes", "running_mean": "buffers", "running_var": "buffers"}
    state = {
        k: v if kinds.get(k.rpartition(".")[2], "weights") == part else a.state_dict()[k]
        for k, v in b.state_dict().items()
    }
    b.load_state_dict(state)
    table = bounds.line_integral(a, b, x, y, groups, tolerance=2e-3)
    assert (table.loc[table["part"] != part, "value"] == 0).all()
    own = table[table["part"] == part].groupby("group")["value"].sum()
    np.testing.assert_allclose(own, excess(a, b, x, y, groups), atol=2e-3)


def test_rates_are_the_derivatives_of_the_losses():
    """Also through the normalisation buffers, which torch itself does not differentiate."""
    a, b, x, y, groups = images()
    way, h = bounds._Way(a, b, x, y, groups, 5), 1e-6
    slope = (way.losses(0.3 + h) - way.losses(0.3 - h)) / (2 * h)
    torch.testing.assert_close(way.rates(0.3).sum(1), slope, rtol=1e-4, atol=1e-5)
    assert torch.equal(bounds._differentiable(a)(x), a(x)) or torch.allclose(
        bounds._differentiable(a)(x), a(x), rtol=1e-10
    )


def test_shares_in_closed_form():
    """Logistic regression: each weight has its input times the integral of the residual."""
    (a, b), x = (nn.Linear(1, 2).double() for _ in range(2)), torch.tensor([[1.5], [-0.5]]).double()
    y, groups = torch.tensor([1, 0]), torch.tensor([4, 9])
    table = bounds.line_integral(a, b, x, y, groups, tolerance=1e-10, points=8)
    assert table["group"].tolist() == [4, 9]
    start, step = ([v.detach() for v in n.parameters()] for n in (a, b))
    step = [end - begin for begin, end in zip(start, step, strict=True)]
    a_z, b_z = ((n(x)[:, 1] - n(x)[:, 0]).detach().numpy() for n in (a, b))
    for i in range(2):
        residual = quad(
            lambda t, i=i: 1 / (1 + np.exp(-(1 - t) * a_z[i] - t * b_z[i])) - y[i].item(), 0, 1
        )[0]
        move = (step[0][1] - step[0][0]).item() * x[i].item() + (step[1][1] - step[1][0]).item()
        assert table["value"][i] == pytest.approx(move * residual)


def test_batches_callables_and_groups_do_not_matter():
    """The same account in small batches, from a function, and for a group alone."""
    a, b, (x, y) = mlp(0), mlp(1, (2, 2)), data(30)
    groups = y.clone()
    settings = {"tolerance": 1e-2}
    whole = bounds.line_integral(a, b, x, y, groups, **settings)
    parts = bounds.line_integral(a, b, lambda index: x[index], y, groups, batch=7, **settings)
    np.testing.assert_allclose(whole["value"], parts["value"], atol=1e-7)
    np.testing.assert_allclose(
        whole.groupby("group")["value"].sum(), excess(a, b, x, y, groups), atol=1e-2
    )


def test_the_networks_are_left_as_they_were():
    """Training mode, values, and masks that are parameters in one and buffers in the other."""
    a, b, (x, y) = mlp(0), mlp(1), data()
    a.train()
    site = a.layers[1]
    alpha = site.alpha
    del site.alpha
    site.alpha = nn.Parameter(alpha)
    before = copy.deepcopy(a.state_dict())
    bounds.line_integral(a, b, x, y, y, tolerance=0.1)
    assert a.training and all(torch.equal(v, before[k]) for k, v in a.state_dict().items())
    assert all(p.grad is None for p in a.parameters())


def test_what_cannot_be_integrated_is_refused(monkeypatch):
    """Other entries, and a tolerance out of reach."""
    (x, y), net = data(), mlp()
    with pytest.raises(
        ValueError, match=r"net_b: must have the same entries as net_a; layers.0.weight"
    ):
        bounds.line_integral(net, mlp(hidden=(5, 3), kept=(1, 1)).layers, x, y, y)
    with pytest.raises(ValueError, match=r"net_b: .* layers.0.weight differs"):
        bounds.line_integral(net, mlp(hidden=(3, 4), kept=(1, 1)), x, y, y)
    monkeypatch.setattr(bounds, "MOST_INTERVALS", 2)
    with pytest.raises(RuntimeError, match="tolerance=1e-12: not reached, the error is"):
        bounds.line_integral(net, mlp(1), x, y, y, tolerance=1e-12)


# The chapter -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    return bounds.Theory(**SMALL)


def test_the_verdicts(study):
    """What holds, and what does not."""
    table = study.checks
    assert table.columns.tolist() == bounds.COLUMNS and not table.isna().any(axis=None)
    assert len(table) == len(bounds.STATEMENTS)
    said = dict(zip(bounds.STATEMENTS, table["verdict"], strict=True))
    assert {name for name, verdict in said.items() if verdict == "fails"} - {"ReLU", "softplus"} == {
        "even", "naive", "group", "cut", "largest", "probability", "decay", "three",
    }  # fmt: skip
    assert study.section("4.5").index.tolist() == ["4.5*", "4.5", "4.5"]


def test_the_order_of_the_seeds_does_not_matter():
    """The account of each seed stands beside the loss of the same seed."""
    found = bounds.Theory(**SMALL | {"seeds": [1, 0]})._taylor()
    assert {name: holds for name, _, holds in found}["account"]


def test_every_check_can_fail(monkeypatch):
    """Wrong numbers turn the verdicts around."""
    study = bounds.Theory(**SMALL)
    monkeypatch.setattr(pieces, "most_pieces", lambda kept: 1)
    monkeypatch.setattr(pieces, "exponent", lambda x, y: -1.0)
    monkeypatch.setattr(pieces, "best_fit", lambda x, y, knots, n: y + n)
    monkeypatch.setattr(bounds, "minimum", lambda x, y, decay=0.0: np.ones(x.shape[1]))
    found = bounds.curvature_bounds
    monkeypatch.setattr(
        bounds, "curvature_bounds", lambda *args: {**found(*args), "spectral": 1e-9}
    )
    vars(study)["losses"] = study.losses.assign(bound=-1.0, cut=-1.0, excess=-2.0)
    said = dict(zip(bounds.STATEMENTS, study.checks["verdict"], strict=True))
    assert {name for name, verdict in said.items() if verdict == "holds"} == {"arora", "B.1", "cut"}


def test_the_counterexample_is_exact(study):
    """One piece meets the two points exactly; the best two pieces, with any knot, do not."""
    fits = study.fits
    few = fits[fits["few"]].groupby("n")["error"].mean()
    assert few[1] < 1e-30 and few[2] > 1e-3
    own = fits[fits["n"] == 2]
    x, y = own["x"].to_numpy(), own["y"].to_numpy()
    for knot in np.linspace(-0.97, 0.97, 98):
        assert ((pieces.best_fit(x, y, [knot], 2) - y) ** 2).mean() >= own["error"].mean() - 1e-12


def test_the_studys_networks(study):
    """Budgets are kept, students start from the teacher and are trained on."""
    teacher, student = study.networks[0, 1.0], study.networks[0, 0.5]
    assert masks.count(teacher) == 7 and masks.count(student) == 2 + 1
    x, y = study.sample(0)
    cut = pieces.linearized(teacher, [2, 1])
    losses = [F.cross_entropy(net(x), y).item() for net in (cut, student)]
    assert losses[1] < losses[0]
    assert study.counts["pieces"].max() > 3


def test_figures_show_the_tables(study):
    """Every number of the tables is somewhere in the figures."""
    try:
        figure = plots.approximation(study.rates, study.note(networks=False))
        for axis, kind in zip(figure.axes, ("best", "even"), strict=True):
            drawn = np.concatenate([line.get_ydata() for line in axis.lines])
            assert np.isin(study.rates[kind], drawn).all()
        figure = plots.network_pieces(study.profile, study.counts, study.note())
        drawn = np.concatenate([line.get_ydata() for line in figure.axes[1].lines])
        assert np.isin(study.counts[["pieces", "most", "arora"]], drawn).all()
        marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert sum(len(line.get_xdata()) for line in marks) == study.profile["bends"].sum()
        figure = plots.best_fits(study.fits)
        error = study.fits.groupby("n")["error"].mean()
        assert any(np.array_equal(line.get_ydata(), error) for line in figure.axes[1].lines)
        figure = plots.remainders(study.paths)
        drawn = np.concatenate([line.get_ydata() for axis in figure.axes for line in axis.lines])
        assert np.isin(study.paths["remainder"], drawn).all()
        figure = plots.account(study.shares)
        heights = [bar.get_height() for bar in figure.axes[0].patches]
        for _, own in study.shares.groupby("group"):
            assert np.isclose(heights, own["value"].sum()).any()
            assert all(np.isclose(heights, value).any() for value in own["value"])
    finally:
        plt.close("all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"functions": ["cube"]}, "functions='cube': allowed are square"),
        ({"functions": []}, "functions=.*at least one"),
        ({"most_pieces": 16}, "most_pieces=16: .*at least 32"),
        ({"hidden": []}, "hidden"),
        ({"hidden": [0]}, "hidden=0"),
        ({"budgets": [1.0]}, "budgets=1.0: must leave some ReLUs, and take some away"),
        ({"budgets": [0.0]}, "budgets=0.0: must leave some"),
        ({"budgets": [1.5]}, "budget=1.5.*between 0 and 1"),
        ({"budgets": [0.1]}, "would leave none of the 4 ReLUs"),
        ({"samples": 10}, "samples=10"),
        ({"steps": 0}, "steps=0"),
        ({"seeds": [1, 1]}, "seeds=.*none twice"),
        ({"seeds": [-1]}, "seeds=-1"),
    ],
)
def test_impossible_values_are_named(change, message):
    """Parameter, value, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        bounds.Theory(**SMALL | change)
