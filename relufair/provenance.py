"""Which code made an artifact: digests of its modules, and the commit.

A digest is of what a module does: comments, docstrings and formatting are not in it, and neither are
the differences between the syntax trees of Python's versions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
# The modules' texts, read when they are imported: a file that changes while a process runs is not
# what the process runs.
CODE = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path.read_text(
        encoding="utf-8"
    )
    for path in PACKAGE.rglob("*.py")
}

# Each kind of artifact with the kinds and the modules that it rests on. What is measured of a network
# has the network's kind in its configuration. Not here is config, whose values are in the keys.
RESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "images": ((), ("sources",)),
    "splits": (("images",), ("data",)),
    "teacher": (("splits",), ("models", "objectives", "pipeline", "training")),
    "snapshot": (("teacher",), ("linearize.snl", "masks", "methods", "tracing")),
    "finetune": (("snapshot",), ("linearize.controls", "remedies")),
    "student": (("teacher",), ("linearize.deepreduce", "masks", "methods", "remedies", "tracing")),
    "narrow": (("finetune",), ("methods",)),
    "predictions": ((), ()),
    "geometry": ((), ("bounds", "explain", "geometry")),
    "first_order": ((), ("explain", "geometry")),
    "account": ((), ("bounds", "explain", "geometry")),
    "losses": ((), ("mitigation",)),
    "costs": ((), ("mitigation",)),
    "twins": ((), ("audit",)),
    "epochs": ((), ("audit",)),
    "leakage": ((), ("audit", "groups")),
    "thinning": ((), ("audit", "geometry")),
}


def made_by(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The facts ``sources`` (digests by module) and ``commit``; of an unknown kind, only the latter."""
    sources = {f"relufair.{name}": digest(name) for name in sorted(_modules(kind, config))}
    return ({"sources": sources} if sources else {}) | {"commit": commit()}


def _modules(kind: str, config: Mapping[str, Any]) -> set[str]:
    """The modules that an artifact rests on, its parents' among them."""
    parents, own = RESTS.get(kind, ((), ()))
    found = (_modules(parent, {}) for parent in {*parents, *_named(config)})
    return set(own).union(*found)


def _named(config: Mapping[str, Any]) -> Iterator[str]:
    """The kinds of artifacts that a configuration names."""
    for name, value in config.items():
        if name in RESTS:
            yield name
        elif isinstance(value, Mapping):
            yield from _named(value)


@lru_cache
def digest(name: str) -> str | None:
    """Twelve hexadecimal digits of what the package's module ``name`` does; None if it is gone."""
    return digest_of(CODE[name]) if name in CODE else None


def digest_of(code: str) -> str:
    """The digest of a module's text.

    >>> digest_of("x = 1") == digest_of("x = (1)  # one")
    True
    """
    return hashlib.sha256(json.dumps(_bare(ast.parse(code))).encode()).hexdigest()[:12]


def _bare(node: Any) -> Any:
    """A syntax tree as lists, without bare strings and empty fields."""
    if isinstance(node, ast.AST):
        fields = {name: _bare(value) for name, value in ast.iter_fields(node)}
        return [type(node).__name__, {k: v for k, v in fields.items() if v not in (None, [])}]
    if isinstance(node, list):
        return [_bare(part) for part in node if not _is_text(part)]
    return None if node is None else repr(node)


def _is_text(node: Any) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text and isinstance(node.value.value, str)


@lru_cache
def commit() -> str | None:
    """The commit of the package's clone, with ``+`` where files differ from it; None without git."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    commands = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
    try:
        said = [
            subprocess.run(["git", *c], cwd=root, capture_output=True, text=True, check=True).stdout
            for c in commands
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0].strip() + ("+" if said[1].strip() else "")
