"""The command line: checks what was asked, runs a notebook, lists the data. No science here."""

from __future__ import annotations

import ast
import datetime
import itertools
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import yaml

from relufair.cli_results import DATA, GIVEN, TIERS, environment, results

PUBLISHED = "published"  # the tier that reads what others have computed


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="relufair")
def main() -> None:
    """Rerun the study of what linearizing ReLUs costs each group."""


main.add_command(results)


def usage(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """What ``function`` returns; where it refuses, a usage error with its words."""
    from relufair.store import Damaged, NotPublished

    try:
        return function(*args, **kwargs)
    except (ValueError, FileNotFoundError, Damaged, NotPublished) as error:
        raise click.UsageError(str(error)) from error


# Notebooks and their parameters -----------------------------------------------------------------


def notebooks(root: Path) -> dict[str, Path]:
    """The notebooks by short name: ``accuracy_drops`` for ``notebooks/03_accuracy_drops.ipynb``."""
    return {p.stem.partition("_")[2]: p for p in sorted((root / "notebooks").glob("[0-9]*.ipynb"))}


def find_notebook(root: Path, name: str) -> tuple[str, Path]:
    """Short name and path of a notebook named short, in full, or by its number."""
    found = notebooks(root)
    for short, path in found.items():
        if name.removesuffix(".ipynb") in (short, path.stem, path.stem.partition("_")[0]):
            return short, path
    raise click.UsageError(f"notebook={name!r}: allowed are {', '.join(found)}")


def defaults(path: Path) -> dict[str, Any]:
    """The parameters of a notebook: names and default values in its ``parameters`` cell."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    (source,) = (c.source for c in cells if "parameters" in c.metadata.get("tags", ()))
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
    }


def typed(name: str, value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``, or a usage error that names the type."""
    if isinstance(default, dict) and isinstance(value, dict):
        return {key: _number(setting) for key, setting in value.items()}
    value = value if isinstance(default, str) else _number(value)
    if isinstance(default, list):
        if isinstance(value, list):
            return [typed(name, v, default[0]) for v in value]
    elif isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, float) and isinstance(value, int | float):
        return float(value)
    elif type(value) is type(default):
        return value
    kind = {list: "a list such as ", str: "text such as ", dict: "settings such as "}.get(
        type(default), "a value such as "
    )
    raise click.UsageError(f"{name}={value!r}: must be {kind}{default!r}")


def _number(value: Any) -> Any:
    """A number where ``value`` is text that means one: YAML takes 1e-2 for text."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def read_parameters(
    root: Path, path: Path, tier: str | None, given: Iterable[str]
) -> dict[str, Any]:
    """Parameters that differ from the notebook's own: the tier's, then those given as NAME=VALUE."""
    known, chosen = defaults(path), {}
    if tier:
        settings = root / "notebooks" / "params" / tier / f"{path.stem}.yaml"
        chosen |= yaml.safe_load(usage(settings.read_text, encoding="utf-8")) or {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise click.UsageError(f"-p {item}: must be NAME=VALUE")
        if isinstance(known.get(name), str) and text[:1] not in ("'", '"'):
            chosen[name] = text  # as it is written: 01 and no are words here
            continue
        try:
            chosen[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.UsageError(f"{name}={text}: cannot be read ({error})") from error
    for name in chosen:
        if name not in known:
            raise click.UsageError(f"unknown parameter {name!r}: allowed are {', '.join(known)}")
    return {name: typed(name, value, known[name]) for name, value in chosen.items()}


# Running ----------------------------------------------------------------------------------------


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C one line that says how to go on, and the shell's exit code for it."""
    for name in ("papermill", "asyncio"):  # else they complain of a kernel that is gone
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            "\nInterrupted. The same command goes on from the last epoch. What was finished before "
            "is kept in the store.",
            err=True,
        )
        sys.exit(130)


@main.command()
@click.argument("notebook")
@GIVEN
@click.option(
    "--tier", type=click.Choice((PUBLISHED, *TIERS)),
    help="Start from this tier's parameters. 'published' only reads what is in data/results.",
)  # fmt: skip
@DATA
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Output folder (default: runs/...).",
)  # fmt: skip
@interruptible()
def run(
    notebook: str, given: tuple[str, ...], tier: str | None, data: str | None, out: Path | None
) -> None:
    r"""Run NOTEBOOK with new parameters; leave it with its tables and figures in a folder.

    \b
    relufair run accuracy_drops -p dataset=utkface -p target=race -p 'budgets=[0.5,0.1]'

    What was computed before is taken from the store. An interrupted run goes on where it was.
    """
    click.echo(run_notebook(notebook, given, tier, data, out))


def run_notebook(
    notebook: str, given: Iterable[str], tier: str | None, data: str | None, out: Path | None
) -> Path:
    """Check what was asked, run the notebook, and return the folder with what it leaves."""
    from relufair.sources import data_folder
    from relufair.store import project_root

    root = usage(project_root)
    short, path = find_notebook(root, notebook)
    parameters = read_parameters(root, path, tier, given)
    from relufair.studies import STUDIES  # with torch: not for a name that is refused

    # What a chapter without published results shows takes seconds: it is computed.
    published = tier == PUBLISHED and bool(parameters)
    folder = usage(data_folder, data)
    if short not in STUDIES:
        raise click.UsageError(f"{path.name}: relufair.studies names no study of it")
    study = usage(STUDIES[short], **defaults(path) | parameters)
    variables = {"RELUFAIR_PUBLISHED": "1"} if published else {}
    with environment(**variables):
        usage(study.check_data, folder)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = out.resolve() if out else _new(root / "runs" / f"{short}-{stamp}")
    out.mkdir(parents=True, exist_ok=True)
    variables["RELUFAIR_OUT"] = str(out)
    if store := os.environ.get("RELUFAIR_STORE"):  # the notebook runs in the project's folder
        variables["RELUFAIR_STORE"] = str(Path(store).resolve())
    if folder:
        variables["RELUFAIR_DATA"] = str(folder.resolve())
    click.echo(f"Running {path.name} into {out}", err=True)
    with environment(**variables):
        _execute(path, out / path.name, parameters, root, published)
    return out


