from __future__ import annotations

import errno
import importlib.metadata
import json
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
from vllm_cls.cli import main, outcome
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
        entry("fails", "command_that_fails:fails", "vcls-fails"),
        entry("five", "tests.cli.test_main:not_a_command", "vcls-five"),
        entry("twice", "tests.cli.test_main:hello", "vcls-b"),
        entry("twice", "tests.cli.test_main:hello", "vcls-a"),
    ]
    monkeypatch.setattr(main.importlib.metadata, "entry_points", lambda group: [*own, *others])


def test_help_lists_every_command_without_importing_it(run: Run, third_parties: None) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, text in main.HELP.items():
        assert f"{name:<9}  {text}" in result.output
    assert "hello      (from vcls-hello)" in result.output
    assert "broken     (from vcls-broken)" in result.output
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
    failing(monkeypatch, ZeroDivisionError("by\n zero"))
    result = run("inspect", "m")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: ZeroDivisionError: by zero: this is a fault of vllm-cls; please report it to its developers with the output of "
        "the same command with --debug.\n"
    )
    assert result.stdout == ""
    for arguments in (["inspect", "m", "--debug"], ["--debug", "inspect", "m"], ["inspect", "m", "--verbose"]):
        shown = run(*arguments)
        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr.startswith(result.stderr + "Traceback")
        assert "test_main.py" in shown.stderr and "(vllm-cls " in shown.stderr.splitlines()[-1]


class PanicException(BaseException):
    """As Rust's panics come to Python: no Exception."""


@pytest.mark.parametrize(
    "error", [EOFError("ended"), PanicException("ended"), AssertionError(), RecursionError("too deep"), KeyError("x")]
)
def test_whatever_fails_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """click would take an EOFError for an interrupt, and a panic is no Exception."""
    failing(monkeypatch, error)
    result = run("inspect", "m")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    assert result.stderr.startswith(f"error: {named}: this is a fault of vllm-cls; please report it")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")],
)
def test_no_memory_is_no_fault_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    result = run("inspect", "m")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is not enough memory (")
    assert "--max-num-batched-tokens" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_full_disk_is_no_fault_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.csv"),
        Exception("No space left on device (os error 28)"),
    ):
        failing(monkeypatch, error)
        result = run("inspect", "m")
        assert (result.exit_code, result.stderr.split(": out")[0].strip()) == (1, "error: No space left on device")


def test_a_fault_of_a_third_party_names_it(
    run: Run, third_parties: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "import click", "@click.command()", "def fails():", "    raise ZeroDivisionError('of others')"
    (tmp_path / "command_that_fails.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    result = run("fails")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: ZeroDivisionError: of others: this is a fault of vcls-fails; please report it to its developers with the output "
        "of the same command with --debug.\n"
    )
    assert "Traceback" in run("--debug", "fails").stderr


def test_whose_fault_it_is_and_where_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost code of ours or of a plugin; libraries fail on behalf of their caller."""
    links = {"Project-URL": ["Homepage, https://example.org", "Issues, https://example.org/issues"]}
    monkeypatch.setattr(outcome.importlib.metadata, "metadata", lambda name: Links(links))
    with pytest.raises(ValueError) as raised:
        json.loads("{")
    error = raised.value
    assert outcome.failing_distribution(error) == ("vllm-cls", "https://example.org/issues")
    monkeypatch.setattr(outcome, "_owners", lambda: {"vllm_cls": "vllm-cls", "tests": "vcls-of-others"})
    assert outcome.failing_distribution(error)[0] == "vcls-of-others"
    assert "please report it at https://example.org/issues with" in outcome.error_line(error)


class Links:
    def __init__(self, values: dict[str, list[str]]) -> None:
        self.get_all = values.get


SCRIPT = """
import sys, threading
import vllm_cls.llm
from vllm_cls.cli import main, outcome
class Failing:
    def __init__(self, *args, **options):
        {body}
        sys.exit(0)
vllm_cls.llm.LLM = Failing
sys.argv = ["vcls", "inspect", "m", *sys.argv[1:]]
main.main()
"""
NOBODY_WAITS = {
    "thread": "t = threading.Thread(target=lambda: 1 / 0, name='worker-7'); t.start(); t.join()",
    "shut-down": "import atexit; atexit.register(lambda: 1 / 0)",
    "finalizer": "self.__class__.__del__ = lambda self: 1 / 0",
}


@pytest.mark.parametrize("what", ["thread", "shut-down", "finalizer"])
def test_what_nobody_waits_for_is_one_line(what: str) -> None:
    for arguments, lines in (((), 1), (("--debug",), 5)):
        script = SCRIPT.format(body=NOBODY_WAITS[what])
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.stdout == ""
        told = "in the thread worker-7" if what == "thread" else "while it ended"
        assert done.stderr.startswith(
            f"error: {told}: ZeroDivisionError: division by zero: this is a fault of vllm-cls"
        )
        assert len(done.stderr.splitlines()) >= lines
        assert ("Traceback" in done.stderr) == bool(arguments)
        assert arguments or len(done.stderr.splitlines()) == 1


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


def test_a_closed_pipe_is_one_line(tmp_path: Path) -> None:
    """As with `vcls classify … | head`: no traceback, not even when Python ends."""
    told = b"error: standard output cannot be written: its reader has ended before the rows did.\n"
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
        assert process.stderr.read() == told
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("serve", "--tls-key", None), ("serve", "--tls-cert", None), ("serve", "--keyfile", None),
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
