"""Our own format opens in a process that has seen nothing of the conversion, with every command and from Python."""

from __future__ import annotations

import pytest

from .checks import CHECKS, Written
from .formats import OWN

pytestmark = pytest.mark.slow
# `vcls bench` opens a model as others do and takes long: here of every third format, and of the one that labels tokens.
_CELLS = [
    pytest.param(
        format,
        check,
        id=f"{check}-{format}",
        marks=[pytest.mark.exhaustive] if check == "bench" and i % 3 and OWN[format].task == "classify" else [],
    )
    for i, format in enumerate(OWN)
    for check in CHECKS
]


@pytest.mark.parametrize(("written", "check"), _CELLS, indirect=["written"])
def test_it_opens(written: Written, check: str) -> None:
    CHECKS[check](written)
