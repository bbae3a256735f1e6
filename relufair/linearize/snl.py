"""SNL, selective network linearization (Cho et al., 2022): masks driven to zero by a lasso.

Weights and masks train together on cross-entropy, distillation and the penalty
``lasso * sum |alpha|``. The budget only decides where the descent stops, so one descent passes
through every budget: a network is taken down at each crossing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from relufair import masks
from relufair.objectives import Batch, Distillation

PATIENCE = 5  # epochs before the released rule may raise the penalty


def check_apart(crossings: Mapping[int, int]) -> None:
    """Raise ``RuntimeError`` if two budgets (units → step of the crossing) were crossed at once.

    Their snapshots would have the same weights, and nothing but rounding would tell their masks
    apart.
    """
    (step, times), *_ = Counter(crossings.values()).most_common(1) or [(0, 0)]
    if times > 1:
        same = sorted(units for units, at in crossings.items() if at == step)
        raise RuntimeError(
            f"the budgets of {', '.join(map(str, same))} ReLUs were crossed in one step: "
            "their networks would be the same. Ask for budgets that lie further apart, or lower "
            "masks_lr or lasso_growth"
        )


class Descent(Distillation):
    """The objective of the search; it watches the count and hands out a snapshot at each crossing.

    The masks above the threshold are counted after every step. At the first count that is not above
    a budget, the largest masks are kept, exactly as many as the budget allows: those above the
    threshold and the few that this step took below it.

    Args:
        net: a masked network with trainable masks.
        units: the budgets to find, in units kept.
        on_crossing: called with the units, the kept masks by site, the count and the step.
        crossings: the step of each crossing that is known already, by units.
        temperature, lasso, growth, rule, threshold: see :class:`relufair.config.Schedule`.

    Raises:
        RuntimeError: if two budgets are crossed in one step.
    """

    def __init__(
        self,
        net: nn.Module,
        units: Sequence[int],
        on_crossing: Callable[[int, dict[str, Tensor], int, int], None],
        *,
        crossings: Mapping[int, int],
        temperature: float,
        lasso: float,
        growth: float,
        rule: str,
        threshold: float,
    ):
        super().__init__(temperature)
        self.net, self.on_crossing, self.crossings = net, on_crossing, dict(crossings)
        self.alphas = [site.alpha for site in masks.sites(net).values()]
        self.pending = sorted(units, reverse=True)
        self.lasso, self.growth, self.rule, self.threshold = lasso, growth, rule, threshold
        self.steps = self.epochs = 0
        # The lowest count after an epoch (the released rule's), and the lowest ever counted.
        self.lowest = self.reached = masks.total(net) + 1

    def loss(self, batch: Batch) -> Tensor:
        penalty = torch.stack([alpha.abs().sum() for alpha in self.alphas]).sum()
        return super().loss(batch) + self.lasso * penalty

    def after_step(self) -> bool:
        self.steps += 1
        count = masks.count(self.net, self.threshold)
        self.reached = min(self.reached, count)
        for units in [units for units in self.pending if count <= units]:
            self._cross(units, count)
        return not self.pending

    def _cross(self, units: int, count: int) -> None:
        self.crossings[units] = self.steps
        check_apart(self.crossings)
        self.on_crossing(units, masks.largest(self.net, units), count, self.steps)
        self.pending.remove(units)

    def end_epoch(self) -> dict[str, float]:
        self.epochs += 1
        count, lasso = masks.count(self.net, self.threshold), self.lasso
        stagnates = count >= self.lowest and self.epochs >= PATIENCE
        if self.rule == "every" or stagnates:
            self.lasso *= self.growth
        self.lowest = min(self.lowest, count)
        return {"kept": count / masks.total(self.net), "lasso": lasso}

    def state(self) -> dict[str, float]:
        return {k: getattr(self, k) for k in ("steps", "epochs", "lasso", "lowest", "reached")}

    def restore(self, state: dict[str, float]) -> None:
        vars(self).update(state)
