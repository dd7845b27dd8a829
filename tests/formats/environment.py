"""An empty environment with the wheel in it, and processes there: what a user has after `pip install vllm-cls`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
_TIMEOUT = 600  # seconds, of one command; the machine may be busy


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Args:
        bin: its folder of commands.
        cwd: where processes start, far from the source tree.
    """

    bin: Path
    cwd: Path

    def run(self, *command: str | Path, stdin: str = "") -> str:
        """What a command prints, in a process of its own."""
        done = subprocess.run(
            [str(self.bin / str(command[0])), *map(str, command[1:])],
            input=stdin, capture_output=True, text=True, cwd=self.cwd, env=self.variables(), timeout=_TIMEOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
        return done.stdout

    def python(self, code: str, *arguments: str | Path) -> Any:
        """What Python code prints last, as JSON; `sys.argv[1:]` are the arguments."""
        return json.loads(self.run("python", "-c", f"import json, sys\n{code}", *arguments).splitlines()[-1])

    def variables(self) -> dict[str, str]:
        """The environment variables of a process: nothing points at the source tree."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_CLS", "VCLS"))
        }
        return kept | {"HF_HUB_OFFLINE": "1", "VLLM_CLS_CACHE": str(self.cwd / "cache"), "COLUMNS": "200"}


def installed(factory: pytest.TempPathFactory) -> Environment:
    """The environment of this run of the tests, made once, whatever the number of its workers."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "installed", shared / "installed-done"
    with FileLock(shared / "installed-lock"):
        if not done.exists():
            _make(folder)
            done.touch()
    return Environment(folder / "venv" / "bin", factory.mktemp("cwd"))


def _make(folder: Path) -> None:
    """Build the wheel of the source tree and install it with what it depends on, at the tested versions."""
    wheels = folder / "wheels"
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    _call(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, _copied(folder / "source"))
    (wheel,) = wheels.glob("vllm_cls-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    constraints = ["-c", ROOT / "constraints.txt"]
    _call(python, *pip, "install", *constraints, f"torch=={_version('torch')}")  # else the newest there is
    _call(python, *pip, "install", *constraints, f"{wheel}[gguf]")


def _copied(folder: Path) -> Path:
    """What a wheel is built of: the build leaves its own files where it runs."""
    folder.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    for name in ("vllm_cls", "adapters", "plugins", "cli"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name).partition("+")[0]


def _call(*command: Any) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
