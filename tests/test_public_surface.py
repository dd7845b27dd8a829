"""What users hold on to stays as it is, unless tests/public_surface.json says otherwise."""

from __future__ import annotations

import pytest

from .public_surface import PARTS, Surface, recorded

ADVICE = """
If that is meant, write tests/public_surface.json anew, and say in CHANGELOG.md what changed:
    python -m tests.public_surface"""


def changes(before: Surface, now: Surface) -> list[str]:
    """What was lost, added and moved, a line each."""
    found = [f"lost: {what}" for what in before.keys() - now.keys()]
    found += [f"added: {what}" for what in now.keys() - before.keys()]
    for what in before.keys() & now.keys():
        lost = [each for each in before[what] if each not in now[what]]
        added = [each for each in now[what] if each not in before[what]]
        found += [f"lost: {what}: {each}" for each in lost] + [f"added: {what}: {each}" for each in added]
        if not lost and not added and before[what] != now[what]:
            found.append(f"in another order: {what}: {', '.join(now[what])}")
    return sorted(found)


@pytest.mark.parametrize("part", PARTS)
def test_the_public_surface_is_as_recorded(part: str) -> None:
    found = changes(recorded()[part], PARTS[part]())
    assert not found, "\n".join([f"The public surface changed ({part}):", *found, ADVICE])


def test_every_part_is_recorded() -> None:
    assert recorded().keys() == PARTS.keys()
    assert all(recorded().values())


def test_changes() -> None:
    before = {"f": ["a", "b = 1", "c"], "g": ["x"], "h": ["x", "y"]}
    now = {"f": ["a", "b = 2", "c"], "h": ["y", "x"], "i": []}
    assert changes(before, now) == [
        "added: f: b = 2", "added: i", "in another order: h: y, x", "lost: f: b = 1", "lost: g",
    ]  # fmt: skip
    assert changes(before, before) == []
