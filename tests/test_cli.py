"""The command line: what it refuses, what it runs, and what it leaves behind."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import click
import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from relufair import cli
from relufair.sources import SOURCES
from relufair.store import Damaged, NotPublished

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = cli.notebooks(ROOT)
MAIN = "import sys; from relufair.cli import main; main(prog_name='relufair')"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Stand in the project; no data folder; what the command sets in the environment is undone."""
    monkeypatch.chdir(ROOT)
    before = dict(os.environ)
    monkeypatch.delenv("RELUFAIR_DATA", raising=False)
    yield
    for name in ("RELUFAIR_OUT", "RELUFAIR_DATA"):
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]


@pytest.fixture
def executed(monkeypatch):
    """What would be executed: papermill replaced by a list of its calls."""
    calls = []
    fake = types.ModuleType("papermill")
    fake.PapermillExecutionError = type("PapermillExecutionError", (Exception,), {})
    fake.execute_notebook = lambda *args, **kwargs: calls.append(
        (args, kwargs | {"environment": dict(os.environ)})
    )
    monkeypatch.setitem(sys.modules, "papermill", fake)
    return calls


def relufair(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], prog_name="relufair")


def run(tmp_path, *arguments):
    """``relufair run`` into a folder that is not there yet."""
    return relufair("run", *arguments, "--out", tmp_path / "out")


def parameters(executed):
    """The parameters of the one notebook that was to be executed."""
    (((_, _, given), _),) = executed
    return given


# Refusals ----------------------------------------------------------------------------------------

DROPS = {
    "budgets=[1.5]": r"budgets?=1\.5.*between 0 and 1",
    "budgets=[-0.5]": r"budgets?=-0\.5.*between 0 and 1",
    "budgets=[0.5, 0.00001]": r"budgets?=1e-05: would leave none of the 15360 ReLUs.*6.5e-05",
    "budgets=[]": r"budgets=\[\]: must name at least one",
    "budgets=[0.5, 0.5]": r"budgets=\[0\.5, 0\.5\].*none twice",
    "budgets=[0.5, 0.50001]": r"budgets.*0\.50001",  # the same 7,680 ReLUs
    "budgets=0.5": r"budgets=0\.5: must be a list such as \[0\.5",
    "budgets=[half]": r"budgets='half': must be",
    "arch=resnet19": r"arch='resnet19': allowed are resnet18, resnet34",
    "methods=[pruning]": r"methods='pruning': allowed are snl, deepreduce",
    "width=0": r"width=0: must be a whole number of at least 1",
    "width=8.5": r"width=8\.5: must be",
    "width=wide": r"width='wide': must be",
    "width=true": r"width=True: must be",
    "workers=0": r"workers=0: must be a whole number of at least 1",
    "seeds=[0,0]": r"seeds=\[0, 0\].*none twice",
    "seeds=[]": r"seeds=\[\]: must name at least one",
    "seeds=[-1]": r"seeds=-1: must be a whole number of at least 0",
    "seeds=[0.5]": r"seeds=0\.5: must be",
    "seeds=[4294967296]": r"seeds=4294967296: must be .* at least 0 and at most 4294967295",
    "seeds=0": r"seeds=0: must be a list such as \[0, 1\]",
    "schedule=foo": r"schedule='foo': allowed are ci, laptop, paper",
    "training={foo: 1}": r"training='foo': allowed are teacher_epochs",
    "training={teacher_epochs: 0}": r"teacher_epochs=0: must be a whole number of at least 1",
    "training={teacher_epochs: 1.5}": r"teacher_epochs=1\.5: must be a whole number",
    "training={teacher_epochs: many}": r"teacher_epochs='many': must be a whole number",
    "training={growth_rule: never}": r"growth_rule='never': allowed are stagnation, every",
    "training={lasso: -1}": r"lasso=-1: must be a finite number of at least 0",
    "training={lasso: .inf}": r"lasso=inf: must be",
    "training={masks_lr: .nan}": r"masks_lr=nan: must be",
    "training=5": r"training=5: must be settings",
    "dataset=mnist": r"dataset='mnist': allowed are digits, utkface, cifar10, svhn, folder",
    "dataset=utkface": r"dataset='utkface': UTKFace or UTKFace.tar.gz not found.*susanqq",
    "dataset=cifar10": r"dataset='cifar10'.*not found.*relufair data --data DIR --download cifar10",
    "dataset=folder": r"dataset='folder': labels.csv not found.*--data",
    "target=age": r"target='age': allowed are digit, half",
    "target=": r"target=(None: must be text|'': allowed are digit, half)",
    "groups=nope": r"groups='nope': allowed are digit, half, label",
    'groups="half,nope"': r"groups='nope': allowed are digit, half, label",
    "keep=most": r"keep='most': must be 'paper', 'rotated', 'all', or a share between 0 and 1",
    "keep_in_test=maybe": r"keep_in_test='maybe': must be a value such as False",
    "keep_in_test=1": r"keep_in_test=1: must be a value such as False",
    "size=8": r"size=8: must be 16 to 256 pixels, or 0",
    "budget=[0.5]": r"unknown parameter 'budget': allowed are dataset, target, groups",
    "seeds": r"-p seeds: must be NAME=VALUE",
    "seeds=[0": r"seeds=\[0: cannot be read",
}
BOUNDARY = {
    "budgets=[1.5]": r"budgets?=1\.5.*between 0 and 1",
    "budgets=[0.01]": r"budgets?=0\.01: would leave none of the 8 ReLUs",
    "minority=0.6": r"minority=0\.6: must be a finite number of at least 0\.001 and at most 0\.5",
    "minority=0": r"minority=0\.0: must be",
    "samples=3": r"samples=3: must be a whole number of at least 20",
    "hidden=[]": r"hidden=\[\]: must name the width of at least one layer",
    "hidden=[8, 0]": r"hidden=0: must be a whole number of at least 1",
    "steps=0": r"steps=0: must be a whole number",
    "lr=0": r"lr=0\.0: must be a finite number",
    "lr=.inf": r"lr=inf: must be",
    "lr=fast": r"lr='fast': must be",
    "seeds=[]": r"seeds=\[\]: must name at least one",
    "dataset=digits": r"unknown parameter 'dataset': allowed are budgets, minority",
}
CASES = [("accuracy_drops", *case) for case in DROPS.items()]
CASES += [("decision_boundary", *case) for case in BOUNDARY.items()]


