"""Masks on networks from anywhere: equal to what they came from, or refused with the reason."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_masks import small
from torch import nn
from torchvision.models import vgg

from relufair import masks, tracing


def test_masking_keeps_names_values_mode_and_the_original():
    """The copy has the same parameters under the same names, and the original has no masks."""
    plain = small().train()
    net = tracing.masked(plain, (1, 16, 16))
    ours = {k: v for k, v in net.state_dict().items() if not k.endswith(".alpha")}
    assert list(ours) == list(plain.state_dict())
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in ours.items())
    assert net.training and not masks.sites(plain)


def torchvision_vgg(layers="A"):
    """A torchvision VGG with batch norm, without the hundred million weights of its head."""
    features = vgg.make_layers(vgg.cfgs[layers], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))


# Masks at 32 x 32 by hand, and a few of the names.
FOREIGN = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=5),
        # After the stem 64 channels on 16 x 16; blocks from 8 x 8 down to 1 x 1.
        64 * 256 + 4 * (64 * 64 + 128 * 16 + 256 * 4 + 512),
        ["relu", "layer1.0.relu", "layer1.0.relu_2", "layer1.1.relu", "layer1.1.relu_2"],
    ),
    "vgg11": (
        torchvision_vgg,
        64 * 1024 + 128 * 256 + 2 * 256 * 64 + 2 * 512 * 16 + 2 * 512 * 4,
        ["0.2", "0.6", "0.10", "0.13", "0.17", "0.20", "0.24", "0.27"],
    ),
    "regnet": (
        lambda: torchvision.models.regnet_x_400mf(num_classes=5),
        60_656,
        ["stem.2", "trunk_output.block1.block1-0.f.a.2", "trunk_output.block1.block1-0.f.b.2"],
    ),
    "googlenet": (
        lambda: torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False),
        65_840,
        ["conv1.relu", "conv2.relu", "conv3.relu", "inception3a.branch1.relu"],
    ),
}


def gradients(net, x):
    net.zero_grad()
    torch.manual_seed(0)  # of the dropout
    out = net(x)
    out.logsumexp(1).sum().backward()
    grads = {k: p.grad for k, p in net.named_parameters() if not k.endswith("alpha")}
    return [out, *grads.values(), *net.buffers()]


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_torchvision_as_they_come(name):
    """Equal bit for bit in both modes: outputs, gradients, buffers; the old state_dict fits."""
    make, total, names = FOREIGN[name]
    plain = make()
    net = tracing.masked(plain, (3, 32, 32))
    assert masks.total(net) == total
    assert list(masks.sites(net))[: len(names)] == names
    assert list(masks.sites(net)) == names or len(names) < len(masks.sites(net))
    x = torch.randn(2, 3, 32, 32)
    for training in (False, True):
        results = [gradients(n.train(training), x) for n in (plain, net)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    ours = [k for k in net.state_dict() if not k.endswith(".alpha")]
    assert ours == list(plain.state_dict())
    missing = net.load_state_dict(make().state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(k.endswith("alpha") for k in missing.missing_keys)


class Net(nn.Module):
    """Parts for the networks below: a convolution, a norm, a head, and things to trip over."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 4, batch_first=True)
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.scale = 0, torch.zeros(1)

    def head(self, x):
        return self.fc(x.mean((2, 3)))


def network(forward):
    """A network of one's own with this forward pass."""
    torch.manual_seed(0)
    return type("Own", (Net,), {"forward": forward})()


def in_place(net, x):
    x = net.conv(x)
    y = F.relu(x, inplace=True)
    return net.head(x + 2 * y)


def in_place_unused(net, x):
    x = net.norm(net.conv(x))
    x.relu_()
    return net.head(x)


