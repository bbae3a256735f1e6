"""What the pages show in code is so: commands parse, messages are real, tables equal the code."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from relufair import cli
from relufair.config import SCHEDULES
from relufair.sources import SOURCES
from relufair.studies import STUDIES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "book").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "relufair").rglob("*.py"))


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shown(text: str) -> list[str]:
    """Every command of a page: in shell blocks, after a prompt, and between backticks."""
    lines = [
        line.removeprefix("$ ").split("  #")[0].strip()
        for block in blocks(text, "bash") + blocks(text, "console")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ") or block in blocks(text, "bash")
    ]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`([^`]+)`", prose)


def arguments(command: str) -> list[str] | None:
    """What follows ``relufair`` in a command, or None if it is another command."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    return words[1:] if words and words[0].removeprefix(".venv/bin/") == "relufair" else None


def commands() -> list[tuple[str, str]]:
    """Page and command, of every ``relufair`` command with arguments."""
    return [(page, c) for page, text in TEXTS.items() for c in shown(text) if arguments(c)]


def dialogues(text: str) -> list[tuple[list[str], str]]:
    """Arguments and output of every command that a page shows with its output."""
    found = [block.partition("\n") for block in blocks(text, "console")]
    return [(arguments(line.removeprefix("$ ")), output) for line, _, output in found]


def answer(args: list[str]) -> str:
    """What ``relufair`` prints for ``args``, without the hint at its usage."""
    result = CliRunner().invoke(cli.main, args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return re.sub(r"\AUsage: .*?\n\n", "", result.output, flags=re.DOTALL)


def test_there_are_commands_to_check():
    assert len(commands()) > 30
    assert {page for page, _ in commands()} >= {
        "README.md", "data/README.md", "book/rerun.md", "book/data.md", "book/own_data.md",
    }  # fmt: skip


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_parses(page, command):
    name, *rest = arguments(command)
    alone = name == "run" and not rest  # the subcommand, mentioned in a sentence
    assert name in cli.main.commands
    if alone or rest == ["--help"]:
        return
    found = cli.main.commands[name]
    if isinstance(found, click.Group):
        found, rest = found.commands[rest[0]], rest[1:]
    given = found.make_context(name, rest).params
    if name == "data":
        assert {given["name"], given["download"]} <= {None, "NAME", *SOURCES}
        return
    if "notebook" not in given:
        return
    short, path = cli.find_notebook(ROOT, given["notebook"])
    try:
        chosen = cli.read_parameters(ROOT, path, given["tier"], given["given"])
        STUDIES[short](**cli.defaults(path) | chosen)
    except (click.UsageError, ValueError) as error:
        assert f"Error: {error}" in TEXTS[page], "refused, and the page does not say so"


@pytest.mark.parametrize(
    ("args", "output"),
    [
        pytest.param(args, output, id=" ".join(args))
        for text in TEXTS.values()
        for args, output in dialogues(text)
        if "--data" not in args
    ],
)
def test_the_output_shown_is_the_output(args, output, monkeypatch, tmp_path):
    monkeypatch.delenv("RELUFAIR_DATA", raising=False)
    monkeypatch.setenv("RELUFAIR_STORE", str(tmp_path))
    monkeypatch.setattr(cli, "_execute", lambda *_: pytest.fail("it was not refused: it runs"))
    monkeypatch.chdir(ROOT)
    assert answer(args) == output


def test_the_messages_quoted_from_the_code_are_in_it():
    (line,) = blocks(TEXTS["book/rerun.md"], "text")
    assert line.strip() in CODE


def test_the_table_of_schedules_is_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", TEXTS["book/method.md"], re.MULTILINE)
    table = {name: cells.split(" | ")[:3] for name, cells in rows}
    code = {tier: asdict(schedule) for tier, schedule in SCHEDULES.items()}
    assert list(code) == ["ci", "laptop", "paper"]
    assert list(table) and set(table) == set(code["ci"])
    for name, cells in table.items():
        values = [code[tier][name] for tier in code]
        assert [
            as_written(cell, value) for cell, value in zip(cells, values, strict=True)
        ] == values


def as_written(cell: str, value: object) -> object:
    """A table's cell as a value of the same type; as it stands if it is none."""
    if isinstance(value, bool):
        return {"True": True, "False": False}.get(cell, cell)
    try:
        return type(value)(cell)
    except ValueError:
        return cell


def test_the_table_of_environment_variables_is_complete():
    table = re.findall(r"^\| `(RELUFAIR_\w+)` \|", TEXTS["book/rerun.md"], re.MULTILINE)
    assert sorted(table) == sorted(set(re.findall(r"\bRELUFAIR_[A-Z]+\b", CODE)))


def test_the_api_lists_every_module():
    folder = ROOT / "relufair"
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    listed = re.findall(r"^\.\. automodule:: (\S+)$", TEXTS["book/api.md"], re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == modules


def test_the_make_targets_shown_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        match.group(1)
        for text in TEXTS.values()
        for command in shown(text)
        if (match := re.match(r"(?:[A-Z_]+=\S+ )*make ([a-z]+)", command))
    }
    assert {"book", "test", "setup", "lab"} <= named
    assert named <= targets
