"""The command line of the published results: export, verify, check, list. No science here."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

TIERS = ("ci", "laptop", "paper")  # that compute
GIVEN = click.option(
    "-p", "given", multiple=True, metavar="NAME=VALUE", help="Set a parameter; repeatable."
)
DATA = click.option("--data", help="Folder with the data sets (or set RELUFAIR_DATA).")


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Within it, these environment variables have these values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@click.group()
def results() -> None:
    """Publish results, verify them, or compute one of them anew."""


@results.command()
@click.argument("notebook")
@GIVEN
@click.option("--tier", type=click.Choice(TIERS), help="Start from this tier's parameters.")
@DATA
def export(notebook: str, given: tuple[str, ...], tier: str | None, data: str | None) -> None:
    """Run NOTEBOOK as `relufair run` does, and publish what its page needs.

    Tables and facts go into data/results; images and weights do not. Other published results stay.
    """
    from relufair import cli

    if os.environ.get("RELUFAIR_PUBLISHED") == "1":
        raise click.UsageError(
            "RELUFAIR_PUBLISHED=1: unset it, for published results are only read"
        )
    with cli.interruptible(), tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        record.touch()
        with environment(RELUFAIR_RECORD=str(record)):
            out = cli.run_notebook(notebook, given, tier, data, None)
        _publish(record.read_text().split())
    click.echo(out)


def _publish(recorded: list[str]) -> None:
    from relufair import published
    from relufair.store import Store, results_folder

    for note in published.export(Store(), recorded):
        click.echo(f"Not in the tally: {note}", err=True)
    names = {name for name in recorded if not name.startswith("images/")}
    click.echo(f"Published {len(names)} artifacts in {results_folder()}", err=True)


@results.command()
@click.option("--names", is_flag=True, help="Name all that is stale.")
def verify(names: bool) -> None:
    """Compare the published files with the manifest, the tally and the present code.

    Damage is an error. Results that the present code might compute otherwise are only counted.
    """
    from relufair import verification

    found = verification.verify()
    for damage in found.damage:
        click.echo(f"DAMAGED {damage}")
    for reason, artifacts in found.stale.items():
        kinds = Counter(name.partition("/")[0] for name in artifacts)
        counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        click.echo(f"Stale, {reason}: {len(artifacts)} ({counts})")
        for name in artifacts if names else ():
            click.echo(f"  {name}")
    for outcome in found.computed:
        click.echo(f"Computed anew by this code: {outcome}")
    if found.damage:
        sys.exit(1)
    click.echo("All files, and the tally, are as they were published.")


@results.command()
@click.option(
    "--run", "key", required=True, metavar="KEY", help="Of predictions; its beginning will do."
)
@DATA
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Compute in this store (default: a temporary one).",
)
@click.option("--keep", is_flag=True, help="Publish the outcome, for `relufair results verify`.")
def check(key: str, data: str | None, store: Path | None, keep: bool) -> None:
    """Compute published predictions anew, with all that they rest on, and compare."""
    from relufair import cli, verification
    from relufair.sources import data_folder
    from relufair.store import Store

    with cli.progress_shown(), tempfile.TemporaryDirectory() as folder:
        place = Store(store or folder, published=False)
        found = cli.usage(verification.check, key, place, cli.usage(data_folder, data))
    if keep:
        verification.keep(found)
    shares = found.groups[["published", "again"]].div(found.groups["n"], axis=0)
    for group, row in (100 * shares).iterrows():
        low, high = 100 * found.groups.loc[group, ["low", "high"]].astype(float)
        click.echo(
            f"{group}: published {row['published']:.1f} % [{low:.1f}, {high:.1f}], "
            f"now {row['again']:.1f} %, {found.groups.loc[group, 'n']:.0f} test images"
        )
    click.echo(
        f"{found.same} of {found.images} images have the same prediction; the largest difference of "
        f"margins is {found.apart:.4f}."
    )
    if found.astray:
        click.echo(f"It does NOT agree: {', '.join(found.astray)}, outside of the 95 % interval.")
        sys.exit(1)
    click.echo("It agrees: every group's accuracy is within the published 95 % interval.")


@results.command("list")
def list_() -> None:
    """List what is published."""
    from relufair import published

    try:
        table = published.listed()
    except FileNotFoundError:
        table = []
    click.echo(table.to_string(index=False) if len(table) else "Nothing is published.")