@pytest.mark.parametrize(("notebook", "given", "message"), CASES)
def test_impossible_values_are_refused_before_anything_runs(
    tmp_path, executed, notebook, given, message
):
    """With the usual exit code, the parameter, the value and what is allowed; no trace is left."""
    result = run(tmp_path, notebook, "-p", given)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert "Usage: relufair run" in result.stderr and not result.stdout
    assert not executed and not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["accuracy", "drops", "99", "", "../03_accuracy_drops"])
def test_an_unknown_notebook_is_refused(tmp_path, executed, name):
    """The message names those that there are."""
    result = run(tmp_path, name)
    assert result.exit_code == 2 and not executed
    assert f"notebook={name!r}: allowed are {', '.join(NOTEBOOKS)}" in result.stderr


@pytest.mark.parametrize("arguments", [("--tier", "big"), ("--data", "/no/such/place"), ("-x",)])
def test_wrong_options_are_refused(tmp_path, executed, arguments):
    result = run(tmp_path, "accuracy_drops", *arguments)
    assert result.exit_code == 2 and not executed
    assert arguments[-1] in result.stderr


def test_a_tier_whose_data_are_missing_is_refused(tmp_path, executed):
    """The published tiers need UTKFace."""
    result = run(tmp_path, "accuracy_drops", "--tier", "laptop", "--data", tmp_path)
    assert result.exit_code == 2 and not executed
    assert "UTKFace.tar.gz not found" in result.stderr and str(tmp_path) in result.stderr


def test_outside_of_a_project_the_package_finds_its_own(tmp_path, executed, monkeypatch):
    """An editable installation works from any folder."""
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, "accuracy_drops").exit_code == 0
    (((path, _, _), _),) = executed
    assert path == NOTEBOOKS["accuracy_drops"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, executed):
    (tmp_path / "out").write_text("a file")
    result = run(tmp_path, "accuracy_drops")
    assert result.exit_code == 2 and not executed and "out" in result.stderr


