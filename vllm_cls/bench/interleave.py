"""Interleaved timing (A B A B …), so that disturbances of the machine affect all contenders alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

OnRound = Callable[[int, str], None]


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, on_turn: OnRound | None = None
) -> dict[str, list[float]]:
    """What each contender measured, one number a round.

    Args:
        contenders: name → one turn, which returns its own measurement (seconds, or GFLOP/s).
        rounds: turns of each; they go in the order of the mapping, again and again.
        on_turn: called with the round, from 0, and the name before each turn.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, turn in contenders.items():
            if on_turn is not None:
                on_turn(number, name)
            measured[name].append(turn())
    return measured


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """The median over the rounds of one measurement by that of its neighbour in the same round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))
