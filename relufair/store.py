"""The store: what was computed, under a key made of everything it depends on.

An artifact is a folder ``<kind>/<key>/`` with a description (``config.json``), arrays
(``arrays.safetensors``), tables (``<name>.parquet``) and the checksums of these files. It appears
under its name in one step, when it is complete, so a reader never meets half of one; a damaged one
is said, set aside and computed anew. One process computes a key, others that want it wait.

A store may also be *published*: then it reads the tables and facts in ``data/results/artifacts``, which
:mod:`relufair.published` writes and checks, and neither computes nor writes anything.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

import relufair
from relufair import provenance

_NESTED: ContextVar[bool] = ContextVar("nested", default=False)  # inside of a computation?


@dataclass
class Artifact:
    """What a stage computed.

    Attributes:
        arrays: named NumPy arrays.
        tables: named tables.
        facts: numbers and words that fit into JSON: counts, device, seconds.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Damaged(RuntimeError):
    """A stored artifact is not what was written."""


class NotPublished(LookupError):
    """The published results lack what was asked for.

    Args:
        kind, key: which artifact, or in words what of what.
        how: how to get it.
    """

    def __init__(self, kind: str, key: str, how: str = "Unset RELUFAIR_PUBLISHED to compute it."):
        super().__init__(kind, key, how)

    def __str__(self) -> str:
        return "{} {}: not published. {}".format(*self.args)


class Unpublished(Mapping):
    """Stands for the arrays of a published artifact: asking for one raises :class:`NotPublished`."""

    def __init__(self, kind: str, key: str):
        self.kind, self.key = kind, key

    def _refuse(self, *_: Any) -> Any:
        raise NotPublished(self.kind, f"{self.key}, its arrays")

    __getitem__ = __iter__ = __len__ = __or__ = _refuse


def key_of(kind: str, version: int, config: Mapping[str, Any]) -> str:
    """The content key: 24 hexadecimal digits of the SHA-256 of kind, version and configuration.

    >>> key_of("teacher", 1, {"seed": 0, "width": 8}) == key_of("teacher", 1, {"width": 8, "seed": 0})
    True
    """
    text = json.dumps([kind, version, config], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """A folder of artifacts.

    Args:
        root: the folder; made if it is not there. By default ``RELUFAIR_STORE``, else ``store``
            in the project's folder.
        published: read published results alone: those of the project, or of the folder given here.
            By default if ``RELUFAIR_PUBLISHED`` is 1.

    Where ``RELUFAIR_RECORD`` names a file, a line ``kind/key`` is added to it for every artifact that
    was read or made, but for what was only needed to make another one.
    """

    def __init__(self, root: Path | str | None = None, published: Path | bool | None = None):
        self.root = Path(root or os.environ.get("RELUFAIR_STORE") or project_root() / "store")
        if published is None:
            published = os.environ.get("RELUFAIR_PUBLISHED") == "1"
        self.published = results_folder() if published is True else published or None

    def path(self, kind: str, version: int, config: Mapping[str, Any]) -> Path:
        """Where the artifact of this key lies, or would lie."""
        return self.root / kind / key_of(kind, version, config)

    def workplace(self, kind: str, version: int, config: Mapping[str, Any]) -> Path:
        """A folder for this key's unfinished work, such as a checkpoint to resume from."""
        self._check_writable(kind, version, config)
        folder = self.root / "work" / f"{kind}-{key_of(kind, version, config)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(self, kind: str, version: int, config: Mapping[str, Any]) -> FileLock:
        """A lock that one process holds at a time; the system frees it when the process ends."""
        self._check_writable(kind, version, config)
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        # Like all that is written, it has the rights of the user's umask: a store can be shared.
        rights = folder.stat().st_mode & 0o666
        return FileLock(folder / f"{kind}-{key_of(kind, version, config)}", mode=rights)

    def _check_writable(self, kind: str, version: int, config: Mapping[str, Any]) -> None:
        if self.published:
            raise NotPublished(kind, key_of(kind, version, config))

    def get(self, kind: str, version: int, config: Mapping[str, Any]) -> Artifact | None:
        """The artifact, or None where there is none. A damaged one is said and set aside.

        Raises:
            NotPublished: if it is not there, and the store is the published one.
            Damaged: if it is there, damaged, and the store is the published one.
        """
        if self.published:
            return read_published(self.published, kind, key_of(kind, version, config))[1]
        path = self.path(kind, version, config)
        try:
            found = _read(path) if path.exists() else None
        except Damaged:  # or another process is just putting a good copy in its place
            with self.lock(kind, version, config):
                found = _read_or_set_aside(path)
        if found is not None:
            _record(path)
        return found

    def put(
        self, kind: str, version: int, config: Mapping[str, Any], artifact: Artifact
    ) -> Artifact:
        """Write an artifact in one step. Where another process was first, its copy stays."""
        self._check_writable(kind, version, config)
        path = self.path(kind, version, config)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        partial.mkdir()
        try:
            _write(partial, {"kind": kind, "version": version, "config": dict(config)}, artifact)
            partial.rename(path)
        except OSError:
            if not path.exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return artifact

    def fetch(
        self,
        kind: str,
        version: int,
        config: Mapping[str, Any],
        compute: Callable[[Path], Artifact],
        holds: Callable[[dict[str, Any]], bool] = lambda facts: True,
    ) -> Artifact:
        """The stored artifact, or else what ``compute`` returns, stored.

        The facts of a new one name the code that made it (:mod:`relufair.provenance`).

        Args:
            kind: the stage's name.
            version: the stage's version; a change of what it computes needs a new one.
            config: everything the result depends on, the parents' keys among it.
            compute: gets a folder for unfinished work, which is removed after success.
            holds: whether the facts of a stored one still hold here and now; if not, it is replaced.
                For what depends on more than published readers can know, such as the device.
        """
        found = self.get(kind, version, config)
        if found is not None and (self.published or holds(found.facts)):
            return found
        path = self.path(kind, version, config)
        with self.lock(kind, version, config):
            # Computed while we waited?
            found = _read_or_set_aside(path)
            if found is None or not holds(found.facts):
                found = self._compute(kind, version, config, compute)
        _record(path)
        return found

    def _compute(
        self,
        kind: str,
        version: int,
        config: Mapping[str, Any],
        compute: Callable[[Path], Artifact],
    ) -> Artifact:
        """Compute and store an artifact, for the holder of its lock."""
        # Looked up first: the files may be other ones by the time that a long computation ends.
        origin = provenance.made_by(kind, config)
        work, start = self.workplace(kind, version, config), time.perf_counter()
        nested = _NESTED.set(True)
        try:
            artifact = compute(work)
        finally:
            _NESTED.reset(nested)
        artifact.facts.setdefault("seconds", round(time.perf_counter() - start, 2))
        artifact.facts |= origin
        shutil.rmtree(self.path(kind, version, config), ignore_errors=True)  # holds no longer
        self.put(kind, version, config, artifact)
        shutil.rmtree(work, ignore_errors=True)
        return artifact


def _record(path: Path) -> None:
    if (name := os.environ.get("RELUFAIR_RECORD")) and not _NESTED.get():
        with Path(name).open("a") as file:
            file.write(f"{path.parent.name}/{path.name}\n")


def _write(folder: Path, description: dict[str, Any], artifact: Artifact) -> None:
    """Write an artifact's files, and leave it with the arrays and facts as they will be read."""
    facts = {
        "relufair": relufair.__version__,
        "python": platform.python_version(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    } | artifact.facts
    (folder / "config.json").write_text(json.dumps(description | {"facts": facts}, indent=1))
    # Laid out as they will be read: by the layout of images a network's sums are rounded.
    arrays = {name: np.asarray(array, order="C") for name, array in artifact.arrays.items()}
    (folder / "arrays.safetensors").write_bytes(save(arrays))
    for name, table in artifact.tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=1))
    artifact.arrays, artifact.facts = arrays, facts