# Values and their types --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "said"), [("ci", "09_mine.ipynb: relufair.studies names"), ("paper", "09_mine.yaml")]
)
def test_a_notebook_that_lacks_something_is_refused(tmp_path, executed, monkeypatch, tier, said):
    """Its study, or its parameters for the tier."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})]
    (tmp_path / "notebooks/params/ci").mkdir(parents=True)
    (tmp_path / "notebooks/params/ci/09_mine.yaml").write_text("{}")
    nbformat.write(notebook, tmp_path / "notebooks/09_mine.ipynb")
    monkeypatch.setattr("relufair.store.project_root", lambda: tmp_path)
    refused = run(tmp_path, "mine", "--tier", tier)
    assert refused.exit_code == 2 and said in refused.stderr and not executed


@pytest.mark.parametrize(
    ("notebook", "given", "expected"),
    [
        ("accuracy_drops", "seeds=[0,1]", [0, 1]),
        ("accuracy_drops", "seeds=[7]", [7]),
        ("accuracy_drops", "budgets=[1, 0]", [1.0, 0.0]),
        ("accuracy_drops", "budgets=[1e-1, 2E-2, .5]", [0.1, 0.02, 0.5]),
        ("accuracy_drops", "training={teacher_epochs: 2}", {"teacher_epochs": 2}),
        ("accuracy_drops", "training={teacher_lr: 1e-2}", {"teacher_lr": 0.01}),
        ("accuracy_drops", "training={}", {}),
        ("accuracy_drops", "keep=1,1,1,1,1,1,1,1,1,0.5", "1,1,1,1,1,1,1,1,1,0.5"),
        ("accuracy_drops", "groups=digit,half", "digit,half"),
        ("accuracy_drops", "keep_in_test=true", True),
        ("accuracy_drops", "width=4", 4),
        ("decision_boundary", "lr=1e-2", 0.01),
        ("decision_boundary", "lr=1E-2", 0.01),
        ("decision_boundary", "lr=1e-05", 1e-5),
        ("decision_boundary", "lr=.01", 0.01),
        ("decision_boundary", "lr=1", 1.0),
        ("decision_boundary", "hidden=[9, 8]", [9, 8]),
    ],
)
def test_values_have_the_types_of_the_notebook(tmp_path, executed, notebook, given, expected):
    """Numbers in any usual notation; whole numbers where fractions are asked for, not vice versa."""
    result = run(tmp_path, notebook, "-p", given)
    assert result.exit_code == 0, result.output
    ((name, value),) = parameters(executed).items()
    assert (name, value) == (given.partition("=")[0], expected)
    kinds = [type(v) for v in value] if isinstance(value, list) else type(value)
    wanted = [type(v) for v in expected] if isinstance(expected, list) else type(expected)
    assert kinds == wanted


@given(st.floats(1e-6, 1e6), st.sampled_from(["{!r}", "{:e}", "{:E}", "{:.3g}", "{:f}"]))
def test_any_notation_of_a_number_is_read(value, notation):
    """As Python, C and people write it."""
    text = notation.format(value)
    path = NOTEBOOKS["decision_boundary"]
    assert cli.read_parameters(ROOT, path, None, [f"lr={text}"]) == {"lr": float(text)}


@pytest.mark.parametrize("value", ["01", "1.10", "no", "2020", "1e3", "skin tone"])
def test_text_is_taken_as_it_is_written(value):
    """A user's column may have any name, also one that looks like something else."""
    path = NOTEBOOKS["accuracy_drops"]
    assert cli.read_parameters(ROOT, path, None, [f"groups={value}"]) == {"groups": value}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_default_can_be_given(name):
    """The notebook's own values, written as YAML, come back as they are."""
    known = cli.defaults(NOTEBOOKS[name])
    written = [f"{k}={json.dumps(v)}" for k, v in known.items()]
    assert cli.read_parameters(ROOT, NOTEBOOKS[name], None, written) == known


def test_the_last_value_given_counts(tmp_path, executed):
    """Given values overrule the tier's, and later ones earlier ones."""
    arguments = ("--tier", "laptop", "-p", "seeds=[5]", "-p", "seeds=[6]", "-p", "steps=3")
    assert run(tmp_path, "decision_boundary", *arguments).exit_code == 0
    assert parameters(executed) == {"seeds": [6], "steps": 3}


