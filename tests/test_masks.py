"""Masked ReLUs against plain ones, closed forms and numerical derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relufair import masks, models, tracing


def small(width=4):
    return models.build("resnet18", classes=3, channels=1, width=width, seed=1)


def test_masks_at_one_are_the_plain_network_bit_for_bit():
    """Outputs and all gradients are equal, in training mode too."""
    plain, x = small(), torch.randn(4, 1, 16, 16)
    net = tracing.masked(plain, (1, 16, 16))
    for training in (False, True):
        outputs = [n.train(training)(x) for n in (plain, net)]
        assert torch.equal(*outputs)
    grads = []
    for n in (plain, net):
        n.zero_grad()
        n(x).logsumexp(1).sum().backward()
        grads.append({k: p.grad for k, p in n.named_parameters() if not k.endswith("alpha")})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_masks_at_zero_are_the_identity():
    """With all masks at 0, a network without biases or norms is the product of its matrices."""
    mlp = models.MLP(3, (5, 5), 2)
    net = tracing.masked(mlp, (3,))
    masks.freeze(net, {k: torch.zeros(5, dtype=torch.bool) for k in masks.sites(net)})
    x, (a, _, b, _, c) = torch.randn(7, 3), mlp.layers
    torch.testing.assert_close(net(x), c(b(a(x))))
    assert masks.count(net) == 0


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6),
    st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
)
def test_formula_of_the_paper(x, alpha):
    """Alpha relu(x) + (1 - alpha) x, computed in double precision."""
    x, alpha = torch.tensor(x).view(2, 3), torch.tensor(alpha)
    expected = alpha.double() * x.double().relu() + (1 - alpha.double()) * x.double()
    torch.testing.assert_close(masks.leaky(x, 1 - alpha).double(), expected, rtol=1e-6, atol=1e-6)


def test_derivatives_are_exact_and_exist_twice():
    """First and second derivatives in x and alpha agree with finite differences."""
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(masks.leaky, (x, slope))
    assert torch.autograd.gradgradcheck(masks.leaky, (x, slope))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_plain(monkeypatch, layout, trained, dtype):
    """The compiled kernels give the plain operations' outputs and gradients."""
    monkeypatch.setattr(masks, "FUSE_FROM", 1)
    torch.manual_seed(0)
    site = masks.MaskedReLU((6, 5, 3))
    if trained:
        site.alpha.data.uniform_()
    else:
        site.freeze(torch.rand(6, 5, 3) > 0.5)
    results = []
    for fuse in (False, True):
        x = torch.randn(8, 6, 5, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
        x = x.to(memory_format=layout).requires_grad_()
        site.zero_grad()
        if fuse:
            with masks.fused():
                out = site(x)
        else:
            out = site(x)
        (out.float() ** 2).sum().backward()
        results.append([out, x.grad] + ([site.alpha.grad] if trained else []))
    for plain, fused in zip(*results, strict=True):
        assert plain.dtype == fused.dtype
        # bfloat16 is rounded once in the kernel and after every operation outside it.
        tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(fused, plain, **tolerance)


def test_without_a_compiler_masks_run_plain_and_say_so(monkeypatch):
    """A failing compiler costs speed and a warning, not the run."""

    def broken(kernel, dynamic):
        def fail(*args):
            raise RuntimeError("no C++ compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    masks._compiled.cache_clear()
    with pytest.warns(RuntimeWarning, match="uncompiled.*no C\\+\\+ compiler"):
        assert masks._compiled(masks.leaky, "cpu", torch.float32) is masks.leaky
    masks._compiled.cache_clear()


def test_frozen_masks_are_out_of_the_optimizers_reach():
    """After freezing, no mask is a parameter, and the count is exact."""
    net = tracing.masked(small(), (1, 16, 16))
    masks.freeze(net, masks.largest(net, 100))
    assert masks.count(net) == 100
    assert not [name for name, _ in net.named_parameters() if name.endswith("alpha")]
    assert {v.item() for s in masks.sites(net).values() for v in s.alpha.unique()} == {0.0, 1.0}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.randoms(use_true_random=False))
def test_largest_keeps_exactly_the_largest(units, random):
    """Over the whole network, not layer by layer."""
    net = tracing.masked(models.MLP(2, (7, 13), 2), (2,))
    values = [random.random() for _ in range(20)]
    for site, part in zip(masks.sites(net).values(), (values[:7], values[7:]), strict=True):
        site.alpha.data = torch.tensor(part)
    kept = torch.cat(list(masks.largest(net, units).values()))
    assert kept.sum() == units
    top = sorted(torch.tensor(values).tolist(), reverse=True)[:units]
    assert sorted(torch.tensor(values)[kept].tolist(), reverse=True) == top


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_units_never_exceed_the_budget(relus, budget):
    """Rounded down; nothing left is refused unless asked for."""
    if 0 < budget < 1 / relus * (1 - 1e-9):
        with pytest.raises(ValueError, match="would leave none"):
            masks.units(budget, relus)
    else:
        kept = masks.units(budget, relus)
        assert kept <= budget * relus * (1 + 1e-9) < kept + 1 + 1e-6 * relus


@pytest.mark.parametrize("budget", [1.5, -0.1, float("nan")])
def test_impossible_budgets_are_named(budget):
    """The message has the parameter, the value and what is allowed."""
    with pytest.raises(ValueError, match=f"budget={budget}.*between 0 and 1"):
        masks.units(budget, 100)


def test_the_derivative_at_zero_is_that_of_a_relu():
    """Exactly zero inputs are common: behind another ReLU, or a norm that starts at zero."""
    slope = torch.tensor([0.0, 0.25, 1.0])
    x = torch.zeros(1, 3, requires_grad=True)
    masks.leaky(x, slope).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.25, 1.0]]
    assert masks._grad_input(torch.ones(1, 3), x.detach(), slope).tolist() == x.grad.tolist()


def test_a_masked_negative_is_not_minus_zero():
    """Bit for bit means the sign of zero, too."""
    assert not masks.leaky(torch.tensor([-1.0, -0.0]), torch.zeros(2)).signbit().any()


def test_masks_are_only_for_images_of_their_size():
    """One mask a channel would be broadcast to any image, and the count would be wrong."""
    net = tracing.masked(small(), (1, 16, 16))
    with pytest.raises(ValueError, match=r"samples of \(4, 16, 16\), here they are \(4, 32, 32\)"):
        net(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="masked\\(\\) the shape of the images"):
        masks.MaskedReLU((3, 1, 1))(torch.zeros(2, 3, 4, 4))


def test_only_booleans_of_its_shape_fix_a_site():
    """Numbers would be read as masks between 0 and 1; another shape would be broadcast."""
    for kept in (torch.ones(3), torch.ones(1, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"must be torch.bool \(3,\)"):
            masks.MaskedReLU((3,)).freeze(kept)
