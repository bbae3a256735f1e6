"""Where images come from: five sources, each read once and kept as small unsigned bytes.

A source yields :class:`Pictures`: all images at one size, and a table with a row an image. Archives
are read as they come; nothing is written into the data folder. Image files may be of the
:data:`FORMATS` below, with 8 bits a channel; 16 bits are scaled down.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from relufair.store import Artifact, Store

VERSION = 2  # of what the readers below return; part of the cache's key
MAX_SKIPPED = 0.01
#: The kinds of image files that are read. No other decoder of Pillow's ever sees a file.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
RACES = ("White", "Black", "Asian", "Indian", "Others")
GENDERS = ("male", "female")
AGES = {"0–1": 0, "2–12": 2, "13–17": 13, "18–64": 18, "65+": 65}  # first year of each band
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """All images of a source.

    Attributes:
        images: (n, C, S, S), uint8, in the order of ``table``.
        table: a row an image: ``file``, one ordered categorical column an attribute, and ``split``
            (``train``, ``test``) where the source has an official test set.
        skipped: names of the images that could not be used, with the reason where it is not plain.
        fingerprint: SHA-256 of images and table.
    """

    images: np.ndarray
    table: pd.DataFrame
    skipped: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """A data set: how to find it, read it, and get it.

    Attributes:
        read: from the data folder and the size to images, table and skipped names.
        title, licence, how: for people: what it is, on which terms, how to get it.
        attributes: what can be predicted or compared, and how many values each has; those of
            ``folder`` stand in its table.
        target, groups: the attributes predicted and compared by default.
        size: side of the images by default, in pixels.
        expected: number of usable images in the data set as distributed, or None.
        files: what to look for in the data folder; any one of these groups suffices.
        holds: what to look for in these files, in words.
        download: fetches it with checksums, where that is allowed.
        halved: whether the paper's protocol unbalances its classes.
    """

    read: Callable[[Path, int], tuple[np.ndarray, pd.DataFrame, list[str]]]
    title: str
    licence: str
    how: str
    attributes: dict[str, int]
    target: str
    groups: str
    size: int = 32
    expected: int | None = None
    files: tuple[tuple[str, ...], ...] = ()
    holds: str = "images"
    download: Callable[[Path], None] | None = None
    halved: bool = False

    def found(self, folder: Path | None) -> list[Path]:
        """The files of this source in ``folder``: the first complete group, or nothing."""
        for group in self.files if folder else ():
            paths = [folder / name for name in group]
            if all(path.exists() for path in paths):
                return paths
        return []


def data_folder(given: str | Path | None = None) -> Path | None:
    """The user's data folder: as given, else ``RELUFAIR_DATA``, else None.

    Raises:
        FileNotFoundError: if it is named but is no folder.
    """
    name = given or os.environ.get("RELUFAIR_DATA")
    if not name:
        return None
    if not Path(name).is_dir():
        raise FileNotFoundError(f"data={str(name)!r}: no such folder")
    return Path(name)


def locate(name: str, folder: Path | None) -> list[Path]:
    """The files of source ``name``; an empty list for an embedded one.

    Raises:
        FileNotFoundError: naming what was looked for, where, and how to get it.
    """
    source = SOURCES[name]
    paths = source.found(folder)
    if source.files and not paths:
        wanted = " or ".join(" + ".join(group) for group in source.files)
        where = folder or "no data folder given (use --data or RELUFAIR_DATA)"
        raise FileNotFoundError(f"dataset={name!r}: {wanted} not found: {where}. {source.how}")
    return paths


def attributes(name: str, folder: Path | None) -> dict[str, int]:
    """What can be predicted or compared in source ``name``, and how many values each has."""
    if name != "folder":
        return SOURCES[name].attributes
    locate(name, folder)
    table = read_labels(folder).drop(columns="file")
    return {column: len(table[column].cat.categories) for column in table}


def load(name: str, size: int, folder: Path | None, store: Store) -> Pictures:
    """The images of source ``name`` at ``size`` x ``size``, read once and then kept in ``store``.

    Raises:
        FileNotFoundError: if the data set is not there.
        ValueError: if it holds no images, or more than 1 % of them cannot be used.
    """
    paths = locate(name, folder)
    config = {"source": name, "size": size, "files": _signature(_files(name, folder), folder)}

    def compute(_: Path) -> Artifact:
        source = SOURCES[name]
        images, table, skipped = source.read(folder, size)
        if not len(images) and not skipped:
            where = " + ".join(map(str, paths))
            raise ValueError(f"dataset={name!r}: no {source.holds} in {where}. {source.how}")
        _check_skipped(name, skipped, len(images))
        facts = {"skipped": skipped, "fingerprint": _fingerprint(images, table)}
        return Artifact({"images": images}, {"table": table}, facts)

    found = store.fetch("images", VERSION, config, compute)
    facts = found.facts
    return Pictures(
        found.arrays["images"], found.tables["table"], tuple(facts["skipped"]), facts["fingerprint"]
    )


def _check_skipped(name: str, skipped: list[str], used: int) -> None:
    if not skipped:
        return
    names = ", ".join(skipped[:10]) + (", …" if len(skipped) > 10 else "")
    message = f"{name}: {len(skipped)} of {used + len(skipped)} images cannot be used: {names}"
    if len(skipped) > MAX_SKIPPED * (used + len(skipped)):
        raise ValueError(
            f"{message}. More than {MAX_SKIPPED:.0%}: is this the right data? Image files may be "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )
    warnings.warn(f"{message} (skipped)", UserWarning, stacklevel=2)


def _files(name: str, folder: Path | None) -> list[Path]:
    """All files that source ``name`` would read."""
    if name == "folder":
        return [folder / "labels.csv", *(folder / file for file in read_labels(folder)["file"])]
    found = SOURCES[name].found(folder)
    return sorted(chain.from_iterable(p.rglob("*") if p.is_dir() else [p] for p in found))


def _signature(files: list[Path], folder: Path | None) -> str:
    """A digest of names, sizes and times of all files: changed data are read again."""
    stats = ((f.relative_to(folder).as_posix(), f.stat()) for f in files if f.is_file())
    text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(images: np.ndarray, table: pd.DataFrame) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()


# Reading images ---------------------------------------------------------------------------------


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each regular file in a folder or a tar archive. Links are not followed."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(path.parent).as_posix(), file.read_bytes()
        return
    try:
        with gzip.open(path) as raw, tarfile.open(fileobj=raw, mode="r|") as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()
            while raw.read(2**20):  # tarfile takes a cut end for the end: only gzip's check tells
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); get it anew") from error


class Deep(ValueError):
    """The pixels of an image do not fit into 8 bits."""


def _decode(item: tuple[str, bytes], size: int) -> tuple[str, np.ndarray | str]:
    """The image as (3, size, size) bytes, or else why it cannot be used: empty if it is no image.

    Grey pixels of 16 bits are divided by 257, so that white stays white; of coloured ones the upper
    8 bits count. Pixels of 32 bits, whole or floating-point, are taken if all of them are whole
    numbers from 0 to 255 and refused otherwise: only their author knows which value is white.
    """
    name, data = item
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            colour = _eight_bits(image).convert("RGB")
            small = colour.resize((size, size), Image.Resampling.BILINEAR)
    except Deep as error:
        return name, str(error)
    except (OSError, ValueError, SyntaxError, NotImplementedError, Image.DecompressionBombError):
        return name, ""
    return name, np.asarray(small).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same image with 8 bits a channel; Pillow's own conversion would cut off at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(int) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        deep = np.asarray(image)
        if not np.isin(deep, np.arange(256)).all():
            raise Deep("32-bit pixels other than 0 to 255: save it with 8 or 16 bits")
        return Image.fromarray(deep.astype(np.uint8))
    return image


def _skipped(decoded: dict[str, np.ndarray | str], used: Collection[str]) -> list[str]:
    """Names of the images that are not ``used``, with the decoder's reason in brackets."""
    left = {name: image for name, image in decoded.items() if name not in used}
    return [f"{n} ({i})" if isinstance(i, str) and i else n for n, i in left.items()]


