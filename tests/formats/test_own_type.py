"""Our own format opens in a process that has seen nothing of the conversion, with every command and from Python."""

from __future__ import annotations

import pytest

from .checks import CHECKS, Written
from .formats import OWN

pytestmark = pytest.mark.slow


def _is_sampled(check: str, i: int, j: int) -> bool:
    """Whether a cell runs here: `vcls classify` and `LLM` on every format, of the others every second one.

    `vcls bench` opens a model as others do and takes long: of every third format, and of the one that labels tokens.
    """
    if check == "bench":
        return i % 3 == 0 or OWN[list(OWN)[i]].task != "classify"
    return check in ("classify", "llm") or (i + j) % 2 == 0


_CELLS = [
    pytest.param(
        format, check, id=f"{check}-{format}", marks=[] if _is_sampled(check, i, j) else [pytest.mark.exhaustive]
    )
    for i, format in enumerate(OWN)
    for j, check in enumerate(CHECKS)
]


@pytest.mark.parametrize(("written", "check"), _CELLS, indirect=["written"])
def test_it_opens(written: Written, check: str) -> None:
    CHECKS[check](written)
