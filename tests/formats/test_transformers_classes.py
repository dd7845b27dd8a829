"""So do the formats that have transformers' own model type."""

from __future__ import annotations

import pytest

from .checks import CHECKS, Written
from .formats import TRANSFORMERS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("written", TRANSFORMERS, indirect=True)
@pytest.mark.parametrize("check", CHECKS)
def test_it_opens(written: Written, check: str) -> None:
    CHECKS[check](written)
