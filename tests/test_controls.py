"""The controls: uniform choices, and first-order effects against finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relufair import masks, models, tracing
from relufair.linearize import controls
from relufair.training import Samples


def samples(n=10, seed=0):
    """Random images with labels in double precision."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=rng)
    labels = torch.arange(n) % 3
    mean, std = (torch.full((1, 1, 1), v, dtype=torch.float64) for v in (0.5, 0.25))
    return Samples(images, labels, labels, mean, std)


def network(seed=0):
    """A masked network of 18 + 8 + 5 units with a norm, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(),
            nn.Conv2d(2, 2, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3),
        )  # fmt: skip
        plain[1].running_mean.uniform_(-0.5, 0.5)
        plain[1].running_var.uniform_(0.5, 2)
    return tracing.masked(plain.double(), (1, 4, 4))


def losses(net, data):
    """The loss of every sample."""
    x = data.inputs(torch.arange(len(data)))
    with torch.no_grad():
        return F.cross_entropy(net.eval()(x), data.labels, reduction="none")


def test_effects_are_finite_differences():
    """One mask at a time moves by a small step, and every sample's loss by its share."""
    net, data, step = network(), samples(), 1e-4
    found = controls.effects(net, data, size=3)
    for name, site in masks.sites(net).items():
        flat = site.alpha.data.view(-1)
        for i in range(len(flat)):
            flat[i] = 1 - step
            less = losses(net, data)
            flat[i] = 1 + step
            more = losses(net, data)
            flat[i] = 1.0
            expected = ((less - more) / (2 * step)).abs().mean().item()
            assert found[name].view(-1)[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_effects_do_not_cancel_between_samples():
    """The mean of absolute values is not the absolute value of the mean."""
    net, data = network(), samples()
    net.eval()
    x = data.inputs(torch.arange(len(data)))
    F.cross_entropy(net(x), data.labels).backward()
    found = controls.effects(net, data)
    below = 0
    for name, site in masks.sites(net).items():
        assert (site.alpha.grad.abs() <= found[name] * (1 + 1e-5) + 1e-9).all()
        below += int((site.alpha.grad.abs() < 0.9 * found[name]).sum())
    assert below > 10


def test_a_unit_that_is_never_below_zero_has_no_effect():
    """Linearizing it changes nothing, so it goes first; the most effective unit goes last."""
    net = tracing.masked(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()), (1, 4, 4)
    ).double()
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([1e3, -1e2, -1e3]))
    found = controls.effects(net, samples())["2"]
    assert 0 == found[0] < found[1] < found[2]
    for units, expected in ((1, [False, False, True]), (2, [False, True, True])):
        assert masks.top({"2": found}, units)["2"].tolist() == expected


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_passes_do_not_matter(size):
    """Any number of samples a pass, also with frozen weights and gradients switched off."""
    whole = controls.effects(network(), samples())
    net = network().requires_grad_(False)
    with torch.no_grad():
        found = controls.effects(net, samples(), size=size)
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value)


def test_nothing_is_left_behind():
    """No gradients, no hooks, no change of the weights, the norms or the masks."""
    net, data = network(), samples()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    controls.effects(net.train(), data)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not [m for m in net.modules() if m._forward_hooks]


@pytest.mark.parametrize("units", [0, 1, 17, 30, 31])
def test_counts_are_exact(units):
    """Over the whole network."""
    kept = controls.random(network(), units, seed=3)
    assert masks.count(masks.freeze(network(), kept)) == units


def test_random_is_uniform():
    """Every unit is kept as often, and every pair: by chi-square over 4,000 seeds."""
    net = tracing.masked(models.MLP(2, (2, 4), 2), (2,))
    draws = np.stack([
        torch.cat(list(controls.random(net, 2, seed).values())).numpy() for seed in range(4000)
    ])  # fmt: skip
    assert (draws.sum(1) == 2).all()
    pairs = np.unique(draws @ (2 ** np.arange(6)), return_counts=True)[1]
    assert len(pairs) == 15
    expected = 4000 / 15
    # 36.1 is the 99.9th percentile of chi-square with 14 degrees of freedom; the seeds are fixed.
    assert ((pairs - expected) ** 2 / expected).sum() < 36.1


def test_random_is_decided_by_its_seed_alone():
    """Not by the global generator, which stays as it was, nor by the masks' values."""
    net = network()
    state = torch.get_rng_state()
    one = controls.random(net, 9, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    next(iter(masks.sites(net).values())).alpha.data.zero_()
    same, other = controls.random(net, 9, seed=1), controls.random(net, 9, seed=2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_too_many_units_are_refused():
    """The message says how many there are."""
    for units in (-1, 32):
        with pytest.raises(ValueError, match=f"units={units}: must be between 0 and 31"):
            controls.random(network(), units, seed=0)
