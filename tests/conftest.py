"""What all tests share: no network, one thread (tiny models gain nothing from more), no progress bars, seeds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest

from .seeds import SEED, pytest_fixture_setup, pytest_make_collect_report, pytest_runtest_call  # noqa: F401  # hooks

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_report_header() -> str:
    import torch

    return f"processor: {torch.backends.cpu.get_cpu_capability()}; seed: {SEED or 'the usual one'}"


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    os.environ["VLLM_CLS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        # dtype="auto" is float32, in which results are compared, on processors that are good at bfloat16 too.
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process says for the whole of it what is logged and drawn: not for the next test."""
    shown, environment = warnings.showwarning, dict(os.environ)
    yield
    warnings.showwarning = shown
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)