@pytest.mark.parametrize("name", ["accuracy_drops", "03", "03_accuracy_drops.ipynb"])
def test_a_notebook_has_several_names(name):
    assert cli.find_notebook(ROOT, name) == ("accuracy_drops", NOTEBOOKS["accuracy_drops"])


def test_what_is_given_to_papermill(tmp_path, executed):
    """The notebook, its place in the output folder, and the folders by their full names."""
    (tmp_path / "data").mkdir()
    result = run(tmp_path, "decision_boundary", "--data", os.path.relpath(tmp_path / "data"))
    assert result.exit_code == 0
    (((path, target, given), options),) = executed
    assert (path, given) == (NOTEBOOKS["decision_boundary"], {})
    assert target == tmp_path / "out" / path.name
    assert options["cwd"] == str(ROOT)
    assert options["environment"]["RELUFAIR_OUT"] == str(tmp_path / "out")
    assert options["environment"]["RELUFAIR_DATA"] == str(tmp_path / "data")
    assert os.environ.get("RELUFAIR_OUT") != str(tmp_path / "out")  # afterwards it is as before
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out")


def test_a_relative_store_is_the_one_seen_from_here(tmp_path, executed, monkeypatch):
    """Although the notebook's process stands in the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELUFAIR_STORE", "mine")
    assert run(tmp_path, "decision_boundary").exit_code == 0
    ((_, options),) = executed
    assert Path(options["environment"]["RELUFAIR_STORE"]) == tmp_path / "mine"


def test_progress_of_another_process_is_shown(capsys):
    """What is appended to the file comes to the screen; afterwards the environment is as before."""
    with cli.progress_shown():
        with Path(os.environ["RELUFAIR_PROGRESS"]).open("a") as file:
            file.write("\rteacher: 1/3 [00:01<00:02]\rteacher: 2/3 [00:02<00:01]")
        assert "RELUFAIR_PROGRESS" in os.environ
    assert "RELUFAIR_PROGRESS" not in os.environ
    shown = capsys.readouterr()
    assert "teacher: 2/3 [00:02<00:01]" in shown.err and not shown.out


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_progress_bar_closes_its_file(tmp_path, monkeypatch, error):
    """Also where the training is interrupted."""
    from relufair import training

    monkeypatch.setenv("RELUFAIR_PROGRESS", str(tmp_path / "progress"))
    with nullcontext() if error is None else pytest.raises(error):
        with training.progress(3, "teacher") as bar:
            file = bar.fp
            bar.update()
            if error:
                raise error
    assert file.closed
    assert "teacher:  33%" in (tmp_path / "progress").read_text()


def test_an_interruption_says_how_to_go_on(tmp_path, executed, monkeypatch):
    """With the shell's exit code for it."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["papermill"], "execute_notebook", interrupted)
    result = run(tmp_path, "decision_boundary")
    assert result.exit_code == 130 and "The same command goes on" in result.stderr


# Notebooks, studies and tiers agree --------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_the_parameters_of_its_study(name):
    """The same names in the same order, passed on in it or read by name; the defaults are valid."""
    from relufair.studies import STUDIES

    known = cli.defaults(NOTEBOOKS[name])
    assert list(known) == [field.name for field in fields(STUDIES[name])]
    STUDIES[name](**known).check_data(None)
    cells = nbformat.read(NOTEBOOKS[name], as_version=4).cells
    calls = [
        ast.unparse(node)
        for cell in cells
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", ())
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(STUDIES[name].__name__)
    ]
    own = STUDIES[name].__name__
    assert calls[0] in (f"{own}.read(globals())", f"{own}({', '.join(known)})")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_is_explained(name):
    """A comment above each, or above the group of lines that it belongs to."""
    cells = nbformat.read(NOTEBOOKS[name], as_version=4).cells
    (source,) = (c.source for c in cells if "parameters" in c.metadata.get("tags", ()))
    lines = source.splitlines()
    assert lines[0].startswith("#") and not any(line.strip() == "" for line in lines)
    assert sum(line.startswith("#") for line in lines) >= len(cli.defaults(NOTEBOOKS[name])) / 2


