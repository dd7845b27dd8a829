"""Each format is converted once, by `vcls convert` in the environment that holds the wheel."""

from __future__ import annotations

from typing import Any

import pytest

from .checks import Written
from .environment import Environment, installed
from .formats import OWN, TRANSFORMERS


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return installed(tmp_path_factory)


@pytest.fixture(scope="module")
def written(request: Any, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The format that the test is parametrised with."""
    formats = OWN if request.module.__name__.endswith("own_type") else TRANSFORMERS
    format, folder = formats[request.param], tmp_path_factory.mktemp("format")
    source = format.source(folder)
    given = folder / "tiny.gguf" if (folder / "tiny.gguf").exists() else source
    options = [option.replace("{folder}", str(folder)) for option in format.options]
    environment.run("vcls", "convert", given, folder / "out", *options)
    score = format.pairs(source, folder / "out") if format.pairs else None
    return Written(format, folder, format.expected(source, folder / "out"), score, environment)
