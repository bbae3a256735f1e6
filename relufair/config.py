"""What can be asked for: names, schedules and their checks. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

ARCHITECTURES = ("resnet18", "resnet34", "vgg19", "wideresnet22_8")
# Each method with the stages, after the teacher, whose settings it depends on.
METHODS = {
    "snl": ("search", "finetune"),
    "deepreduce": ("student",),
    "deepreduce_untaught": ("student",),
    "random": ("finetune",),
    "smallest_effect": ("finetune",),
    "all_kept": ("search", "finetune"),
    "narrower": ("search", "finetune"),
}
# Each remedy with the values of its one strength that are tried on validation data.
REMEDIES: dict[str, tuple[float, ...]] = {
    "plain": (),
    "algorithm1": (0.01, 0.1, 1.0),
    "one_sided": (0.01, 0.1, 1.0),
    "detached": (0.01, 0.1, 1.0),
    "group_dro": (0.01, 0.1, 1.0),
    "inverse_frequency": (0.25, 0.5, 1.0),
    "class_balanced": (0.99, 0.999, 0.9999),
    "logit_adjustment": (0.5, 1.0, 1.5),
    "cvar": (0.2, 0.5, 0.8),
    "jtt": (2.0, 5.0, 20.0),
    "swa": (0.25, 0.5, 0.75),
}
LARGEST_SEED = 2**32 - 1  # that scikit-learn's split takes
TUNING = 100  # Seeds from here on may choose strengths, so the ledger counts none of them.


def another(seed: int) -> int:
    """The seed after ``seed``, and 0 after the largest.

    >>> another(0), another(LARGEST_SEED)
    (1, 0)
    """
    return (seed + 1) % (LARGEST_SEED + 1)


def yes_or_no(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: must be true or false")


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise ``ValueError`` naming the parameter, its value and what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(str, allowed))}")


def in_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ``ValueError`` unless ``low <= value <= high``."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        top = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name}={value!r}: must be a finite number of at least {low:g}{top}")


def whole(name: str, value: Any, low: int, high: float = math.inf) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number with ``low <= value <= high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        top = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name}={value!r}: must be a whole number of at least {low}{top}")


def distinct(name: str, values: Collection[Any]) -> None:
    """Raise ``ValueError`` if ``values`` is empty or holds a value twice."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name}={list(values)}: must name at least one value, and none twice")


@dataclass(frozen=True)
class Remedy:
    """What the last training of a linearized network minimises.

    Attributes:
        name: one of ``REMEDIES``; they are explained in :mod:`relufair.remedies`.
        strength: its one parameter; 0 for ``plain``, which has none.
        per_class: divide the distillation term by the number of classes, as the released code's
            mitigation does.
    """

    name: str = "plain"
    strength: float = 0.0
    per_class: bool = False

    def __post_init__(self) -> None:
        one_of("remedy", self.name, REMEDIES)
        yes_or_no("per_class", self.per_class)
        if self.name == "plain":
            one_of("strength of plain", self.strength, (0,))
        low, high = {
            "class_balanced": (0, 0.999999), "cvar": (1e-3, 1), "jtt": (1, math.inf), "swa": (0, 1),
        }.get(self.name, (0, math.inf))  # fmt: skip
        in_range(f"strength of {self.name}", self.strength, low, high)
        object.__setattr__(self, "strength", float(self.strength))  # 1 and 1.0 make the same key

    def __str__(self) -> str:
        strength = f" {self.strength:g}" if self.name != "plain" else ""
        return f"{self.name}{strength}{', KD/C' if self.per_class else ''}"


PLAIN = Remedy()


