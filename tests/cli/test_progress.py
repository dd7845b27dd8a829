"""What a job says of its progress; time is told by the tests."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from tests.jobs.files import jsonl
from vllm_cls.cli import progress as shown
from vllm_cls.cli.progress import Reporter, line_of
from vllm_cls.jobs.report.progress import JobProgress, Pace
from vllm_cls.runtime.counters import Counters

Run = Callable[..., Result]


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rates_and_time_left_are_those_of_the_last_minute() -> None:
    pace = Pace(0.0)
    first = pace.at(JobProgress(rows=8000, share=0.5, tokens=0), 1.0)  # an earlier run had finished these
    assert first["rows_per_second"] == 8000
    told = pace.at(JobProgress(rows=8100, share=0.55, errors=2, tokens=3000), 11.0)
    assert told["seconds_left"] == pytest.approx(0.45 * 11 / 0.55)
    told = pace.at(JobProgress(rows=8700, share=0.85, errors=3, tokens=9000, total=10000), 71.0)
    assert told["rows_per_second"] == pytest.approx(600 / 60)  # since the sample at 11 s
    assert told["tokens_per_second"] == pytest.approx(6000 / 60)
    assert told["seconds_left"] == pytest.approx(0.15 * 60 / 0.3)
    assert (told["errors"], told["total"], told["seconds"]) == (3, 10000, 71.0)
    unknown = Pace(0.0).at(JobProgress(rows=10), 0.0)
    assert [unknown[name] for name in ("rows_per_second", "seconds_left", "share")] == [None, None, None]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            {"rows": 12345, "total": 50000, "share": 0.2469, "rows_per_second": 1234.4, "tokens_per_second": 56789.0}
            | {"seconds_left": 3683.0, "errors": 3},
            "12,345 of 50,000 rows (24.7%), 1,234 rows/s, 56,789 tokens/s, 1:01:23 left, 3 errors",
        ),
        (
            {"rows": 1, "total": None, "share": None, "rows_per_second": 0.25, "tokens_per_second": 0.0}
            | {"seconds_left": None, "errors": 1},
            "1 rows, 0.2 rows/s, 1 error",
        ),
    ],
)
def test_a_line(told: dict[str, Any], line: str) -> None:
    assert line_of(told) == line


def test_it_is_told_every_so_often_also_where_nothing_moves() -> None:
    clock, told = Clock(), []
    reporter = Reporter(told.append, 30.0, clock)
    reporter.tick()
    clock.now += 40
    reporter.tick()
    assert told == []  # the model is being loaded
    reporter.update(JobProgress())
    clock.now += 29
    reporter.tick()
    assert told == []
    clock.now += 1
    reporter.tick()
    reporter.tick()
    clock.now += 30
    reporter.tick()
    assert [(each["rows"], each["seconds"]) for each in told] == [(0, 30.0), (0, 60.0)]


def test_rows_that_run_are_counted_until_they_are_answered() -> None:
    clock, told, counters = Clock(), [], Counters()
    reporter = Reporter(told.append, 1.0, clock)

    def at(rows: int, computed: int) -> None:
        counters.num_sequences = computed
        reporter.update(JobProgress(rows=rows, share=rows / 1000, counters=lambda: counters))
        clock.now += 1
        reporter.tick()

    for rows, computed in ((100, 100), (100, 150), (100, 400), (500, 500), (500, 600)):
        at(rows, computed)
    assert [each["rows"] for each in told] == [100, 150, 400, 500, 600]
    assert [each["share"] for each in told] == pytest.approx([0.1, 0.15, 0.4, 0.5, 0.6])
    reporter.conclude()
    assert told[-1]["rows"] == 500


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(shown, "console", lambda stderr: console)
    with shown.progress("auto", False) as on_progress:
        assert on_progress is not None
        on_progress(JobProgress(rows=1000, share=0.25, total=4000))
    assert isinstance(console.file, io.StringIO)
    assert "loading the model" in console.file.getvalue()
    assert "1,000 of 4,000 rows (25.0%)" in console.file.getvalue()


def test_elsewhere_lines_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    with shown.progress("json", True) as on_progress:  # asked for, though nothing else is said
        assert on_progress is not None
        on_progress(JobProgress(rows=7, share=0.5, errors=1))
    (line,) = err.getvalue().splitlines()
    found = json.loads(line)
    assert (found["rows"], found["share"], found["errors"], found["total"]) == (7, 0.5, 1, None)
    assert set(found) == {
        "rows", "total", "share", "errors", "seconds", "rows_per_second", "tokens_per_second", "seconds_left",
    }  # fmt: skip
    for form, quiet in (("none", False), ("auto", True), ("plain", True), ("bar", True)):
        with shown.progress(form, quiet) as on_progress:
            assert on_progress is None
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    shown.plain_line(Pace(0.0).at(JobProgress(rows=60, share=0.5), 30.0))
    assert err.getvalue() == "0:00:30: 60 rows (50.0%), 2.0 rows/s, 0:00:30 left\n"


def test_the_command_tells_rows_and_errors(run: Run, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"text": "good"}, {"text": ""}, {"text": "bad"}])
    result = run("classify", "model", path, "-o", tmp_path / "out.jsonl", "--progress", "json", "--stats")
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert (lines[-1]["rows"], lines[-1]["errors"], lines[-1]["share"]) == (3, 1, 1.0)
    assert "rows/s" in result.stdout and "\nreading " in result.stdout
    result = run("classify", "model", path, "-o", tmp_path / "out2.jsonl")
    assert "step" not in result.stdout and not [line for line in result.stderr.splitlines() if "rows/s" in line]
