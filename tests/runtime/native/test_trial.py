"""The fastest way is tried once and remembered, and a near tie always goes to the same."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_cls.runtime.native import trial


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], Callable[[], None]]:
    """Makes candidates that take so long."""
    now = [0.0]
    monkeypatch.setenv("VLLM_CLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "thread_time", lambda: now[0])

    def takes(seconds: float) -> Callable[[], None]:
        def compute() -> None:
            now[0] += seconds

        return compute

    return takes


def test_the_fastest_is_chosen_and_a_near_tie_goes_to_the_first(clock: Callable[[float], Callable[[], None]]) -> None:
    assert trial.fastest("a", {"x": clock(1.0), "y": clock(0.5), "z": clock(0.7)}) == "y"
    assert trial.fastest("b", {"x": clock(1.0), "y": clock(0.98)}) == "x"
    assert trial.fastest("c", {"x": clock(9.0)}) == "x"


def test_it_is_remembered_for_the_same_candidates(clock: Callable[[float], Callable[[], None]], tmp_path: Path) -> None:
    assert trial.fastest("a", {"x": clock(1.0), "y": clock(0.5)}) == "y"
    assert trial.fastest("a", {"x": clock(0.1), "y": clock(0.5)}) == "y"
    assert trial.fastest("b", {"x": clock(0.1), "y": clock(0.5)}) == "x"
    assert trial.fastest("a", {"x": clock(0.1), "z": clock(0.5)}) == "x"
    (file,) = (tmp_path / "cache" / "native").glob("*.json")
    for damaged in ('{"fastest": ["no"]}', "{", json.dumps({"fastest": {"a: x, y": ["y"]}}), "[" * 100_000):
        file.write_text(damaged)
        assert trial.fastest("a", {"x": clock(0.1), "y": clock(0.5)}) == "x"
    file.unlink()
    os.mkfifo(file)
    assert trial.fastest("a", {"x": clock(0.1), "y": clock(0.5)}) == "x"
    assert file.is_file()


def test_what_cannot_be_remembered_is_not_tried(
    clock: Callable[[float], Callable[[], None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a job that goes on could get other last digits."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLM_CLS_CACHE", str(tmp_path / "file"))
    assert trial.fastest("a", {"x": clock(1.0), "y": clock(0.5)}) == "x"
    monkeypatch.setenv("VLLM_CLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "processor", list)
    assert trial.fastest("a", {"x": clock(1.0), "y": clock(0.5)}) == "x"
    monkeypatch.setattr(trial, "processor", lambda: (_ for _ in ()).throw(OSError("unknown")))
    assert trial.fastest("a", {"x": clock(1.0), "y": clock(0.5)}) == "x"


def test_processes_that_begin_together_agree(clock: Callable[[float], Callable[[], None]], tmp_path: Path) -> None:
    """The second one waits for the first, whose answer it takes; nothing that either keeps is lost."""

    def slow() -> None:
        if not others:  # while this one tries, another begins
            others.append(
                threading.Thread(target=lambda: found.append(trial.fastest("b", {"x": clock(1.0), "y": clock(0.5)})))
            )
            others[0].start()
        clock(1.0)()

    found: list[str] = []
    others: list[threading.Thread] = []
    assert trial.fastest("a", {"x": slow, "y": clock(0.5)}) == "y"
    others[0].join()
    assert found == ["y"]
    (file,) = (tmp_path / "cache" / "native").glob("*.json")
    assert json.loads(file.read_text())["fastest"] == {"a: x, y": "y", "b: x, y": "y"}
