"""DeepReDuce (Jha et al., 2021): whole stages lose their ReLUs, and a student trains from scratch.

A network's stages are *culled* (all ReLUs of a stage go), the rest is perhaps *thinned* (every second
ReLU goes) and *reshaped* (fewer channels). There are few configurations, so a budget gets the largest
that it allows, which is often much smaller than the budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relufair import masks, models, tracing

# In every block of two ReLUs thinning keeps the one between the two convolutions. The other stands
# after the residual sum: second in a block of a ResNet, first in the next block of a WideResNet. VGG
# has no residual sums; there it is every second ReLU of a stage that goes, beginning with the second.
STAYS = {models.ResNet: 0, models.VGG: 0, models.WideResNet: 1}
EXPONENT = 0.07  # of the number of ReLUs in the criticality


@dataclass(frozen=True)
class Configuration:
    """What is done to a network; printed by its code name, as in ``123 thinned ×0.5``.

    Attributes:
        culled: stages without any ReLU, from 1.
        thinned: whether the other stages lose every second ReLU.
        scale: factor on the number of channels.
    """

    culled: tuple[int, ...] = ()
    thinned: bool = False
    scale: float = 1.0

    def __str__(self) -> str:
        name = "".join(map(str, self.culled)) or "none"
        scale = f" ×{self.scale:g}" if self.scale != 1 else ""
        return name + " thinned" * self.thinned + scale


def stages(net: nn.Module) -> dict[int, list[str]]:
    """The masked ReLUs of ``net`` by stage, from 1, in order.

    Raises:
        ValueError: if it is none of the networks of :mod:`relufair.models` that have stages.
    """
    if type(net) not in STAYS:
        allowed = ", ".join(known.__name__ for known in STAYS)
        raise ValueError(f"{type(net).__name__} has no stages to cull: allowed are {allowed}")
    by_stage = itertools.groupby(masks.sites(net), lambda name: name.partition(".")[0])
    return {int(stage.removeprefix("layer")): list(names) for stage, names in by_stage}


def kept(net: nn.Module, configuration: Configuration) -> dict[str, Tensor]:
    """By site of the masked network ``net``, the booleans that ``configuration`` leaves.

    The network has the channels that it has: ``scale`` is for whoever builds it.

    Raises:
        ValueError: for stages that ``net`` does not have.
    """
    found = stages(net)
    if not set(configuration.culled) <= set(found):
        raise ValueError(f"culled={configuration.culled}: allowed are {', '.join(map(str, found))}")
    left = [names for stage, names in found.items() if stage not in configuration.culled]
    if configuration.thinned:
        left = [names[STAYS[type(net)] :: 2] for names in left]
    stays = set(itertools.chain(*left))
    return {
        name: torch.full(site.alpha.shape, name in stays) for name, site in masks.sites(net).items()
    }


def configurations(
    arch: str, width: int, channels: int, size: int, scales: Iterable[float] = (1.0,)
) -> dict[Configuration, int]:
    """Every configuration of a network and the ReLUs that it keeps, counted on its masks.

    Args:
        arch, width: the network before it is reshaped.
        channels, size: of the images, which are square.
        scales: factors on the number of channels.

    Raises:
        ValueError: if a scale makes no whole number of channels, or one that ``arch`` cannot have.
    """
    counts = {}
    for scale in scales:
        net = models.build(arch, classes=2, channels=channels, width=scaled(width, scale))
        net = tracing.masked(net, (channels, size, size))
        for culled, thinned in itertools.product(_subsets(stages(net)), (False, True)):
            configuration = Configuration(culled, thinned, scale)
            relus = sum(int(k.sum()) for k in kept(net, configuration).values())
            if relus or not thinned:  # without a ReLU there is nothing to thin
                counts[configuration] = relus
    return counts


def scaled(width: int, scale: float) -> int:
    """The width of the network whose channels are ``scale`` times those of width ``width``.

    Raises:
        ValueError: if that is no whole number.
    """
    if not float(width * scale).is_integer():
        raise ValueError(f"scale={scale}: must make a whole number of the width {width}")
    return int(width * scale)


def _subsets(items: Iterable[int]) -> list[tuple[int, ...]]:
    items = tuple(items)
    return [s for n in range(len(items) + 1) for s in itertools.combinations(items, n)]


def largest(counts: Mapping[Configuration, int], units: int) -> Configuration | None:
    """The configuration with most ReLUs among those that keep at most ``units``.

    Of several, the one with more channels, then the one not thinned, then the one with fewer stages
    culled, then the one whose last stages are culled. No network without ReLUs stands in for a
    positive budget: where nothing else is small enough, there is no configuration.

    Args:
        counts: ReLUs by configuration, see :func:`configurations`.
        units: the budget; 0 asks for the linear network.
    """
    allowed = [c for c, relus in counts.items() if relus <= units and bool(relus) == bool(units)]

    def rank(c: Configuration) -> tuple:
        return counts[c], c.scale, not c.thinned, -len(c.culled), c.culled

    return max(allowed, key=rank, default=None)


def criticality(
    accuracies: Mapping[int, float], linear: float, relus: Mapping[int, int]
) -> dict[int, float]:
    r"""How much accuracy the ReLUs of each stage are worth: :math:`C_k`, the largest being 1.

    .. math:: C_k \propto (\bar J_k - \bar J_0) / R_k^{0.07}

    The least critical stage is culled first. Where no stage's ReLUs bring anything over the linear
    network there is nothing to compare them by: all are nan.

    Args:
        accuracies: by stage, of a network that has the ReLUs of this stage alone.
        linear: accuracy of the network without any ReLU.
        relus: by stage, their number.
    """
    worth = {k: (right - linear) / relus[k] ** EXPONENT for k, right in accuracies.items()}
    most = max(worth.values())
    return {k: value / most if most > 0 else math.nan for k, value in worth.items()}
