"""The networks, plain: one ``nn.ReLU`` module at each place where a ReLU acts.

The ResNets follow the paper's released code: no ReLU after the stem, one after the first
normalisation of a block and one after the residual sum. At width 64 on 32 x 32 images ResNet-18 has
491,520 ReLUs and ResNet-34 has 901,120.
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


def build(arch: str, *, classes: int, channels: int = 3, width: int = 64, seed: int = 0) -> ResNet:
    """The network ``arch`` with weights drawn from ``seed`` alone.

    Args:
        arch: ``"resnet18"`` or ``"resnet34"``.
        classes: number of logits.
        channels: channels of the images.
        width: channels of the first stage (64 in the paper).
        seed: of the initial weights; the global generator is left as it was.
    """
    config.one_of("arch", arch, config.ARCHITECTURES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(BLOCKS[arch], classes, channels, width)
