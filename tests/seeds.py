"""Random numbers of tests: the same in every run, whatever runs before, and others for each test and each fixture.

Before each, the generators of random, numpy and torch are seeded by its name; Hypothesis draws by its own rules alike.
VLLM_CLS_TEST_SEED draws others: what a test says has to hold for any. test_seeds looks for what this does not reach.
"""

from __future__ import annotations

import os
import random
import runpy
import zlib
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

SEED = os.environ.get("VLLM_CLS_TEST_SEED", "")

# Without a deadline: it judges what the code does, not how fast, since the machine may be busy.
settings.register_profile("vllm_cls", deadline=None, database=None, derandomize=not SEED)
settings.load_profile("vllm_cls")


def seed(name: str) -> None:
    """Seed the global generators for what has this name."""
    number = zlib.crc32(f"{SEED} {name}".encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> None:
    seed(f"{fixturedef.baseid} {fixturedef.argname} {getattr(request, 'param_index', 0)}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    seed(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """A module that draws when it is imported draws what depends on the modules before it."""
    before = _states()
    report = yield
    if isinstance(collector, pytest.Module) and report.passed and _states() != before:
        before = _states()
        runpy.run_path(str(collector.path), run_name=collector.obj.__name__)  # libraries draw too, but once
        if _states() != before:
            report.outcome = "failed"
            report.longrepr = f"{collector.nodeid} draws random numbers when it is imported; draw them in a fixture."
    return report


def _states() -> list[str]:
    """Of the global generators."""
    return [repr(random.getstate()), repr(np.random.get_state()), repr(torch.get_rng_state().tolist())]
