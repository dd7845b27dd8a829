"""A browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..chromium import browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """An empty page, whose script must not fail."""
    errors: list[Any] = []
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: errors.append(error))
    page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    yield page
    context.close()
    assert errors == []
