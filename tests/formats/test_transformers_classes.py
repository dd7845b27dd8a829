"""So do the formats that have transformers' own model type: of each format a third of the checks, and of each check a third."""

from __future__ import annotations

import pytest

from .checks import CHECKS, Written
from .formats import TRANSFORMERS

pytestmark = pytest.mark.slow
_CELLS = [
    pytest.param(format, check, id=f"{check}-{format}", marks=[pytest.mark.exhaustive] if (i + j) % 3 else [])
    for i, format in enumerate(TRANSFORMERS)
    for j, check in enumerate(CHECKS)
]


@pytest.mark.parametrize(("written", "check"), _CELLS, indirect=["written"])
def test_it_opens(written: Written, check: str) -> None:
    CHECKS[check](written)
