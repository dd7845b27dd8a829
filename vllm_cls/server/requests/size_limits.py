"""Limits of one request's prompts, checked by characters before tokenizing; tokens are counted in `AsyncLLM`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import PromptError
from ...inputs.prompts import parse
from ..served_model import ServedModel
from ..settings import ServerSettings

_CHARACTERS_A_TOKEN = 16
"""More than texts have; what is longer is mostly cut away, or was made to be slow."""
_ALWAYS_READ = 1 << 16
"""Characters of a text that are read whatever the model's length is."""


def check_prompts(model: ServedModel, prompts: Sequence[Any]) -> None:
    """Refuse too many prompts, or too much in them.

    Args:
        prompts: texts, pairs, lists of token ids, conversations.

    Raises:
        PromptError: there is too much.
    """
    _check_number(model.settings, len(prompts), None)
    others = [prompt for prompt in prompts if not isinstance(prompt, list)]
    texts = [text for each in others for text in ([each] if isinstance(each, str) else parse(each).texts())]
    _check_texts(model, texts, None)
    token_ids = sum([len(prompt) for prompt in prompts if isinstance(prompt, list)])
    _check_size(model.settings, max(token_ids, sum(map(len, texts)) // _CHARACTERS_A_TOKEN))


def check_pairs(model: ServedModel, first: Sequence[str], second: Sequence[str]) -> None:
    """Refuse too many pairs, or too much in them, as `check_prompts`; a query is read once for each of its documents."""
    number = max(len(first), len(second))
    _check_number(model.settings, number, "document" if len(second) == number else "query")
    _check_texts(model, first, "query")
    _check_texts(model, second, "document")
    repeated = number if len(first) == 1 else 1
    characters = repeated * sum(map(len, first)) + sum(map(len, second))
    _check_size(model.settings, characters // _CHARACTERS_A_TOKEN)


def _check_number(settings: ServerSettings, number: int, param: str | None) -> None:
    if number > settings.max_inputs:
        raise PromptError(f"{number} are more than the {settings.max_inputs} that one request may have.", param)


def _check_texts(model: ServedModel, texts: Iterable[str], param: str | None) -> None:
    length = model.max_model_len
    most = max(_ALWAYS_READ, length * _CHARACTERS_A_TOKEN)
    for text in texts:
        if len(text) > most:
            raise PromptError(
                f"This model's maximum context length is {length} tokens, and texts of up to {most} characters are read for "
                f"it. However, one has {len(text)}; cut it.",
                param,
            )


def _check_size(settings: ServerSettings, tokens: int) -> None:
    if tokens > settings.max_request_tokens:
        raise PromptError(
            f"More than the {settings.max_request_tokens} tokens that one request may have; send several."
        )