@dataclass(frozen=True)
class Schedule:
    """How long and how fast each stage trains. Rates are per step, epochs are passes over the data.

    The three stages are those of SNL (Cho et al., 2022): a teacher with all its ReLUs, a search in
    which a lasso drives the masks to zero, and a finetune with the masks frozen.

    Attributes:
        teacher_epochs, teacher_batch, teacher_lr, weight_decay: SGD with momentum 0.9; the rate
            falls to a tenth after one half and again after three quarters of the epochs.
        search_batch, search_lr: Adam on the weights during the search.
        masks_lr: Adam on the masks. Adam moves a mask by about this much a step, so going from 1
            to 0 takes about ``1 / masks_lr`` steps or more, whatever the penalty.
        lasso: penalty on the sum of the masks' absolute values in the first epoch.
        lasso_growth: factor by which the penalty grows.
        growth_rule: ``"stagnation"`` grows it after an epoch (from the fifth on) that brought no new
            lowest count, as the released code does; ``"every"`` grows it after every epoch.
        search_max_epochs: the search gives up, with an error, after so many epochs.
        threshold: a ReLU counts as kept while its mask exceeds this.
        finetune_epochs, finetune_batch, finetune_lr: SGD with momentum 0.9, cosine to zero.
        student_epochs, student_batch, student_lr: SGD with Nesterov's momentum 0.9, cosine to zero,
            of DeepReDuce's student, which trains from scratch.
        student_scale: its channels, as a share of the teacher's.
        temperature: softening of teacher and student in SNL's distillation loss.
        flip: mirror each training image with probability one half (the paper does not).
    """

    teacher_epochs: int
    teacher_batch: int
    teacher_lr: float
    weight_decay: float
    search_batch: int
    search_lr: float
    masks_lr: float
    lasso: float
    lasso_growth: float
    growth_rule: str
    search_max_epochs: int
    finetune_epochs: int
    finetune_batch: int
    finetune_lr: float
    student_epochs: int
    student_batch: int
    student_lr: float
    student_scale: float = 1.0
    threshold: float = 1e-2
    temperature: float = 4.0
    flip: bool = False

    def __post_init__(self) -> None:
        one_of("growth_rule", self.growth_rule, ("stagnation", "every"))
        yes_or_no("flip", self.flip)
        for name, value in asdict(self).items():
            if name.endswith(("epochs", "batch")):
                whole(name, value, 2 if name.endswith("batch") else 1)
            elif name not in ("growth_rule", "flip"):
                in_range(name, value, 0)
        in_range("lasso_growth", self.lasso_growth, 1)
        in_range("student_scale", self.student_scale, 1e-3, 1)
        in_range("temperature", self.temperature, 1e-6)
        in_range("threshold", self.threshold, 0, 0.5)
        # A mask near zero moves by masks_lr a step; a larger one would keep jumping over it.
        in_range("masks_lr (at most the threshold)", self.masks_lr, 0, self.threshold)
        for setting in fields(self):  # 4 is 4.0, also in a key
            if setting.type == "float":
                object.__setattr__(self, setting.name, float(getattr(self, setting.name)))

    def part(self, stage: str) -> dict[str, Any]:
        """The settings that ``stage`` depends on, and no others, so that they make its key."""
        shared = {
            "teacher": ("weight_decay", "flip"),
            "search": ("lasso", "lasso_growth", "growth_rule", "masks_lr", "threshold",
                       "temperature", "flip"),
            "finetune": ("weight_decay", "temperature", "flip"),
            "student": ("weight_decay", "flip"),
        }[stage]  # fmt: skip
        # The cap on the search's length cannot change what an earlier epoch found.
        own = [f.name for f in fields(self) if f.name.startswith(stage)]
        names = {*own, *shared} - {"search_max_epochs"}
        return {name: getattr(self, name) for name in sorted(names)}


_PAPER = Schedule(
    teacher_epochs=160, teacher_batch=256, teacher_lr=0.1, weight_decay=5e-4,
    search_batch=128, search_lr=1e-3, masks_lr=1e-3, lasso=1e-5, lasso_growth=1.1,
    growth_rule="stagnation", search_max_epochs=1000,
    finetune_epochs=100, finetune_batch=128, finetune_lr=1e-3,
    student_epochs=200, student_batch=512, student_lr=1e-3,
)  # fmt: skip

SCHEDULES = {
    # Ten steps an epoch, and seconds in all: large rates, and a penalty that grows fast.
    "ci": replace(
        _PAPER, teacher_epochs=14, teacher_batch=64, teacher_lr=0.05, search_batch=64,
        search_lr=2e-3, masks_lr=5e-3, lasso=1e-3, lasso_growth=1.3, growth_rule="every",
        search_max_epochs=60, finetune_epochs=3, finetune_batch=64, finetune_lr=1e-2,
        student_epochs=10, student_batch=64, student_lr=5e-2,
    ),
    # UTKFace at width 16 in about a quarter of an hour a seed on two cores.
    "laptop": replace(
        _PAPER, teacher_epochs=20, search_batch=256, lasso=3e-4, lasso_growth=1.08,
        growth_rule="every", search_max_epochs=100, finetune_epochs=8, finetune_batch=256,
        finetune_lr=1e-2, student_epochs=20, student_batch=256, student_lr=5e-2,
    ),
    "paper": _PAPER,
}  # fmt: skip


def schedule(tier: str, changes: dict[str, Any] | None = None) -> Schedule:
    """The schedule of ``tier`` (``ci``, ``laptop``, ``paper``) with ``changes`` to single settings.

    Raises:
        ValueError: for an unknown tier or setting, or a value that a setting cannot take.

    >>> schedule("laptop", {"teacher_epochs": 5}).teacher_epochs
    5
    """
    one_of("schedule", tier, SCHEDULES)
    for name in changes or {}:
        one_of("training", name, [f.name for f in fields(Schedule)])
    return replace(SCHEDULES[tier], **(changes or {}))
