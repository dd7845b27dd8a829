"""Our own format opens in a process that has seen nothing of the conversion, with every command and from Python."""

from __future__ import annotations

import pytest

from .checks import CHECKS, Written
from .formats import OWN

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("written", OWN, indirect=True)
@pytest.mark.parametrize("check", CHECKS)
def test_it_opens(written: Written, check: str) -> None:
    CHECKS[check](written)
