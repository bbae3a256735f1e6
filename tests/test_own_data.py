"""The page "Your own data", followed word for word: its code makes the data, its command runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from test_book import TEXTS, answer, arguments, blocks, dialogues

from relufair import data

PAGE = TEXTS["book/own_data.md"]
GENERATE, SHOW = blocks(PAGE, "python")
COMMAND = blocks(PAGE, "bash")[0].replace("\\\n", " ")
# The page's run, made shorter: one seed, two budgets, and a hasty training.
HASTE = [
    "-p", "seeds=[0]", "-p", "budgets=[0.5,0.05]", "-p",
    "training={teacher_epochs: 2, masks_lr: 0.01, lasso_growth: 1.4, finetune_epochs: 1}",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the page's first block has made its data."""
    folder = tmp_path_factory.mktemp("own_data")
    subprocess.run([sys.executable, "-c", GENERATE], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def finished(place):
    """The output folder of the page's command, run in a process of its own."""
    relufair = Path(sys.executable).with_name("relufair")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RELUFAIR_")}
    environment["RELUFAIR_STORE"] = str(place / "store")
    done = subprocess.run(
        [relufair, *arguments(COMMAND), *HASTE],
        cwd=place, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder == (place / "shapes-run").resolve()
    return folder


def splits(place: Path, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the page's labels.csv that are for training and for testing."""
    table = pd.read_csv(place / "shapes" / "labels.csv").sort_values("file", ignore_index=True)
    train, _, test = data.split(np.unique(table["shape"], return_inverse=True)[1], seed)
    return table.iloc[train], table.iloc[test]


def test_the_tables_and_figures_are_left(finished):
    assert shlex.split(COMMAND)[-1] == finished.name
    table = pd.read_parquet(finished / "accuracy_drops.parquet")
    assert list(pd.read_csv(finished / "accuracy_drops.csv").columns) == list(table.columns)
    assert sorted(table["budget"].unique()) == [0.05, 0.5, 1.0]
    figures = {path.name for path in finished.iterdir() if path.suffix in (".png", ".svg")}
    assert figures >= {f"{name}.{kind}" for name in ("drops", "group_accuracy", "overall")
                       for kind in ("png", "svg")}  # fmt: skip
    assert all(path.stat().st_size > 300 for path in finished.iterdir())


def test_the_notebook_ran_through(finished):
    (path,) = finished.glob("*.ipynb")
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert [o for cell in cells for o in cell.outputs if o.output_type == "error"] == []


def test_the_group_sizes_are_those_of_the_csv(place, finished):
    table = pd.read_parquet(finished / "accuracy_drops.parquet")
    train, test = splits(place, seed=0)
    assert set(table["group"]) == {"day", "night"}
    for group, rows in table.groupby("group"):
        assert set(rows["train_n"]) == {(train["light"] == group).sum()}
        assert set(rows["n"]) == {(test["light"] == group).sum()}


def test_the_table_on_the_page_has_these_sizes(place):
    (table,) = (block for block in blocks(PAGE, "text") if "test images" in block)
    for group in ("day", "night"):
        mean = np.mean([(splits(place, seed)[1]["light"] == group).sum() for seed in (0, 1)])
        assert set(re.findall(rf"\b{group} +(\d+) ", table)) == {str(round(mean))}


def test_the_second_block_prints_the_table(finished):
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=finished.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (page,) = (block for block in blocks(PAGE, "text") if "test images" in block)
    assert [line.split() for line in done.stdout.splitlines()[:2]] == [
        line.split() for line in page.splitlines()[:2]
    ]


@pytest.mark.parametrize(
    ("args", "output"), [pytest.param(*s, id=" ".join(s[0])) for s in dialogues(PAGE)]
)
def test_the_output_shown_is_the_output(args, output, place, monkeypatch):
    monkeypatch.setenv("RELUFAIR_STORE", str(place / "store"))
    monkeypatch.chdir(place)
    shown = answer(args)
    pixels = r"(?m)^  fingerprint \w+$"  # another version of the decoder may change some
    assert re.sub(pixels, "", shown) == re.sub(pixels, "", output)