@pytest.mark.parametrize("tier", (cli.PUBLISHED, *cli.TIERS))
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_tier_is_valid(name, tier):
    """Its parameters are known, of the right type and possible; the data may be missing."""
    from relufair.studies import STUDIES

    path = NOTEBOOKS[name]
    study = STUDIES[name](**cli.defaults(path) | cli.read_parameters(ROOT, path, tier, ()))
    if hasattr(study, "runs"):
        assert len(study.runs()) == len(study.seeds) * len(study.methods)
        chosen = study.choice
        assert chosen.target in SOURCES[chosen.dataset].attributes


def test_the_ci_tier_is_the_notebook():
    """So that running the notebooks by hand and by tier is the same."""
    for path in NOTEBOOKS.values():
        given = cli.read_parameters(ROOT, path, "ci", ())
        assert given.items() <= cli.defaults(path).items()


# Data --------------------------------------------------------------------------------------------


def test_data_lists_every_source(tmp_path):
    """What is there, what is missing, how to get it, on which terms, and how many there are."""
    result = relufair("data", "--data", tmp_path)
    assert result.exit_code == 0
    for name, source in SOURCES.items():
        (line,) = (ln for ln in result.stdout.splitlines() if ln.startswith(f"{name} "))
        assert ("there" if name == "digits" else "MISSING") in line and source.title in line
        assert (f"{source.expected:,}" if source.expected else "any number") in line
        assert source.licence in result.stdout
        assert (source.how in result.stdout) == (name != "digits")
    (tmp_path / "UTKFace").mkdir()
    assert re.search(r"utkface +there", relufair("data", "--data", tmp_path).stdout)


def test_data_counts_the_digits():
    """By every attribute."""
    result = relufair("data", "digits")
    assert result.exit_code == 0
    assert "1,797 images" in result.stdout and "CC BY 4.0" in result.stdout
    assert "digit: 0 178, 1 182, 2 177, 3 183, 4 181, 5 182, 6 181, 7 179, 8 174, 9 180" in (
        result.stdout
    )
    assert "half: classes 0–4 901, classes 5–9 896" in result.stdout


def test_data_says_what_is_wrong_with_a_folder(tmp_path):
    """Too many broken images: a message, no traceback."""
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\n")
    result = relufair("data", "folder", "--data", tmp_path)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "Error: folder: 1 of 1 images cannot be used: a.png" in result.stderr


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("svhn", {"train_32x32.mat": b"no", "test_32x32.mat": b"no"}),
        ("cifar10", {"cifar-10-batches-py/data_batch_1": b"no"}),
        ("cifar10", {"cifar-10-python.tar.gz": b"no"}),
        ("cifar10", {"CIFAR-10-images.tar.gz": b"no"}),
        ("utkface", {"UTKFace.tar.gz": b"no"}),
        ("folder", {"labels.csv": b""}),
        ("folder", {"labels.csv": b"\xff\xfe\x00"}),
    ],
)
def test_data_that_are_damaged_are_a_message(tmp_path, name, files):
    """Files that are not what their name says: one line that names the data, no traceback."""
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    result = relufair("data", name, "--data", tmp_path)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert any(word in result.stderr for word in (name, *files))


def test_faces_are_not_downloaded(tmp_path):
    """Their licence asks everyone to ask; the refusal says where."""
    result = relufair("data", "--download", "utkface", "--data", tmp_path)
    assert result.exit_code == 2
    assert "utkface cannot be fetched for you" in result.stderr
    assert SOURCES["utkface"].how in result.stderr


def test_data_are_described_where_only_published_results_are_read(monkeypatch):
    monkeypatch.setenv("RELUFAIR_PUBLISHED", "1")
    result = relufair("data", "digits")
    assert result.exit_code == 0 and "1,797 images" in result.stdout


@pytest.mark.parametrize("error", [Damaged("x is damaged"), NotPublished("splits", "x is missing")])
def test_what_the_store_lacks_is_said_in_a_line(error):
    def fails():
        raise error

    with pytest.raises(click.UsageError, match="x is"):
        cli.usage(fails)


