"""Commands run against the fake classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

import vllm_cls.llm
from tests.jobs.fake import FakeLLM
from vllm_cls.cli.main import vcls


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_cls.llm, "LLM", FakeLLM)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `vcls` with these arguments; stdout and stderr come apart."""

    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(vcls, [str(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture
def options_of_job(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, object]]:
    """Stop the job that a command would run, by its path, and have what it was given."""

    def options_of_job(path: str) -> dict[str, object]:
        seen: dict[str, object] = {}

        def stop(model: str, inputs: tuple[str, ...], output: str | None, **options: object) -> None:
            seen.update(options, model=model, inputs=inputs, output=output)
            raise RuntimeError("stopped")

        monkeypatch.setattr(path, stop)
        return seen

    return options_of_job