SPELLINGS = {
    "F.relu": lambda net, x: net.head(F.relu(net.conv(x))),
    "torch.relu": lambda net, x: net.head(torch.relu(input=net.conv(x))),
    "method": lambda net, x: net.head(net.conv(x).relu()),
    "in place": in_place,
    "in place, result unused": in_place_unused,
    "optional argument": lambda net, x, shift=None: net.head(F.relu(net.conv(x))),
    "twice": lambda net, x: net.head(F.relu(net.norm(F.relu(net.conv(x))))),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_relu_is_masked(name):
    """With all masks at 1 the network is the same; at 0 it is affine, which it was not."""
    plain, x = network(SPELLINGS[name]), torch.randn(4, 1, 8, 8)
    net = tracing.masked(plain, (1, 8, 8)).eval()
    assert list(masks.sites(net)) == ["relu", "relu_2"][: 1 + (name == "twice")]
    assert masks.total(net) == 4 * 6 * 6 * len(masks.sites(net))
    assert torch.equal(net(x), plain.eval()(x))
    masks.freeze(net, {k: torch.zeros_like(s.alpha) > 0 for k, s in masks.sites(net).items()})
    torch.testing.assert_close(net(x).mean(0), net(x.mean(0, keepdim=True))[0])
    assert not torch.allclose(plain(x).mean(0), plain(x.mean(0, keepdim=True))[0])


def test_what_an_in_place_relu_overwrites_is_overwritten():
    """Whoever used the input later used the ReLU's output: three times the masked output."""
    net = tracing.masked(network(in_place), (1, 8, 8))
    net.relu.alpha.data.uniform_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(net(x), net.head(3 * masks.leaky(net.conv(x), 1 - net.relu.alpha)))


def test_each_call_of_one_module_has_its_own_masks():
    """Of a ReLU called twice, and of a whole block called twice, at two sizes."""
    block = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
    plain = nn.Sequential(block, block, nn.Flatten())
    net = tracing.masked(plain, (2, 8, 8))
    assert {k: tuple(s.alpha.shape) for k, s in masks.sites(net).items()} == {
        "0.1": (2, 6, 6), "0.1_2": (2, 4, 4)
    }  # fmt: skip
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(net(x), plain(x))
    masks.sites(net)["0.1_2"].alpha.data.zero_()
    torch.testing.assert_close(net(x), block[0](block(x)).flatten(1))


def test_names_that_are_taken_are_left_alone():
    """Another module called relu, or relu_2, keeps its name, its place and its weights."""

    class Taken(Net):
        def __init__(self):
            super().__init__()
            self.relu, self.relu_2 = nn.PReLU(4), nn.ReLU()

        def forward(self, x):
            return self.head(self.relu_2(self.relu(F.relu(self.conv(x)))))

    plain = Taken()
    net = tracing.masked(plain, (1, 8, 8))
    assert list(masks.sites(net)) == ["relu_2", "relu_3"]
    assert isinstance(net.relu, nn.PReLU)
    net.relu_3.alpha.data.zero_()  # the first, spelled F.relu
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(net(x), plain.head(F.relu(plain.relu(plain.conv(x)))))


@pytest.mark.parametrize("make", [small, lambda: network(SPELLINGS["twice"])])
def test_copies_moves_and_state_dicts_carry_the_masks(make):
    """A deep copy is independent; a state_dict fits a fresh network; channels last is the same."""
    x = torch.randn(4, 1, 16, 16)
    net = tracing.masked(make(), (1, 16, 16)).eval()
    masks.freeze(net, masks.largest(net, masks.total(net) // 3))
    before, twin = net(x), copy.deepcopy(net)
    assert torch.equal(twin(x), before)
    for site in masks.sites(twin).values():
        site.alpha.fill_(1)
    assert not torch.equal(twin(x), before) and torch.equal(net(x), before)

    fresh = tracing.masked(make(), (1, 16, 16)).eval()
    assert not torch.equal(fresh(x), before)
    fresh.load_state_dict(pickle.loads(pickle.dumps(net.state_dict())))
    assert torch.equal(fresh(x), before)

    last = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), before)
    torch.testing.assert_close(net.double()(x.double()).float(), before)


def test_a_whole_network_is_not_pickled_without_its_masks():
    """It would come back with the ReLUs of its class: only the state_dict can be saved."""
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(tracing.masked(network(SPELLINGS["F.relu"]), (1, 8, 8)))


def test_every_modules_mode_and_the_generators_stay():
    """Also where a norm is kept in evaluation mode while the rest trains."""
    plain = network(SPELLINGS["twice"]).train()
    plain.norm.eval()
    states = torch.get_rng_state(), random.getstate()
    net = tracing.masked(plain, (1, 8, 8))
    assert (states[0] == torch.get_rng_state()).all() and states[1] == random.getstate()
    assert [name for name, m in net.named_modules() if not m.training] == ["norm"]
    assert not any(m.training for m in tracing.masked(plain.eval(), (1, 8, 8)).modules())


def test_a_buffer_that_forward_counts_in_counts_in_the_copy():
    """Once a call, from where it stood."""
    plain = network(lambda net, x: net.head(F.relu(net.conv(x)) * net.steps.add_(1)))
    plain.steps += 3
    net, x = tracing.masked(plain, (1, 8, 8)), torch.randn(2, 1, 8, 8)
    assert plain.steps == net.steps == 3
    for _ in range(2):
        assert torch.equal(net(x), plain(x))
    assert plain.steps == net.steps == 5


def test_inner_modules_refuse_to_work_without_their_masks():
    """Called or hooked alone they would have other ReLUs, or never be called."""
    net = tracing.masked(small(), (1, 16, 16))
    for use in (net.layer1, net.layer1.register_forward_hook, net.layer1[0].forward):
        with pytest.raises(RuntimeError, match="works only as a whole"):
            use(torch.zeros(2, 4, 16, 16))
    seen = []
    net.layer1[0].relu1.register_forward_hook(lambda *_: seen.append(1))
    net.layer1[0].conv1.register_forward_hook(lambda *_: seen.append(2))
    net(torch.zeros(2, 1, 16, 16))
    assert seen == [2, 1]


def test_optional_arguments_are_fixed_at_their_defaults():
    """Asked for anything else, the copy does not silently do the usual."""

    def forward(net, x, features=False):
        x = F.relu(net.conv(x))
        return x if features else net.head(x)

    net = tracing.masked(network(forward), (1, 8, 8))
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(TypeError, match="features"):
        net(torch.zeros(2, 1, 8, 8), features=True)


def without_gradient(net, x):
    with torch.no_grad():
        x = net.conv(x)
    return net.head(F.relu(x))


def counting(net, x):
    net.calls += 1
    return net.head(F.relu(net.conv(x)))


def rebinding(net, x):
    net.steps = net.steps + 1
    return net.head(F.relu(net.conv(x)) * net.steps)


def scaling(net, x):
    net.scale += 1
    return net.head(F.relu(net.conv(x)) * net.scale)


def averaging(net, x):
    with torch.no_grad():
        net.steps.mul_(0.9).add_(net.weight.mean())
    return net.head(F.relu(net.conv(x)))


def branching(net, x):
    return net.head(F.relu(net.conv(x if x.mean() > 0 else -x)))


def training_only(net, x):
    x = F.relu(net.conv(x))
    return net.head(2 * x if net.training else x)


def by_dropout(net, x):
    return net.head(F.dropout(F.relu(net.conv(x)), training=net.training))


def by_norm(net, x):
    mean, var = net.norm.running_mean, net.norm.running_var
    return net.head(F.relu(F.batch_norm(net.conv(x), mean, var, training=net.training)))


def of_a_view(net, x):
    x = net.norm(net.conv(x))
    x[:, :2].relu_()
    return net.head(x)


def of_pixels(net, x):
    x = net.conv(x)
    rows = F.relu(x.permute(0, 2, 3, 1).reshape(-1, 4))
    return net.fc(rows.view(x.shape[0], -1, 4).mean(1))


def in_a_layer(net, x):
    return net.head(F.relu(net.conv(net.encoder(x[:, 0])[:, None])))


REFUSALS = {
    "branch": (branching, "torch.fx cannot record it: symbolically traced variables"),
    "training": (training_only, "is 'mul = 2 \\* relu' in training, 'mean = .*' in evaluation"),
    "dropout": (by_dropout, "training = True.*in training.*nn.Dropout"),
    "batch norm": (by_norm, "batch_norm.*training = False.*in evaluation"),
    "no_grad": (without_gradient, "did not record all it does: the gradient of the images"),
    "attribute": (counting, "its forward sets calls$"),
    "buffer bound anew": (rebinding, "its forward sets steps$"),
    "tensor attribute": (scaling, "did not record all it does: the output would differ"),
    "average without gradient": (averaging, "did not record all it does: steps would differ"),
    "torch's generator": (
        lambda net, x: net.head(F.relu(net.conv(x)) + torch.rand(1)), "draws random numbers"
    ),
    "Python's generator": (
        lambda net, x: net.head(F.relu(net.conv(x))) * random.choice([1, 2]), "draws random numbers"
    ),
    "NumPy's generator": (
        lambda net, x: net.head(F.relu(net.conv(x))) * float(np.random.rand()),  # noqa: NPY002
        "draws random numbers",
    ),
    "view": (of_a_view, "did not record all it does: the output would differ in evaluation"),
    "pixels as samples": (of_pixels, r"acts on \(72, 4\) for 2 images and \(108, 4\) for 3"),
    "weights": (
        lambda net, x: net.head(F.relu(net.conv(x))) @ F.relu(net.weight),
        r"acts on \(3, 3\) for 2 images",
    ),
    "inside a layer": (in_a_layer, "1 of its ReLUs are inside.*nn.TransformerEncoderLayer"),
    "not a tensor": (lambda net, x: (net.head(F.relu(net.conv(x))),), "it returns a tuple"),
    "no ReLU": (lambda net, x: net.head(net.conv(x)), "it has no ReLU$"),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_would_silently_be_another_network_is_refused(name, training):
    """With the network's class and the reason, in whichever mode it comes; it stays as it was."""
    forward, reason = REFUSALS[name]
    net = network(forward).train(training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"(?s)^Own cannot be masked: .*{reason}"):
        tracing.masked(net, (1, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training == training and not masks.sites(net)


def test_what_has_masks_or_hooks_already_is_refused():
    """A second set of masks would act beside the first; a hook would be lost."""
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    for net in (tracing.masked(plain, (2,)), torch.fx.symbolic_trace(plain)):
        with pytest.raises(ValueError, match="give the network it came from"):
            tracing.masked(net, (2,))
    plain[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="torch.fx cannot record it: 1 has a hook"):
        tracing.masked(plain, (2,))