def _decode_all(items: Iterable[tuple[str, bytes]], size: int) -> dict[str, np.ndarray | str]:
    """All images by name, in sorted order; decoded by as many threads as there are cores."""
    decoded: dict[str, np.ndarray | str] = {}
    items = iter(items)
    with ThreadPoolExecutor() as pool:
        while some := list(islice(items, 1024)):  # so that an archive need not fit into memory
            decoded.update(pool.map(lambda item: _decode(item, size), some))
    return dict(sorted(decoded.items()))


def _stack(images: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)


def _category(values: Iterable[int | float | str], names: Iterable[str]) -> pd.Categorical:
    """Codes (−1: missing) into an ordered categorical column."""
    return pd.Categorical.from_codes(np.asarray(values, int), list(names), ordered=True)


# The sources ------------------------------------------------------------------------------------


def _read_digits(_: Path | None, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(g).resize((size, size), Image.Resampling.BILINEAR) for g in gray]
    table = pd.DataFrame({"file": [f"{i:04d}" for i in range(len(gray))]})
    table["digit"] = _category(digits.target, map(str, range(10)))
    table["half"] = _halves(digits.target)
    return np.stack([np.asarray(i) for i in images])[:, None], table, []


def _halves(labels: np.ndarray) -> pd.Categorical:
    """The two halves of the classes that the paper's protocol keeps at 90 % and at 10 %."""
    return _category(np.asarray(labels) >= 5, ("classes 0–4", "classes 5–9"))