def _read_or_set_aside(path: Path) -> Artifact | None:
    """What :meth:`Store.get` returns, for the holder of the artifact's lock: no other moves it."""
    try:
        return _read(path) if path.exists() else None
    except Damaged as error:
        print(f"relufair: {error}; computing it anew", file=sys.stderr)
        path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))
        return None


def _read(folder: Path) -> Artifact:
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        wrong = [name for name, value in sums.items() if checksum(folder / name) != value]
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # others are no damage
        raise Damaged(f"{folder} is incomplete ({error})") from error
    if wrong:
        raise Damaged(f"{folder} is damaged ({', '.join(wrong)})")
    try:
        return Artifact(
            load_file(folder / "arrays.safetensors"),
            {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))},
            json.loads((folder / "config.json").read_text())["facts"],
        )
    except (ValueError, KeyError, SafetensorError) as error:
        raise Damaged(f"{folder} cannot be read ({error})") from error


def read_artifact(folder: Path) -> tuple[dict[str, Any], Artifact]:
    """Description (kind, version, config, facts) and content of an artifact in a store's folder."""
    artifact = _read(folder)
    return json.loads((folder / "config.json").read_text()), artifact


def read_published(folder: Path, kind: str, key: str) -> tuple[dict[str, Any], Artifact]:
    """Description and content of a published artifact, without its arrays.

    Args:
        folder: of the published results.
        kind, key: which.

    Raises:
        NotPublished: if it is not there.
        Damaged: if its tables are not those that were published.
    """
    place = folder / "artifacts" / kind
    try:
        about = json.loads((place / f"{key}.json").read_text())
        tables = {name: place / f"{key}.{name}.parquet" for name in about["tables"]}
        wrong = [path.name for n, path in tables.items() if checksum(path) != about["tables"][n]]
        if wrong:
            raise Damaged(f"{place} is damaged ({', '.join(wrong)})")
        found = {name: pd.read_parquet(path) for name, path in tables.items()}
        return about, Artifact(Unpublished(kind, key), found, about["facts"])
    except FileNotFoundError as error:
        if not (place / f"{key}.json").exists():
            raise NotPublished(kind, key) from None
        raise Damaged(f"{place} is incomplete ({error})") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{place / key}.json cannot be read ({error})") from error


def results_folder() -> Path:
    """The project's published results."""
    return project_root() / "data" / "results"


def project_root() -> Path:
    """The folder that holds ``notebooks`` and ``_toc.yml``: here or above, else the package's.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    package = Path(relufair.__file__).resolve().parents[1]
    for folder in (Path.cwd(), *Path.cwd().parents, package):
        if (folder / "_toc.yml").exists() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError(
        f"no relufair project at or above {Path.cwd()}: run this in a clone of the repository"
    )