def test_a_download_needs_a_folder_and_may_fail(tmp_path, monkeypatch):
    """Without a folder it is refused, without a network it says what it could not do."""
    from dataclasses import replace

    fetched = []

    def fails(folder):
        fetched.append(folder)
        raise OSError("no network")

    monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], download=fails))
    result = relufair("data", "--download", "cifar10")
    assert result.exit_code == 2 and "--data" in result.stderr and not fetched
    result = relufair("data", "--download", "cifar10", "--data", tmp_path)
    assert result.exit_code == 1 and fetched == [tmp_path]
    assert f"cifar10 could not be fetched into {tmp_path}: no network" in result.stderr


@pytest.mark.parametrize("arguments", [("mnist",), ("--download", "mnist")])
def test_unknown_data_are_refused(arguments):
    result = relufair("data", *arguments)
    assert result.exit_code == 2
    assert f"'mnist': allowed are {', '.join(SOURCES)}" in result.stderr


# In a process of its own -------------------------------------------------------------------------


def process(code, *arguments, cwd=ROOT, **environment):
    """Run Python code with arguments, as a user's shell would."""
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code, *map(str, arguments)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import relufair",
        "import relufair.cli",
        "from click.testing import CliRunner; from relufair.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0; "
        "assert CliRunner().invoke(main, ['run', 'nope']).exit_code == 2",
    ],
)
def test_help_comes_at_once(code):
    """Without the libraries that take seconds to import."""
    heavy = {"torch", "torchvision", "papermill", "sklearn", "matplotlib", "seaborn"}
    found = process(f"import sys; {code}; print(*({heavy!r} & set(sys.modules)))")
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


@dataclass
class Fail:
    """A study that accepts what its notebook then refuses."""

    number: int

    def check_data(self, folder):
        """Nothing to check."""


FAIL = "import sys; sys.path.insert(0, sys.argv.pop(1)); import test_cli; from relufair import "
FAIL += "studies; studies.STUDIES['fail'] = test_cli.Fail; " + MAIN


@pytest.fixture
def failing(tmp_path):
    """A project with one notebook, whose second cell fails."""
    (tmp_path / "_toc.yml").write_text("format: jb-book\n")
    (tmp_path / "notebooks").mkdir()
    new = nbformat.v4
    cell = new.new_code_cell("number = 1", metadata={"tags": ["parameters"]})
    wrong = (
        "print('so far so good')\nraise ValueError(f'number={number}: the cell does not like it')"
    )
    notebook = new.new_notebook(
        cells=[cell, new.new_code_cell(wrong), new.new_code_cell("print('never')")],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
    )
    nbformat.write(notebook, tmp_path / "notebooks" / "09_fail.ipynb")
    return tmp_path


def test_a_failing_cell_is_a_failing_command(failing):
    """The error is last on the screen, and the notebook shows how far it came."""
    out = failing / "out"
    tests = str(Path(__file__).parent)
    found = process(FAIL, tests, "run", "fail", "-p", "number=3", "--out", out, cwd=failing)
    assert found.returncode == 1, found.stderr
    assert found.stderr.splitlines()[-1] == "Error: ValueError: number=3: the cell does not like it"
    assert not found.stdout.strip()
    assert str(out / "09_fail.ipynb") in found.stderr
    assert "ValueError" in found.stderr.split("Error: ValueError")[0]  # where it happened
    cells = nbformat.read(out / "09_fail.ipynb", as_version=4).cells
    text = "\n".join(str(cell.get("outputs")) for cell in cells)
    assert "so far so good" in text and "never" not in text


def interrupted(folder, code, *arguments):
    """Start a command, wait for its file ``started``, and press Ctrl-C as a terminal would."""
    command = [sys.executable, "-W", "default", "-c", code, *map(str, arguments)]
    running = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # Tests that run in the background of a script would hand down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not (folder / "started").exists() and running.poll() is None:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    return running.returncode, out, err


def test_ctrl_c_is_one_line(failing):
    """No traceback of the kernel, and the shell's exit code."""
    path = failing / "notebooks" / "09_fail.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "open('started', 'x').close(); import time; time.sleep(600)"
    nbformat.write(notebook, path)
    arguments = (Path(__file__).parent, "run", "fail", "-p", "number=3", "--out", failing / "out")
    code, out, err = interrupted(failing, FAIL, *arguments)
    assert code == 130 and not out
    running, *lines = filter(None, err.splitlines())
    assert running.startswith("Running 09_fail.ipynb into ")
    assert lines == [
        "Interrupted. The same command goes on from the last epoch. What was finished before is kept "
        "in the store."
    ]


