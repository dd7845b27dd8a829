"""A plugin in a distribution of its own does what the built-in ones do: convert, save, reload, run."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOY = HERE / "third_party" / "vcls_toy"
GUIDE = HERE.parent / "docs" / "plugins.md"


def run(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # An environment of its own: nothing but the virtual environment says what is importable.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VCLS", "COV"))}
    clean |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)


def succeed(command: Sequence[str | Path], cwd: Path) -> str:
    done = run(command, cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def vcls(python: Path | str, *arguments: str | Path) -> list[str | Path]:
    return [python, "-c", "from vllm_cls.cli.main import main; main()", *arguments]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("third_party")


@pytest.fixture(scope="module")
def python(place: Path) -> Path:
    """Python of a virtual environment that has the wheel of vcls-toy, and sees what this one has."""
    shutil.copytree(TOY, place / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    succeed([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "wheels", "./source"], place)
    (wheel,) = (place / "wheels").glob("vcls_toy-*.whl")
    succeed([sys.executable, "-m", "venv", "--without-pip", "env"], place)
    python = place / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = Path(succeed([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip())
    outer = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
    succeed([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], place)
    return python


@pytest.fixture(scope="module")
def converted(python: Path, place: Path) -> Path:
    """A toy language model made there, and converted there by the command."""
    succeed([python, HERE / "third_party" / "make_model.py", "model"], place)
    succeed(
        vcls(python, "convert", "model", "out", "--head", "random", "--seed", "0", "--num-labels", "3"),
        place,
    )
    return place / "out"


def test_it_is_installed_only_there(python: Path, place: Path) -> None:
    assert "site-packages" in succeed([python, "-c", "import vcls_toy; print(vcls_toy.__file__)"], place)
    assert run([sys.executable, "-c", "import vcls_toy"], place).returncode != 0


def test_plugins_lists_it_beside_the_built_in_ones(python: Path, place: Path) -> None:
    listed = succeed(vcls(python, "plugins", "list"), place)
    assert "vcls-toy" in listed and "qwen2" in listed


def test_the_conversion_is_an_ordinary_checkpoint(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["model_type"] == "toy"
    assert config["architectures"] == ["ToyForSequenceClassification"]
    assert len(config["id2label"]) == 3


def test_convert_save_reload_and_run(python: Path, place: Path, converted: Path) -> None:
    answer = json.loads(succeed([python, HERE / "third_party" / "check_model.py", converted], place).splitlines()[-1])
    assert answer["llm"] < 1e-4, "LLM.classify differs from backbone and score computed directly"
    assert answer["load_classifier"] < 1e-4
    assert answer["auto_class"] < 1e-4
    assert answer["saved_again"] < 1e-4
    assert answer["execution"] == "packed"


def test_classify_runs_it_over_a_file(python: Path, place: Path, converted: Path) -> None:
    (place / "texts.txt").write_text("one\nanother text\n")
    succeed(vcls(python, "classify", converted, "texts.txt", "-o", "rows.jsonl"), place)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["one", "another text"]
    assert all(sum(row["probs"]) == pytest.approx(1) for row in rows)


def test_without_the_plugin_the_error_says_which_to_write(converted: Path, place: Path) -> None:
    done = run(vcls(sys.executable, "inspect", converted), place)
    assert done.returncode == 1
    assert "'toy'" in done.stderr and "plugin" in done.stderr and "model_types" in done.stderr
    assert "Traceback" not in done.stderr


def test_vcls_plugins_can_leave_it_out(python: Path, converted: Path, place: Path) -> None:
    done = run(vcls(python, "inspect", converted), place, {"VCLS_PLUGINS": "qwen2,generic,heads,checkpoint"})
    assert done.returncode == 1
    assert "'toy'" in done.stderr


def test_the_guide_shows_the_code_that_runs_here() -> None:
    blocks = re.findall(r"^```(python|toml)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    sources = {"python": (TOY / "vcls_toy.py").read_text(), "toml": (TOY / "pyproject.toml").read_text()}
    assert len(blocks) >= 4
    for language, block in blocks:
        assert block in sources[language], f"docs/plugins.md shows code that vcls_toy does not have:\n{block}"
