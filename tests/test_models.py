"""The networks: their ReLUs, channels, weights and the images they take."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relufair import config, masks, models, tracing

# Width 64, 32 x 32: total, and by stage where the notes of the released code give it.
STAGES = {
    "resnet18": (262_144, 131_072, 65_536, 32_768),
    "resnet34": (393_216, 262_144, 196_608, 49_152),
    "vgg19": (131_072, 65_536, 65_536, 32_768, 8_192),
    "wideresnet22_8": (671_744, 458_752, 229_376),
}
TOTALS = {"resnet18": 491_520, "resnet34": 901_120, "vgg19": 303_104, "wideresnet22_8": 1_359_872}


def by_stage(net):
    """ReLUs of a masked network by stage."""
    counts = Counter()
    for name, site in masks.sites(net).items():
        counts[name.partition(".")[0]] += site.alpha.numel()
    return counts


@pytest.mark.parametrize("arch", config.ARCHITECTURES)
def test_relus_are_those_of_the_paper(arch, width=4):
    """At a width of w, exactly w / 64 of the paper's, in every stage."""
    net = tracing.masked(models.build(arch, classes=10, width=width), (3, 32, 32))
    expected = {f"layer{i}": n * width // 64 for i, n in enumerate(STAGES[arch], start=1)}
    assert by_stage(net) == expected
    assert masks.total(net) == TOTALS[arch] * width // 64 == sum(expected.values())


@pytest.mark.parametrize("arch", config.ARCHITECTURES)
def test_width_64_is_the_papers_network(arch):
    """Channels of the stem and of every stage."""
    net = models.build(arch, classes=10)
    stem = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).out_channels
    widest = [
        max(m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d))
        for name, stage in net.named_children()
        if name.startswith("layer")
    ]
    assert (stem, widest) == {
        "vgg19": (64, [64, 128, 256, 512, 512]),
        "wideresnet22_8": (16, [128, 256, 512]),
    }.get(arch, (64, [64, 128, 256, 512]))
    assert net.fc.in_features == 512
    # 19 layers with weights in VGG-19, and so on: shortcuts do not count.
    convolutions = [
        m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    depths = {"resnet18": 18, "resnet34": 34, "vgg19": 17, "wideresnet22_8": 20}
    assert len(convolutions) + 1 == depths[arch]
    biased = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert not biased  # every convolution is followed by a normalisation, or preceded by one


@pytest.mark.parametrize("arch", config.ARCHITECTURES)
@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 33), (1, 48)])
def test_any_size_and_channels(arch, channels, size):
    """Images of at least 16 pixels, grey or coloured; plain and with masks."""
    net = models.build(arch, classes=4, channels=channels, width=4).eval()
    x = torch.randn(2, channels, size, size)
    masked = tracing.masked(net, (channels, size, size))
    assert masked(x).shape == (2, 4)
    assert torch.equal(net(x), masked(x))


def test_vggs_last_pool_is_the_plain_one_on_images_of_32():
    """An adaptive pool to one pixel halves two."""
    net = models.build("vgg19", classes=3, width=2).eval()
    x = out = torch.randn(2, 3, 32, 32)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4, net.layer5):
        out = F.max_pool2d(stage(out), 2)
    assert torch.equal(net(x), net.fc(out.flatten(1)))


def test_a_wide_block_is_its_formula():
    """Norm, ReLU, convolution, twice; the shortcut branches off after the first ReLU."""
    block = models.WideBlock(3, 5, stride=2).double().eval()
    same = models.WideBlock(5, 5, stride=1).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = F.relu(block.bn1(x))
    out = block.conv2(F.relu(block.bn2(block.conv1(h)))) + block.shortcut(h)
    torch.testing.assert_close(block(x), out)
    assert same.shortcut is None
    out = x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    out = same.conv2(F.relu(same.bn2(same.conv1(F.relu(same.bn1(x)))))) + x
    torch.testing.assert_close(same(x), out)


@pytest.mark.parametrize("arch", config.ARCHITECTURES)
def test_without_relus_and_pools_the_network_is_affine(arch):
    """No ReLU acts outside the masks: with all of them at 0, a mean of images gives the mean."""
    net = tracing.masked(models.build(arch, classes=3, width=4), (3, 16, 16)).double().eval()
    masks.freeze(net, {k: torch.zeros_like(s.alpha) > 0 for k, s in masks.sites(net).items()})
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    both, middle = net(x), net(x.mean(0, keepdim=True))
    close = torch.allclose(middle[0], both.mean(0), rtol=1e-9, atol=1e-12)
    assert close == (arch != "vgg19")  # VGG keeps its max pools


@pytest.mark.parametrize("arch", config.ARCHITECTURES)
def test_seeds_decide_the_weights_and_leave_the_global_generator_alone(arch):
    """Same seed, same network; another seed, another; no side effect."""
    state = torch.get_rng_state()
    one, same, other = (models.build(arch, classes=2, width=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.fc.weight, other.fc.weight)


def test_the_resnets_names_and_initial_weights_are_as_ever():
    """Stored teachers were trained from these weights, and are found under these names."""
    net = models.build("resnet18", classes=3, channels=1, width=2, seed=7)
    names = list(net.state_dict())
    assert len(names) == 122
    assert names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert names[-3:] == ["layer4.1.bn2.num_batches_tracked", "fc.weight", "fc.bias"]
    assert "layer2.0.shortcut.1.running_var" in names
    first = [net.conv1.weight[0, 0, 0, 0], net.layer3[1].conv2.weight[1, 2, 0, 1], net.fc.bias[2]]
    assert [w.item() for w in first] == pytest.approx(FIRST, abs=1e-7)


FIRST = [0.02328169345855713, 0.057517748326063156, 0.011278718709945679]


def test_what_cannot_be_built_is_refused():
    """Unknown names, and widths that some layer could not have."""
    with pytest.raises(ValueError, match="arch='resnet19'.*resnet18"):
        models.build("resnet19", classes=2)
    for width in (2, 6, 63):
        message = f"width={width}: .*wideresnet22_8.*multiple of 4.*allowed are 4, 8"
        with pytest.raises(ValueError, match=message):
            models.build("wideresnet22_8", classes=2, width=width)
    for width in (0, -4, 2.5, True):
        with pytest.raises(
            ValueError, match=f"width={width}: must be a whole number of at least 1"
        ):
            models.build("vgg19", classes=2, width=width)