def test_without_an_output_folder_there_is_a_new_one(failing, executed, monkeypatch):
    """In the project's folder of runs, named after the notebook; its path is printed."""
    from relufair import studies

    monkeypatch.setitem(studies.STUDIES, "fail", Fail)
    monkeypatch.chdir(failing)
    result = relufair("run", "fail")
    assert result.exit_code == 0, result.output
    out = Path(result.stdout.splitlines()[-1])
    assert out.parent == failing / "runs" and out.name.startswith("fail-") and out.is_dir()


def test_two_runs_of_the_same_second_have_their_own_folders(tmp_path):
    names = [cli._new(tmp_path / "runs" / "mu_ablation-1").name for _ in range(3)]
    assert names == ["mu_ablation-1", "mu_ablation-1-2", "mu_ablation-1-3"]


TINY = [
    "-p", "width=2", "-p", "seeds=[0]", "-p", "methods=[snl]", "-p", "budgets=[0.1]", "-p",
    "training={teacher_epochs: 2, masks_lr: 0.05, threshold: 0.05, lasso: 0.01, "
    "lasso_growth: 1.5, finetune_epochs: 1}",
]  # fmt: skip
KEPT = {
    "03_accuracy_drops.ipynb",
    *(f"accuracy_drops.{kind}" for kind in ("parquet", "csv")),
    *(f"{f}.{kind}" for f in ("group_accuracy", "drops", "overall") for kind in ("png", "svg")),
}


def written(store):
    """When each artifact of the store was written, by its folder."""
    return {
        path.parent: json.loads(path.read_text())["facts"]["written"]
        for path in store.glob("*/*/config.json")
    }


def test_a_run_from_end_to_end_and_again_from_the_store(tmp_path):
    """Everything the command promises to leave; the second run trains nothing and says the same."""
    one, two, store = tmp_path / "one", tmp_path / "two", tmp_path / "store"
    environment = {"OMP_NUM_THREADS": "1", "RELUFAIR_STORE": str(store)}
    first = process(MAIN, "run", "accuracy_drops", *TINY, "--out", one, **environment)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(one)
    assert {path.name for path in one.iterdir()} == KEPT

    # Progress with the time that is left.
    bars = [line for line in first.stderr.splitlines() if "epoch" in line]
    assert bars and all(re.search(r"seed 0: .*\d+/\d+ \[\d\d:\d\d<(\d\d:\d\d|\?)", b) for b in bars)

    # The table, twice the same, and the figures.
    table = pd.read_parquet(one / "accuracy_drops.parquet")
    pd.testing.assert_frame_equal(table, pd.read_csv(one / "accuracy_drops.csv"), check_dtype=False)
    assert set(table["budget"]) == {1.0, 0.1} and set(table["relus"]) == {3840, 384}
    assert (table["width"] == 2).all() and table.groupby("budget")["n"].sum().eq(360).all()
    for figure in ("group_accuracy", "drops", "overall"):
        assert (one / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (one / f"{figure}.svg").read_text()

    # The notebook, executed with these parameters.
    cells = nbformat.read(one / "03_accuracy_drops.ipynb", as_version=4).cells
    (injected,) = (c for c in cells if "injected-parameters" in c.metadata.get("tags", ()))
    assert "width = 2" in injected.source and "seeds = [0]" in injected.source
    assert all(c.execution_count for c in cells if c.cell_type == "code")

    # Again: from the store alone.
    before = written(store)
    kinds = {path.parent.name for path in before}
    assert kinds >= {"images", "teacher", "snapshot", "finetune", "predictions"}
    second = process(MAIN, "run", "accuracy_drops", *TINY, "--out", two, **environment)
    assert second.returncode == 0, second.stderr
    assert written(store) == before
    assert "epoch" not in second.stderr
    pd.testing.assert_frame_equal(table, pd.read_parquet(two / "accuracy_drops.parquet"))
    assert {path.name for path in two.iterdir()} == KEPT
