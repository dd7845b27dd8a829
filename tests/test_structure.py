"""The package stays a house of few rooms: no more rooms, layers and imports between them than these, and no circle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.codebase.structure import circles, inside, num_layers

ROOT = Path(__file__).parent.parent
MOST = {"rooms": 35, "layers": 14, "imports_between_rooms": 170}


@pytest.fixture(scope="module")
def structure() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.codebase.structure"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_module_is_seen(structure: dict[str, Any]) -> None:
    folders = ("vllm_cls", "adapters", "plugins", "cli")
    assert structure["modules"] == sum(1 for folder in folders for _ in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("what", MOST)
def test_no_more_than(structure: dict[str, Any], what: str) -> None:
    assert 0 < structure[what] <= MOST[what], "`make lint` tells who imports whom; see [tool.importlinter]"


def test_there_is_no_circle(structure: dict[str, Any]) -> None:
    assert structure["circles_of_modules"] == []
    assert structure["circles"] == []


def test_the_counting() -> None:
    """Of `p.a` and the folder `p.b`, which import each other, above `p.c`."""
    modules = {"p": {"p.a"}, "p.a": {"p.b.x"}, "p.b": set(), "p.b.x": {"p.b.y"}, "p.b.y": {"p.a", "p.c"}, "p.c": set()}
    rooms = inside(modules, "p")
    assert rooms == {"p.a": {"p.b"}, "p.b": {"p.a", "p.c"}, "p.c": set()}
    assert circles(rooms) == [["p.a", "p.b"]]
    assert circles(modules) == [["p.a", "p.b.x", "p.b.y"]]
    assert circles(inside(modules, "p.b")) == []
    assert num_layers(rooms) == 2
