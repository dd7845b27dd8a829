from __future__ import annotations

import errno
import importlib.metadata
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

import vllm_cls.llm
from vllm_cls.cli import main
from vllm_cls.errors import ModelError

Run = Callable[..., Result]


class Distribution:
    def __init__(self, name: str) -> None:
        self.name = name


def entry(name: str, value: str, distribution: str) -> importlib.metadata.EntryPoint:
    found = importlib.metadata.EntryPoint(name, value, main.GROUP)
    vars(found)["dist"] = Distribution(distribution)
    return found


@click.command()
@click.pass_context
def hello(ctx: click.Context) -> None:
    click.echo("hello")
    ctx.exit(3)


not_a_command = 5


@pytest.fixture
def third_parties(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of our own, and some of others."""
    own = list(importlib.metadata.entry_points(group=main.GROUP))
    others = [
        entry("hello", "tests.cli.test_main:hello", "vcls-hello"),
        entry("broken", "no_such_module:command", "vcls-broken"),
        entry("five", "tests.cli.test_main:not_a_command", "vcls-five"),
        entry("twice", "tests.cli.test_main:hello", "vcls-b"),
        entry("twice", "tests.cli.test_main:hello", "vcls-a"),
    ]
    monkeypatch.setattr(main.importlib.metadata, "entry_points", lambda group: [*own, *others])


def test_help_lists_every_command_without_importing_it(run: Run, third_parties: None) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, text in main.HELP.items():
        assert f"{name:<8}  {text}" in result.output
    assert "hello     (from vcls-hello)" in result.output
    assert "broken    (from vcls-broken)" in result.output
    assert "_VCLS_COMPLETE=bash_source" in result.output


def test_our_own_commands_are_those_of_the_entry_points() -> None:
    found = main.entries()
    assert set(main.HELP) == {name for name, each in found.items() if main.distribution(each[0]) == "vllm-cls"}
    for name, text in main.HELP.items():
        assert main.load(found[name][0]).get_short_help_str(limit=200) == text


@pytest.mark.parametrize("name", main.HELP)
def test_every_command_shows_examples(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    vcls {name} " in result.output


def test_commands_of_others(run: Run, third_parties: None) -> None:
    assert (run("hello").output, run("hello").exit_code) == ("hello\n", 3)
    result = run("broken")
    assert result.exit_code == 1
    assert "'broken' of vcls-broken (no_such_module:command) cannot be loaded: ModuleNotFoundError" in result.stderr
    assert "is a int, not a click command" in run("five").stderr
    assert "is in vcls-a and vcls-b; uninstall one" in run("twice").stderr


def test_version(run: Run) -> None:
    assert run("--version").output == f"vcls, version {importlib.metadata.version('vllm-cls')}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["classify"], ["classify", "m", "i", "--nonsense"], ["--nonsense"]]
)
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: vcls" in result.stderr
    assert result.stdout == ""


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(vllm_cls.llm, "LLM", fail)


def test_errors_of_ours_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ModelError("[bold] it is broken;\n  mend it " + "x" * 300))
    result = run("inspect", "m")
    assert result.exit_code == 1
    assert result.stderr == "error: [bold] it is broken; mend it " + "x" * 300 + "\n"
    assert result.stdout == ""
    assert "Traceback" in run("inspect", "m", "-v").stderr


def test_errors_of_the_system_name_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/x/y"))
    result = run("inspect", "m")
    assert (result.exit_code, result.stderr) == (1, "error: Permission denied: /x/y\n")


def test_faults_of_ours_say_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("by zero"))
    result = run("inspect", "m")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ZeroDivisionError: by zero — this is a fault of vllm-cls")
    assert "Run it again with -v" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" in run("inspect", "m", "--verbose").stderr


def test_an_interrupt_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    result = run("inspect", "m")
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted"


def test_warnings_of_ours_are_a_line_and_those_of_libraries_are_not_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*args: object, **kwargs: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn_explicit("ours", UserWarning, vllm_cls.llm.__file__, 1)
            warnings.warn_explicit("theirs", UserWarning, os.__file__, 1)
        raise ModelError("stop")

    monkeypatch.setattr(vllm_cls.llm, "LLM", warn)
    assert run("inspect", "m").stderr == "warning: ours\nerror: stop\n"
    assert run("inspect", "m", "-q").stderr == "error: stop\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    """As with `vcls classify … | head`: no traceback, not even when Python ends."""
    code = (
        "import sys, vllm_cls.llm\n"
        "from tests.jobs.fake import FakeLLM\n"
        "vllm_cls.llm.LLM = FakeLLM\n"
        "from vllm_cls.cli.main import main\n"
        "main()\n"
    )
    (tmp_path / "in.txt").write_text("good\n" * 20_000)
    command = [sys.executable, "-c", code, "classify", "m", str(tmp_path / "in.txt")]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"text": "good"')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("serve", "--ssl-keyfile", None), ("serve", "--ssl-certfile", None), ("serve", "--keyfile", None),
        ("serve", "--api-keys", "--api-key"), ("serve", "--served-modelname", "--served-model-name"),
        ("serve", "--max-seqs", "--max-num-seqs"), ("classify", "--outptu", "--output"), ("convert", "--tain", "--train"),
    ],
)  # fmt: skip
def test_an_option_that_there_is_not(run: Run, command: str, option: str, meant: str | None) -> None:
    """A guess is told where a slip of the fingers could explain it."""
    result = run(command, "model", option, "x")
    told = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert told.removeprefix(f"Error: No such option '{option}'.").strip() == (
        f"Did you mean '{meant}'?" if meant else ""
    )
