from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from vllm_cls.cli import options
from vllm_cls.cli.commands.bench import _telling
from vllm_cls.cli.progress import progress
from vllm_cls.cli.show import measurements, number, show_metrics, show_stats, show_table, size
from vllm_cls.jobs.report.progress import JobProgress
from vllm_cls.jobs.report.stats import JobStats

from ..evaluation import evaluate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.95, "0.9500"),
        (1e-7, "1e-07"),
        (12345.678, "1.235e+04"),
        (0.0, "0"),
        ("x", "x"),
        (True, "True"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999 B"), (90_900_000, "90.9 MB"), (2_500_000_000, "2.50 GB")])
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


def test_measurements_in_our_order_with_what_is_new_at_the_end() -> None:
    values = {"new_one": 2, "macro_f1": 0.5, "majority": 0.25, "accuracy": 0.75, "log_loss": None}
    assert measurements(values) == "accuracy 0.7500 (commonest label always 0.2500), macro F1 0.5000, new one 2"
    assert measurements({}) == ""


def shown(terminal: bool, width: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_in_a_pipe_a_row_is_a_line_however_long() -> None:
    console = shown(False)
    show_table(console, ("name", "n"), [("[red]" + "x" * 100, "1"), ("b", "22")])
    assert text_of(console) == f"\nname{' ' * 101}   n\n[red]{'x' * 100}   1\nb{' ' * 104}  22\n"


def test_on_a_terminal_long_cells_are_folded() -> None:
    console = shown(True)
    show_table(console, ("name", "n"), [("[red]" + "x" * 100, "1")])
    assert max(map(len, text_of(console).splitlines())) <= 40
    assert text_of(console).count("x") == 100
    assert "[red]" in text_of(console)


def test_of_many_labels_only_the_commonest_confusions_are_shown() -> None:
    labels = {i: f"label-{i}" for i in range(20)}
    probs = [[float(i == given) for i in range(20)] for given in (1, 1, 2, 0)]
    console = shown(False, 200)
    show_metrics(console, evaluate(probs, [0, 0, 0, 0], labels))
    tail = text_of(console).split("\n\n")[-1].splitlines()
    assert [line.split() for line in tail] == [
        ["true", "predicted", "rows"],
        ["label-0", "label-1", "2"],
        ["label-0", "label-2", "1"],
    ]


def test_colours_that_are_forced_move_nothing_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many continuous integrations force them."""
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    with progress("auto", False) as on_progress, _telling(True) as tell:
        assert on_progress is not None
        on_progress(JobProgress(rows=1))
        tell("something")
    assert told.getvalue() == ""
    options.console(stderr=True).print("text", style="red")
    assert told.getvalue() == "\x1b[31mtext\x1b[0m\n"


def test_stats_of_a_model_and_of_a_server() -> None:
    stats = JobStats(100, 10.0, 0.5, 1.0, 0.1, 9.6, 0.2, 0.4, 0.05, 5000, 8, "packed, float32 on cpu")
    console = shown(False)
    show_stats(console, stats)
    lines = text_of(console).splitlines()
    assert lines[0] == "10.0 rows/s, 500 tokens/s, 8 forwards, the device busy 96.0%; packed, float32 on cpu"
    assert lines[3].split() == ["reading", "0.50", "5.0%"]
    assert [line.split()[0] for line in lines[4:]] == [
        "tokenizing", "planning", "computing", "answering", "writing", "waiting",
    ]  # fmt: skip
    console = shown(False)
    show_stats(console, JobStats(100, 10.0, 0.5, 0, 0, 0, 0, 0.4, 0.05, 0, 0, ""))
    lines = text_of(console).splitlines()
    assert lines[0] == "10.0 rows/s"
    assert [line.split()[0] for line in lines[3:]] == ["reading", "writing", "waiting"]
