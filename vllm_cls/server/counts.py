"""How much one request may ask for, found before any of it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import RequestError
from .settings import ServerSettings

_CHARACTERS_A_TOKEN = 16
"""More than texts have; what is longer is mostly cut away, or was made to be slow."""


def check_prompts(settings: ServerSettings, prompts: Sequence[Any]) -> None:
    """Refuse too many prompts, or too much in them.

    Args:
        prompts: texts, pairs, lists of token ids, conversations.

    Raises:
        RequestError: 400.
    """
    _check_number(settings, len(prompts), "input")
    _check_size(settings, sum(map(_tokens, prompts)))


def check_pairs(settings: ServerSettings, first: Sequence[str], second: Sequence[str]) -> None:
    """Refuse too many pairs, or too much in them; a query is read once for each of its documents."""
    number = max(len(first), len(second))
    _check_number(settings, number, "documents")
    repeated = number if len(first) == 1 else 1
    characters = repeated * sum(map(len, first)) + sum(map(len, second))
    _check_size(settings, characters // _CHARACTERS_A_TOKEN)


def _check_number(settings: ServerSettings, number: int, param: str) -> None:
    if number > settings.max_inputs:
        raise RequestError(f"{number} are more than the {settings.max_inputs} that one request may have.", param)


def _check_size(settings: ServerSettings, tokens: int) -> None:
    if tokens > settings.max_request_tokens:
        raise RequestError(
            f"More than the {settings.max_request_tokens} tokens that one request may have; send several."
        )


def _tokens(prompt: Any) -> int:
    """At least so many."""
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, dict):
        return sum(len(each["content"]) for each in prompt["messages"]) // _CHARACTERS_A_TOKEN
    return sum(map(len, (prompt,) if isinstance(prompt, str) else prompt)) // _CHARACTERS_A_TOKEN
