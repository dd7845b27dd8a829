"""The project as a newcomer meets it: quick to start, documented as it is, laid out as ARCHITECTURE.md says."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "pyarrow", "sklearn", "numpy", "safetensors", "accelerate", "tokenizers"}
MAX_LINES = 500

START = {
    "import vllm_cls": "import vllm_cls",
    "vcls --help": "import sys; sys.argv = ['vcls', '--help']; from vllm_cls.cli.main import main; main()",
    "vcls convert --help": "import sys; sys.argv = ['vcls', 'convert', '--help']; "
    "from vllm_cls.cli.main import main; main()",
}


@pytest.mark.parametrize("code", START.values(), ids=START.keys())
def test_starting_imports_nothing_heavy(code: str) -> None:
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "vllm_cls" in imported
    assert not HEAVY & {name.partition(".")[0] for name in imported}


def project_files() -> list[Path]:
    """Files of the project, without what is generated."""
    folders = ["vllm_cls", "adapters", "plugins", "cli", "tests", "attacks", "examples", "benchmarks", "docs", ".ci"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    kinds = {".py", ".md", ".toml", ".sh", ".txt", ""}
    return [path for path in files if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts]


@pytest.mark.parametrize("path", project_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_one_can_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it by what its parts are about"


def test_every_package_is_listed() -> None:
    """setuptools takes an explicit list, so a new folder has to be named there."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"(vllm_cls[\w.]*)",?$', text.split("packages = [")[1].split("]")[0], re.MULTILINE))
    rooms = {"adapters", "plugins", "cli"}
    inits = [path.parent for path in ROOT.glob("*/**/__init__.py")] + [ROOT / "vllm_cls"]
    found = {
        ".".join(("vllm_cls", *parts[parts[0] == "vllm_cls" :]))
        for parts in (path.relative_to(ROOT).parts for path in inits)
        if parts[0] in rooms | {"vllm_cls"}
    }
    assert found == listed


def test_constraints_pin_every_requirement() -> None:
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text().replace("_", "-").lower(), re.M)
    )
    requirements = importlib.metadata.requires("vllm-cls") or []
    names = {re.split(r"[^\w-]", line.replace("_", "-"))[0].lower() for line in requirements}
    assert names <= pins.keys()


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_begins_with_the_two_commands() -> None:
    first_screen = "\n".join(readme().splitlines()[:40])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def documented_commands() -> list[str]:
    """Every `vcls` command of a shell block of the documentation."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(
            r"^```(?:console|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        found += [match for line in lines for match in re.findall(r"(?:^|[|;&] ?|\$ )(vcls [^|;&]*)", line)]
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line: str) -> None:
    """The options that the documentation shows exist, with such values."""
    _, name, *arguments = shlex.split(line, comments=True)
    if name.startswith("-"):
        return
    (entry,) = importlib.metadata.entry_points(group="vllm_cls.commands", name=name)
    command = entry.load()
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.commands.get(name)
        assert found is not None, f"there is no command {name!r}"
        command = found
    try:
        command.make_context(name, arguments).close()
    except click.exceptions.Exit:  # --help
        pass
    except click.BadParameter as error:
        assert "does not exist" in error.format_message()


def test_documentation_shows_the_commands_it_should() -> None:
    shown = {shlex.split(line)[1] for line in documented_commands()}
    assert {"convert", "classify", "inspect", "plugins"} <= shown


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_changelog_keeps_its_format() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    for line in versions[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", line), line
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_version_is_that_of_the_distribution() -> None:
    import vllm_cls

    assert vllm_cls.__version__ == importlib.metadata.version("vllm-cls")


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for folder in ("vllm_cls", "adapters", "plugins", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_architecture_names_places_that_there_are() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    places = set(re.findall(r"`([\w/]+(?:/|\.py))`", text))
    roots = [ROOT, ROOT / "adapters", *(ROOT / "vllm_cls" / room for room in ("", "model", "runtime", "server"))]
    assert len(places) > 30
    assert sorted(place for place in places if not any((root / place).exists() for root in roots)) == []
    folders = {path.parent for base in ("vllm_cls", "adapters") for path in (ROOT / base).glob("*/**/*.py")}
    assert {folder.name for folder in folders} <= {place.rstrip("/").rpartition("/")[2] for place in places}
