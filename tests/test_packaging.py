"""The files that name versions, notebooks and addresses agree with each other."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("published", "ci", "laptop", "paper")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
PYTHONS = SpecifierSet(PROJECT["project"]["requires-python"])
# Put together here, so that this file does not name them itself.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "python" + "hosted"),
        ("npmjs", "com"),
        ("npmjs", "org"),
        ("anaconda", "org"),
        ("download", "pytorch", "org"),
        ("deb", "debian", "org"),
    )
]
NOT_OURS = {"build", "_build", "store", "runs", "__pycache__"}
PLATFORMS = [
    {"python_version": minor, "python_full_version": f"{minor}.4", **system}
    for minor in ("3.11", "3.12")
    for system in (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    )
]


def project_files() -> list[Path]:
    """What git tracks or would track; without git, what lies here and is not built."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
        return [path for path in paths if path.is_file()]
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [
            d for d in below if d not in NOT_OURS and (d[0] != "." or d in (".github", ".ci"))
        ]
        found += [Path(folder, name) for name in names]
    return found


def text_files() -> dict[str, str]:
    """The project's text files by their path; binary ones are left out."""
    contents = {str(path.relative_to(ROOT)): path.read_bytes() for path in project_files()}
    return {name: raw.decode() for name, raw in contents.items() if b"\0" not in raw}


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml: core, extras and build backend."""
    project = PROJECT["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    everything = project["dependencies"] + extras + PROJECT["build-system"]["requires"]
    return [Requirement(line) for line in everything]


def pins() -> dict[str, list[tuple[Requirement, int]]]:
    """The lock's pins by canonical name, each with its number of hashes."""
    by_name = {}
    for line in LOCK.replace("\\\n", " ").splitlines():
        if line and line[0] not in "# -":
            requirement, *hashes = line.split("--hash=sha256:")
            pin = Requirement(requirement.strip())
            by_name.setdefault(canonical(pin.name), []).append((pin, len(hashes)))
    return by_name


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def workflows() -> list[Path]:
    return sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def notebooks() -> set[str]:
    return {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("requirement", declared(), ids=str)
@pytest.mark.parametrize(
    "platform", PLATFORMS, ids=lambda p: f"{p['sys_platform']}-{p['python_version']}"
)
def test_the_lock_pins_what_pyproject_asks_for(requirement, platform):
    found = [pin for pin, _ in pins().get(canonical(requirement.name), [])]
    chosen = [pin for pin in found if pin.marker is None or pin.marker.evaluate(platform)]
    assert len(chosen) == 1, f"{requirement.name}: the lock has {[str(pin) for pin in chosen]}"
    (pinned,) = chosen[0].specifier
    assert pinned.operator == "=="
    assert requirement.specifier.contains(pinned.version, prereleases=True)


def test_every_pin_has_hashes():
    everything = [pin for found in pins().values() for pin in found]
    assert len(everything) > 100
    assert [str(pin) for pin, hashes in everything if not hashes] == []


def test_the_lock_names_no_address():
    assert "://" not in LOCK
    assert not re.search(r"^\s*-(-index|-extra-index|-find-links|i\b|f\b)", LOCK, re.MULTILINE)


def test_conda_installs_the_lock_and_nothing_else():
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (through_pip,) = [entry["pip"] for entry in wanted if isinstance(entry, dict)]
    assert through_pip == ["-r requirements.lock"]
    conda = [
        Requirement(re.sub(r"(?<![=<>!~])=(?!=)", "==", e)) for e in wanted if isinstance(e, str)
    ]
    assert sorted(entry.name for entry in conda) == ["pip", "python"]
    (python,) = [entry.specifier for entry in conda if entry.name == "python"]
    assert all(PYTHONS.contains(version.version) for version in python)


def test_the_workflows_use_a_python_we_support():
    wanted = r"""python-version:\s*(\[[^\]]*\]|["'][\d.]+["'])"""
    found = {path.name: re.findall(wanted, path.read_text()) for path in workflows()}
    assert set(found) == {"book.yml", "test.yml"}
    for name, entries in found.items():
        versions = [version for entry in entries for version in re.findall(r"[\d.]+", entry)]
        assert versions, name
        assert all(PYTHONS.contains(version) for version in versions), name


def test_the_classifiers_name_pythons_we_support():
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c]
    assert named
    assert all(PYTHONS.contains(version) for version in named)


def test_versions_agree():
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert f'__version__ = "{version}"' in (ROOT / "relufair" / "__init__.py").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_names_a_package_registry():
    hits = [
        (name, host) for name, text in text_files().items() for host in REGISTRIES if host in text
    ]
    assert hits == []


def test_the_repository_address_stands_in_one_place():
    address = CONFIG["repository"]["url"].removeprefix("https://")
    assert [name for name, text in text_files().items() if address in text] == ["_config.yml"]


@pytest.mark.parametrize("tier", TIERS)
def test_every_notebook_has_its_parameters_in_each_tier(tier):
    files = (ROOT / "notebooks" / "params" / tier).iterdir()
    assert {path.name for path in files} == {f"{name}.yaml" for name in notebooks()}


def test_there_are_no_other_tiers():
    folders = (ROOT / "notebooks" / "params").iterdir()
    assert {path.name for path in folders} == set(TIERS)


@pytest.mark.parametrize("name", sorted(notebooks()))
def test_notebooks_are_committed_executed_and_without_errors(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = [
        cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    ]
    assert all(cell["execution_count"] for cell in code), "nbval does not compare unexecuted cells"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_the_table_of_contents_lists_every_notebook():
    toc = (ROOT / "_toc.yml").read_text()
    assert set(re.findall(r"file: notebooks/(\S+)", toc)) == notebooks()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_a_benchmark_imports_what_there_is(path):
    """A benchmark runs seldom; that it still fits the package shows here."""
    code = f"import runpy, sys; sys.argv[1:] = []; runpy.run_path({str(path)!r})"
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
