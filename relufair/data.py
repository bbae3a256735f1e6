"""Images with a label and a group each, split and made unbalanced by the paper's protocol.

Label and group are separate everywhere, also where the paper makes them equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from relufair import config, sources
from relufair.sources import SOURCES, Pictures
from relufair.store import Artifact, NotPublished, Store

VERSION = 1  # of the stored splits
PARTS = ("train", "validation", "test")
TEST, VALIDATION = 0.2, 0.1  # of all; of what is left
FEWEST = 13  # images a class needs, so that each part of the split can get one
PROTOCOL = (0.9,) * 5 + (0.1,) * 5  # share of each class kept for training (Section 5)


class Unseen:
    """Stands for images that are not published: it has their shape, and refuses their pixels."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, n: int, shape: Sequence[int]):
        self.shape = (n, *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> Unseen:
        if not isinstance(index, np.ndarray | slice):
            self.__array__()
        return Unseen(len(np.arange(len(self))[index]), self.shape[1:])

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise NotPublished("images", "their pixels")

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # which Python and NumPy ask for on their own
            raise AttributeError(name)
        return self.__array__()


@dataclass(frozen=True)
class GroupedImages:
    """Images, what they show, and whom.

    Attributes:
        images: (n, C, H, W), uint8.
        labels: (n,), int64, places in ``classes``.
        groups: (n,), int64, places in ``group_names``.
        rows: (n,), int64, places in the source's table.
        classes, group_names: the names.
    """

    images: np.ndarray | Unseen
    labels: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    classes: tuple[str, ...]
    group_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images {self.images.dtype} {self.images.shape}: must be uint8 NCHW")
        sizes = {"labels": len(self.classes), "groups": len(self.group_names), "rows": 2**63}
        for name, count in sizes.items():
            values = getattr(self, name)
            whole = values.shape == (n,) and np.issubdtype(values.dtype, np.integer)
            if not whole or (n and not 0 <= values.min() <= values.max() < count):
                raise ValueError(f"{name}: must be {n} whole numbers from 0 to {count - 1}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of an image."""
        return tuple(self.images.shape[1:])

    def take(self, index: np.ndarray) -> GroupedImages:
        """The images at ``index``."""
        fields = ("images", "labels", "groups", "rows")
        return replace(self, **{name: getattr(self, name)[index] for name in fields})

    def sizes(self) -> dict[str, int]:
        """Number of images of each group."""
        counts = np.bincount(self.groups, minlength=len(self.group_names))
        return dict(zip(self.group_names, counts.tolist(), strict=True))

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel (C,), on the scale from 0 to 1, float32."""
        counts = np.stack(
            [np.bincount(c.ravel(), minlength=256) for c in np.moveaxis(self.images, 1, 0)]
        )
        share, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
        mean = share @ values
        std = np.sqrt(share @ values**2 - mean**2).clip(1 / 255)
        return mean.astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True)
class Choice:
    """Which data: as a user writes it. ``resolve`` fills in the data set's own defaults.

    Attributes:
        dataset: one of :data:`relufair.sources.SOURCES`.
        target: the attribute to predict; ``auto``: the data set's usual one.
        groups: the attribute by which to compare, or several joined by commas for their product;
            ``label``: the classes themselves, as in the paper; ``auto``: the data set's usual one.
        keep: share of each class kept for training: ``paper`` (90 % of classes 0–4 and 10 % of
            classes 5–9 for digits and CIFAR-10, all of the others), ``rotated`` (these two halves
            change places), ``all``, or one number a class, joined by commas. Every value of the
            target is a class here, also one that no image has.
        keep_in_test: apply these shares to validation and test, too.
        size: side of the images in pixels, at least 16; 0: the data set's usual one.
    """

    dataset: str
    target: str = "auto"
    groups: str = "auto"
    keep: str = "paper"
    keep_in_test: bool = False
    size: int = 0

    def __post_init__(self) -> None:
        config.one_of("dataset", self.dataset, SOURCES)
        config.yes_or_no("keep_in_test", self.keep_in_test)
        if not isinstance(self.size, int) or (self.size and not 16 <= self.size <= 256):
            raise ValueError(
                f"size={self.size!r}: must be 16 to 256 pixels, or 0 for the usual one"
            )
        self._shares()

    def resolve(self) -> Choice:
        """The same choice with nothing left open."""
        source = SOURCES[self.dataset]
        target = source.target if self.target == "auto" else self.target
        groups = self.groups
        if groups == "auto":
            groups = source.groups if target == source.target else "label"
        return replace(self, target=target, groups=groups, size=self.size or source.size)

    def group_columns(self) -> list[str]:
        """The attributes whose product makes the groups (of a resolved choice)."""
        return [self.target if g == "label" else g for g in map(str.strip, self.groups.split(","))]

    def check(self, folder: Path | None) -> None:
        """Raise an error unless the data set is there and has these attributes. Reads no image."""
        chosen = self.resolve()
        sources.locate(self.dataset, folder)
        attributes = sources.attributes(self.dataset, folder)
        config.one_of("target", chosen.target, attributes)
        for column in chosen.group_columns():
            config.one_of("groups", column, [*attributes, "label"])
        chosen.shares(attributes[chosen.target])

    def shares(self, classes: int) -> tuple[float, ...]:
        """Share of each class to keep for training; ``classes`` is the target's number of values."""
        fixed = self._shares()
        if fixed is None:
            fixed = (1.0,) * classes
            if self.halved() and self.keep != "all":
                fixed = PROTOCOL if self.keep == "paper" else PROTOCOL[::-1]
        if len(fixed) != classes:
            raise ValueError(f"keep={self.keep!r}: {len(fixed)} shares for {classes} classes")
        return fixed

    def halved(self) -> bool:
        """Whether the paper's protocol applies: classes of equal size, in two halves."""
        return SOURCES[self.dataset].halved and self.target != "half"

    def _shares(self) -> tuple[float, ...] | None:
        if self.keep == "rotated" and not self.halved():
            raise ValueError(f"keep='rotated': {self.dataset} has no halves to change places")
        if self.keep in ("paper", "rotated", "all"):
            return None
        try:
            shares = tuple(float(share) for share in self.keep.split(","))
        except (ValueError, AttributeError):
            shares = (-1.0,)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"keep={self.keep!r}: must be 'paper', 'rotated', 'all', or a share between 0 and 1 "
                "for each class, joined by commas"
            )
        return shares


@dataclass(frozen=True)
class Splits:
    """Training, validation (for tuning only) and test.

    Attributes:
        digest: identifies which images, with which labels, are in which part; groups apart.
        facts: where the data came from, and how many of them there are, for people.
    """

    train: GroupedImages
    validation: GroupedImages
    test: GroupedImages
    digest: str
    facts: dict

    def parts(self) -> dict[str, GroupedImages]:
        """The three by name."""
        return {name: getattr(self, name) for name in PARTS}

    def artifact(self) -> Artifact:
        """Everything but the pixels: a row an image with ``split``, ``row``, ``label``, ``group``."""
        table = pd.concat(
            [
                pd.DataFrame({"split": n, "row": p.rows, "label": p.labels, "group": p.groups})
                for n, p in self.parts().items()
            ],
            ignore_index=True,
        )
        about = {
            "digest": self.digest, "facts": self.facts, "shape": self.train.shape,
            "classes": self.train.classes, "group_names": self.train.group_names,
        }  # fmt: skip
        return Artifact(tables={"images": table}, facts=about)

    @classmethod
    def published(cls, found: Artifact) -> Splits:
        """The splits of an :meth:`Splits.artifact`, whose pixels are :class:`Unseen`."""
        facts, table = found.facts, found.tables["images"]
        names = tuple(facts["classes"]), tuple(facts["group_names"])
        parts = {}
        for name in PARTS:
            own = table[table["split"] == name]
            columns = (own[c].to_numpy(np.int64) for c in ("label", "group", "row"))
            parts[name] = GroupedImages(Unseen(len(own), facts["shape"]), *columns, *names)
        return cls(**parts, digest=facts["digest"], facts=facts["facts"])


def identity(choice: Choice, seed: int) -> dict:
    """What published splits are known by. Their data are not among it: readers have none."""
    return {"choice": asdict(choice.resolve()), "seed": seed}


def load(choice: Choice, seed: int, folder: Path | None, store: Store) -> Splits:
    """The chosen data, split by ``seed``.

    20 % are for testing (or the official test set, where there is one) and 10 % of the rest for
    validation, both stratified by label. Images without a value of the target or of a group are left
    out. The shares ``keep`` then thin out the classes of the training set.

    Raises:
        FileNotFoundError: if the data set is not there.
        ValueError: for an unknown attribute, too small a class, or a group without training images.
    """
    about = "splits", VERSION, identity(choice, seed)
    if store.published:
        return Splits.published(store.get(*about))
    splits = _load(choice.resolve(), seed, folder, store)
    # Kept to be published. With other data in the folder, those of before do not hold.
    store.fetch(*about, lambda _: splits.artifact(), lambda facts: facts["digest"] == splits.digest)
    return splits


def _load(chosen: Choice, seed: int, folder: Path | None, store: Store) -> Splits:
    chosen.check(folder)
    pictures = sources.load(chosen.dataset, chosen.size, folder, store)
    every = group(pictures, chosen.target, chosen.group_columns())
    values = [str(value) for value in pictures.table[chosen.target].cat.categories]
    kept = dict(zip(values, chosen.shares(len(values)), strict=True))
    shares = [kept[name] for name in every.classes]
    official = pictures.table["split"].to_numpy()[every.rows] if "split" in pictures.table else None
    indices = split(every.labels, seed, official, every.classes)
    parts = dict(zip(PARTS, indices, strict=True))
    for number, name in enumerate(parts):
        if name == "train" or chosen.keep_in_test:
            rng = np.random.default_rng([seed, number])
            parts[name] = thin(every.labels, parts[name], shares, rng)
    taken = {name: every.take(index) for name, index in parts.items()}
    # A small group that a seed leaves out of the test set is measured on the other seeds.
    if empty := [name for name, n in taken["train"].sizes().items() if not n]:
        raise ValueError(
            f"groups={chosen.groups!r}, keep={chosen.keep!r}: the training set has no image of "
            f"{', '.join(map(repr, empty))}; keep a larger share or choose coarser groups"
        )
    facts = {
        "dataset": chosen.dataset, "target": chosen.target, "groups": chosen.groups,
        "fingerprint": pictures.fingerprint, "skipped": len(pictures.skipped),
        "left_out": len(pictures.table) - len(every),
    } | {f"{name}_images": len(part) for name, part in taken.items()}  # fmt: skip
    return Splits(**taken, digest=_digest(pictures.fingerprint, taken), facts=facts)


def group(pictures: Pictures, target: str, columns: Sequence[str]) -> GroupedImages:
    """All images that have a value of ``target`` and of each of ``columns``.

    Classes are the categories of ``target`` that occur; groups are the combinations that occur.
    """
    table = pictures.table
    rows = np.flatnonzero(table[[target, *columns]].notna().all(axis=1))
    label = table[target].iloc[rows].cat.remove_unused_categories()
    codes = np.stack([table[column].cat.codes.to_numpy()[rows] for column in columns], 1)
    combined, groups = np.unique(codes, axis=0, return_inverse=True)
    categories = [table[column].cat.categories for column in columns]
    names = [
        " × ".join(str(c[k]) for c, k in zip(categories, row, strict=True)) for row in combined
    ]
    return GroupedImages(
        pictures.images[rows],
        label.cat.codes.to_numpy(np.int64),
        groups.reshape(-1).astype(np.int64),
        rows,
        tuple(map(str, label.cat.categories)),
        tuple(names),
    )


def split(
    labels: np.ndarray,
    seed: int,
    official: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the training, validation and test samples, each sorted; stratified by label.

    Args:
        labels: (n,).
        seed: of the split.
        official: (n,) of ``"train"`` and ``"test"``, where the test set is given.
        names: of the classes, for messages.

    Raises:
        ValueError: for a class of fewer than 13 samples, or too few in the given training set.
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels)
    if len(counts) < 2 or counts.min() < FEWEST:
        rarest = (names or range(len(counts)))[counts.argmin()]
        raise ValueError(
            f"class {rarest} has {counts.min()} samples: the split needs at least two classes, and "
            f"{FEWEST} samples of each"
        )
    every = np.arange(len(labels))
    if official is None:
        rest, test = train_test_split(every, test_size=TEST, stratify=labels, random_state=seed)
    else:
        rest, test = every[official == "train"], every[official == "test"]
        _check_official(np.bincount(labels[rest], minlength=len(counts)), names)
    train, validation = train_test_split(
        rest, test_size=VALIDATION, stratify=labels[rest], random_state=seed
    )
    return np.sort(train), np.sort(validation), np.sort(test)


def _check_official(counts: np.ndarray, names: Sequence[str] | None) -> None:
    """Raise an error unless a validation set can be split off classes of these sizes."""
    if counts.min() < 2 or counts.sum() * VALIDATION <= len(counts) - 1:
        rarest = (names or range(len(counts)))[counts.argmin()]
        raise ValueError(
            f"class {rarest} has {counts.min()} samples in the official training part: to split off "
            f"validation takes 2 of each class, and {1 / VALIDATION:.0f} a class on average"
        )


def thin(
    labels: np.ndarray, index: np.ndarray, shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Of the samples at ``index``, keep of class c a random share ``shares[c]``, rounded."""
    kept = []
    for label, share in enumerate(shares):
        own = index[labels[index] == label]
        kept.append(rng.choice(own, round(share * len(own)), replace=False))
    return np.sort(np.concatenate(kept))


def _digest(fingerprint: str, parts: dict[str, GroupedImages]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for name, part in parts.items():
        digest.update(name.encode() + part.rows.tobytes() + part.labels.tobytes())
    return digest.hexdigest()
