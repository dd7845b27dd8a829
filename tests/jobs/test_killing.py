"""SIGKILL at random moments, and at random steps towards the disk: the same command then gives the bytes of a run without."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny

from .files import jsonl

OUTPUTS = ("a/out.jsonl", "b/out.csv", "c/out.parquet")


def killed(folder: Path, model: Path | str, kills: int, outputs: tuple[str, ...], rows: int) -> list[dict[str, Any]]:
    chance = random.Random(0)
    texts = [" ".join(chance.choices("a good bad film of nothing BOOM".split(), k=1 + i % 9)) for i in range(rows)]
    data: list[dict[str, Any]] = [{"id": i, "text": text} for i, text in enumerate(texts)]
    data[7], data[40] = {"id": 7}, {"id": 40, "text": "", "more": [1, {"x": None}]}
    source = jsonl(folder / "in.jsonl", data)
    for out in outputs:
        (folder / out).parent.mkdir()
    command = [sys.executable, "-m", "tests.jobs.killing", model, source, kills, 1, *(folder / out for out in outputs)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_killed_job_gives_the_bytes_of_a_clean_one(tmp_path: Path) -> None:
    for found in killed(tmp_path, "fake", 30, OUTPUTS, rows=160):
        assert found["killed"] == 40
        assert found["finished"] >= 1
        assert found["differed"] == 0
        assert found["left"] == []


@pytest.mark.slow
def test_a_killed_job_of_a_real_model_does_too(tmp_path: Path) -> None:
    model = tiny.classifier("bert", tmp_path / "model")
    (found,) = killed(tmp_path, model, 3, OUTPUTS[2:], rows=60)
    assert (found["killed"], found["differed"], found["left"]) == (4, 0, [])