def _new(folder: Path) -> Path:
    """``folder``, made; where it is there, as of another run in the same second, with a number."""
    for n in itertools.count(1):
        own = folder if n == 1 else folder.with_name(f"{folder.name}-{n}")
        with suppress(FileExistsError):
            own.mkdir(parents=True)
            return own


def _execute(
    path: Path, target: Path, parameters: dict[str, Any], root: Path, published: bool
) -> None:
    import nbformat
    import papermill

    from relufair import pages

    start = time.perf_counter()
    page = pages.prepare(nbformat.read(path, as_version=4)) if published else path
    try:
        with progress_shown():
            papermill.execute_notebook(
                page, target, parameters, cwd=str(root), progress_bar=False,
                kernel_name="python3", extra_arguments=["--log-level=ERROR"],
                shutdown_kernel="immediate",  # after Ctrl-C it would go on for seconds, and complain
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        click.echo("".join(error.traceback), err=True)
        click.echo(f"{target} shows the cell that failed.", err=True)
        raise click.ClickException(f"{error.ename}: {error.evalue}") from error
    if published:
        nbformat.write(pages.restore(nbformat.read(target, as_version=4)), target)
    click.echo(f"Done in {time.perf_counter() - start:.0f} s.", err=True)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show on this terminal the progress bars that the notebook's kernel writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        path, done = Path(folder) / "progress", threading.Event()
        path.touch()
        thread = threading.Thread(target=_follow, args=(path, done))
        thread.start()
        try:
            with environment(RELUFAIR_PROGRESS=str(path)):
                yield
        finally:
            done.set()
            thread.join()


def _follow(path: Path, done: threading.Event) -> None:
    """Copy what is appended to ``path`` to the terminal; to a file, only now and then a line."""
    pause = 0.2 if sys.stderr.isatty() else 10.0
    with path.open(newline="") as file:
        finished = False
        while not finished:
            finished = done.wait(pause)
            text = file.read()
            if not sys.stderr.isatty():  # a log wants the latest state, not every redrawing
                text = "".join(
                    f"{line.rstrip()}\n" for line in text.split("\r")[-1:] if line.strip()
                )
            sys.stderr.write(text)
            sys.stderr.flush()


@main.command("compare")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
def compare_command(run: Path) -> None:
    """Set the accuracies of RUN, a folder that `relufair run` has left, beside the published ones.

    Leaves comparison.csv, and a figure for each method and remedy, in RUN.
    """
    from relufair import compare, published

    table = usage(compare.beside, usage(compare.read, run), usage(published.reported))
    if len(table):
        compare.keep(table, run)
        click.echo(compare.pretty(table).to_string())
    click.echo(compare.verdict(table))


# Data -------------------------------------------------------------------------------------------


@main.command("data")
@click.argument("name", required=False)
@DATA
@click.option("--download", metavar="NAME", help="Fetch NAME into the data folder, checksummed.")
def data_command(name: str | None, data: str | None, download: str | None) -> None:
    """List the data sets: what is there, what is missing and how to get it.

    With NAME, read that data set and count its images by attribute.
    """
    from relufair.sources import SOURCES, data_folder

    folder = usage(data_folder, data)
    for asked in filter(None, (name, download)):
        if asked not in SOURCES:
            raise click.UsageError(f"data set={asked!r}: allowed are {', '.join(SOURCES)}")
    if download:
        _download(download, folder)
    if name:
        _describe(name, folder)
        return
    click.echo(f"Data folder: {folder or 'none (give --data DIR or set RELUFAIR_DATA)'}\n")
    for key, source in SOURCES.items():
        there = not source.files or bool(source.found(folder))
        count = f"{source.expected:,} images" if source.expected else "any number of images"
        click.echo(f"{key:8} {'there' if there else 'MISSING':8} {source.title}; {count}")
        click.echo(f"{'':17} licence: {source.licence}")
        if not there:
            click.echo(f"{'':17} {source.how}")


def _download(name: str, folder: Path | None) -> None:
    from relufair.sources import SOURCES

    if SOURCES[name].download is None:
        raise click.UsageError(f"{name} cannot be fetched for you. {SOURCES[name].how}")
    if folder is None:
        raise click.UsageError("data folder: none given; use --data DIR or RELUFAIR_DATA")
    try:
        SOURCES[name].download(folder)
    except (OSError, RuntimeError) as error:
        raise click.ClickException(f"{name} could not be fetched into {folder}: {error}") from error


def _describe(name: str, folder: Path | None) -> None:
    from relufair import sources
    from relufair.store import Store

    source = sources.SOURCES[name]
    try:
        pictures = sources.load(name, source.size, folder, Store(published=False))
    except (OSError, ValueError, RuntimeError) as error:
        message = str(error)
        raise click.ClickException(message if name in message else f"{name}: {message}") from error
    click.echo(f"{source.title}: {len(pictures.images):,} images, licence: {source.licence}")
    if source.expected and len(pictures.images) != source.expected:
        click.echo(f"  expected {source.expected:,}: this is not the data set as distributed")
    click.echo(f"  fingerprint {pictures.fingerprint[:16]}")
    for skipped in pictures.skipped:
        click.echo(f"  skipped {skipped}")
    for column in pictures.table.columns.drop("file"):
        counts = pictures.table[column].value_counts(sort=False, dropna=False)
        click.echo(f"  {column}: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
