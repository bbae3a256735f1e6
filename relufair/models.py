"""The networks, plain: one ``nn.ReLU`` module at each place where a ReLU acts.

The networks follow the paper's released code: no ReLU after the stem. A ResNet's block has one after
its first normalisation and one after the residual sum. A network's stages are called ``layer1``,
``layer2`` and so on. At width 64, the paper's, there are on 32 x 32 images so many ReLUs:

=============== ========= ===========================================
network             ReLUs by stage
=============== ========= ===========================================
ResNet-18         491,520 262,144 / 131,072 / 65,536 / 32,768
ResNet-34         901,120 393,216 / 262,144 / 196,608 / 49,152
VGG-19            303,104 131,072 / 65,536 / 65,536 / 32,768 / 8,192
WideResNet-22-8 1,359,872 671,744 / 458,752 / 229,376
=============== ========= ===========================================
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relufair import config

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet for small images: stages of ``width`` x (1, 2, 4, 8) channels.

    Maps images (N, ``channels``, H, W), H and W at least 16, to logits (N, ``classes``).
    """

    def __init__(self, blocks: tuple[int, ...], classes: int, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, length in enumerate(blocks):
            outputs, layers = width * 2**stage, []
            for i in range(length):
                layers.append(BasicBlock(inputs, outputs, stride=2 if stage and not i else 1))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class VGG(nn.Module):
    """VGG-19 with batch norm and one linear layer (Simonyan and Zisserman, 2015), for small images.

    Five stages of 2, 2, 4, 4 and 4 convolutions with ``width`` x (1, 2, 4, 8, 8) channels, a max pool
    after each. Maps images (N, ``channels``, H, W), H and W at least 16, to logits (N, ``classes``).
    """

    def __init__(self, classes: int, channels: int, width: int):
        super().__init__()
        inputs = channels
        for stage, (length, factor) in enumerate(((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))):
            layers: list[nn.Module] = []
            for _ in range(length):
                outputs = width * factor
                conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = F.max_pool2d(stage(x), 2)
        # On 32 x 32 images the last pool is the same; smaller ones leave it nothing to halve.
        return self.fc(F.adaptive_max_pool2d(self.layer5(x), 1).flatten(1))


class WideBlock(nn.Module):
    """Norm, ReLU, convolution, twice, and a shortcut (Zagoruyko and Komodakis, 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        # Where the size changes, the shortcut starts after the first ReLU.
        identity = self.shortcut(out) if self.shortcut is not None else x
        return self.conv2(self.relu2(self.bn2(self.conv1(out)))) + identity


class WideResNet(nn.Module):
    """WideResNet-22-8: three stages of three blocks, ``width`` x (2, 4, 8) channels wide.

    The stem has ``width / 4`` channels. There is no ReLU after the last normalisation, as in the
    paper's released code. Maps images (N, ``channels``, H, W) to logits (N, ``classes``).
    """

    def __init__(self, classes: int, channels: int, width: int):
        super().__init__()
        inputs = width // 4
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        for stage in range(3):
            outputs, layers = width * 2 ** (stage + 1), []
            for i in range(3):
                layers.append(WideBlock(inputs, outputs, stride=2 if stage and not i else 1))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class MLP(nn.Module):
    """A fully connected network: ``inputs`` → ``hidden`` widths → ``classes`` logits."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def build(
    arch: str, *, classes: int, channels: int = 3, width: int = 64, seed: int = 0
) -> ResNet | VGG | WideResNet:
    """The network ``arch`` with weights drawn from ``seed`` alone.

    Args:
        arch: one of ``relufair.config.ARCHITECTURES``.
        classes: number of logits.
        channels: channels of the images.
        width: 64 is the paper's network; all channels are proportional to it. It is the number of
            channels of the first stage, in WideResNet-22-8 half of it.
        seed: of the initial weights; the global generator is left as it was.

    Raises:
        ValueError: for an unknown architecture or a width that it cannot have.
    """
    config.one_of("arch", arch, config.ARCHITECTURES)
    config.whole("width", width, 1)
    if arch == "wideresnet22_8" and width % 4:
        raise ValueError(f"width={width}: of {arch} must be a multiple of 4, since the stem has a "
                         "quarter of it: allowed are 4, 8, 12, ..., 64, ...")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch in BLOCKS:
            return ResNet(BLOCKS[arch], classes, channels, width)
        return (VGG if arch == "vgg19" else WideResNet)(classes, channels, width)