_FACE = re.compile(r"(\d{1,3})_([01])_([0-4])_\d.*\.jpg", re.IGNORECASE)


def _read_utkface(folder: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    path = SOURCES["utkface"].found(folder)[0]
    files = (
        (Path(name).name, data) for name, data in _members(path) if name[-4:].lower() == ".jpg"
    )
    decoded = _decode_all(files, size)
    usable = {n: i for n, i in decoded.items() if not isinstance(i, str) and _FACE.fullmatch(n)}
    fields = np.array([_FACE.fullmatch(n).group(1, 2, 3) for n in usable], int).reshape(-1, 3)
    band = np.searchsorted(list(AGES.values()), fields[:, 0], side="right") - 1
    table = pd.DataFrame({"file": list(usable)})
    # Ages 0 and 1 have no band in the paper (missing here); its released code makes them a fifth.
    table["age"] = _category(band - 1, list(AGES)[1:])
    table["age5"] = _category(band, AGES)
    table["gender"] = _category(fields[:, 1], GENDERS)
    table["race"] = _category(fields[:, 2], RACES)
    return _stack(list(usable.values()), size), table, _skipped(decoded, usable)


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images (n, H, W, C) as (n, C, size, size)."""
    if images.shape[1:3] != (size, size):
        small = [Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR) for i in images]
        images = np.stack([np.asarray(i) for i in small])
    return images.transpose(0, 3, 1, 2)


def _ten_classes(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], name: str, names: Iterable[str], size: int
) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """Official train and test parts (images (n, H, W, C), labels) in one table."""
    labels = np.concatenate([labels for _, labels in parts.values()])
    files = [f"{part}/{i:05d}" for part, (_, own) in parts.items() for i in range(len(own))]
    table = pd.DataFrame({"file": files, "split": [file.split("/")[0] for file in files]})
    table[name] = _category(labels, names)
    table["half"] = _halves(labels)
    return np.concatenate([_resized(images, size) for images, _ in parts.values()]), table, []


def _read_cifar10(folder: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    path = SOURCES["cifar10"].found(folder)[0]
    if path.name == "cifar-10-batches-py":
        return _read_cifar10_batches(folder, size)
    if path.name == "cifar-10-python.tar.gz":
        return _read_cifar10_archive(path, size)
    return _read_cifar10_images(path, size)


def _read_cifar10_archive(path: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """The official archive: its batches, and nothing else of it, in a folder of their own."""
    from torchvision.datasets import CIFAR10

    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    wanted = {f"{CIFAR10.base_folder}/{name}" for name in [*names, CIFAR10.meta["filename"]]}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / CIFAR10.base_folder).mkdir()
        for name, data in _members(path):
            if name in wanted:
                (place / name).write_bytes(data)
        try:
            return _read_cifar10_batches(place, size)
        except RuntimeError as error:
            raise ValueError(f"{path} is damaged ({error}); get it anew") from error


def _read_cifar10_batches(folder: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    from torchvision.datasets import CIFAR10  # compares the official checksums before it reads

    parts = {part: CIFAR10(folder, train=part == "train") for part in ("train", "test")}
    arrays = {part: (set_.data, np.array(set_.targets)) for part, set_ in parts.items()}
    return _ten_classes(arrays, "object", OBJECTS, size)


def _read_cifar10_images(path: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """The edition as image files: ``<anything>/{train,test}/<class>/<name>``."""
    decoded = _decode_all(((n, d) for n, d in _members(path) if Path(n).suffix), size)
    parts = {name: Path(name).parts[-3:-1] for name in decoded}
    usable = [
        name
        for name, image in decoded.items()
        if not isinstance(image, str)
        and parts[name][0] in ("train", "test")
        and parts[name][1] in OBJECTS
    ]
    usable.sort(key=lambda name: (parts[name][0] == "test", name))
    labels = np.array([OBJECTS.index(parts[name][1]) for name in usable], int)
    files = ["/".join((*parts[name], Path(name).name)) for name in usable]
    table = pd.DataFrame({"file": files, "split": [parts[name][0] for name in usable]})
    table["object"], table["half"] = _category(labels, OBJECTS), _halves(labels)
    images = _stack([decoded[name] for name in usable], size)
    return images, table, _skipped(decoded, set(usable))


def _read_svhn(folder: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    from torchvision.datasets import SVHN  # compares the official checksums before it reads

    parts = {part: SVHN(str(folder), split=part) for part in ("train", "test")}
    arrays = {p: (set_.data.transpose(0, 2, 3, 1), set_.labels) for p, set_ in parts.items()}
    return _ten_classes(arrays, "digit", map(str, range(10)), size)


def _download_cifar10(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(folder, download=True)


def _download_svhn(folder: Path) -> None:
    from torchvision.datasets import SVHN

    for part in ("train", "test"):
        SVHN(str(folder), split=part, download=True)


def _read_folder(folder: Path, size: int) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    table = read_labels(folder)
    decoded = _decode_all(((name, _bytes(folder / name)) for name in table["file"]), size)
    usable = {name for name, image in decoded.items() if not isinstance(image, str)}
    table = table[table["file"].isin(usable)].sort_values("file", ignore_index=True)
    images = _stack([decoded[name] for name in table["file"]], size)
    return images, table, _skipped(decoded, usable)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""  # a missing file is skipped and listed


def read_labels(folder: Path) -> pd.DataFrame:
    """The user's ``labels.csv``: the column ``file`` and one column an attribute.

    Files are named relative to ``folder``. Every other column becomes an attribute whose values are
    its categories: numbers in numerical order, words in alphabetical order; empty cells are missing.

    Raises:
        ValueError: for a missing or double ``file``, no attribute, or a file outside the folder.
    """
    path = folder / "labels.csv"
    try:
        table = pd.read_csv(path, dtype={"file": str}, keep_default_na=False, na_values=[""])
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from error
    table = table.convert_dtypes()  # so that whole numbers stay whole where some are missing
    if "file" not in table or len(table.columns) < 2 or "split" in table:
        raise ValueError(
            f"{path}: needs a column 'file' and at least one more, none of them named 'split'; "
            f"it has {', '.join(table.columns)}"
        )
    double = table["file"][table["file"].duplicated() | table["file"].isna()]
    if len(double):
        raise ValueError(f"{path}: the file {double.iloc[0]!r} is named twice or empty")
    root = folder.resolve()
    outside = [n for n in table["file"] if not (folder / n).resolve().is_relative_to(root)]
    if outside:
        raise ValueError(f"{path}: {outside[0]!r} leaves the folder; name files inside {folder}")
    for name in table.columns.drop("file"):
        codes, values = pd.factorize(table[name], sort=True)
        table[name] = _category(codes, map(str, values))
    return table


#: The data sets by name.
SOURCES = {
    "digits": Source(
        _read_digits,
        "scikit-learn's 8 x 8 handwritten digits, enlarged",
        "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)",
        "It comes with scikit-learn.",
        {"digit": 10, "half": 2},
        target="digit", groups="half", size=16, expected=1797, halved=True,
    ),
    "utkface": Source(
        _read_utkface,
        "UTKFace, aligned and cropped faces with age, gender and race",
        "non-commercial research only; the images belong to their owners",
        "Ask for the aligned and cropped faces at https://susanqq.github.io/UTKFace/ and put "
        "UTKFace.tar.gz, or its folder UTKFace, into the data folder.",
        {"age": 4, "age5": 5, "gender": 2, "race": 5},
        target="race", groups="label", expected=23704,
        files=(("UTKFace",), ("UTKFace.tar.gz",)),
        holds="images named [age]_[gender]_[race]_[date].jpg",
    ),
    "cifar10": Source(
        _read_cifar10,
        "CIFAR-10, small photographs of ten kinds of objects",
        "no explicit licence; cite Krizhevsky (2009)",
        "Run `relufair data --data DIR --download cifar10`, or put cifar-10-python.tar.gz, or "
        "CIFAR-10-images.tar.gz (the edition as image files), into the data folder.",
        {"object": 10, "half": 2},
        target="object", groups="label", expected=60000,
        files=(("cifar-10-batches-py",), ("cifar-10-python.tar.gz",),
               ("CIFAR-10-images",), ("CIFAR-10-images.tar.gz",)),
        holds="images named {train,test}/<class>/<name>",
        download=_download_cifar10, halved=True,
    ),
    "svhn": Source(
        _read_svhn,
        "SVHN, house numbers from street photographs",
        "non-commercial use only; cite Netzer et al. (2011)",
        "Run `relufair data --data DIR --download svhn`.",
        {"digit": 10, "half": 2},
        target="digit", groups="label", expected=99289,
        files=(("train_32x32.mat", "test_32x32.mat"),), download=_download_svhn,
    ),
    "folder": Source(
        _read_folder,
        "your own images, named in a labels.csv",
        "yours",
        "Put your images and a labels.csv (columns: file, and one for each attribute) into a "
        "folder and give it as --data.",
        {},
        target="label", groups="label", files=(("labels.csv",),), holds="names of images",
    ),
}  # fmt: skip
