"""The prompts of a request, as `AsyncLLM` takes them, and their limits.

A conversation gets the model's own chat template, or, where that is allowed, the client's. Texts are limited by their
characters, before they are tokenized; tokens are counted in `AsyncLLM`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from starlette.requests import Request

from ...errors import PromptError
from ...inputs.media_parts import without_media
from ...inputs.prompts import parse, size
from ..errors import RequestError
from ..middleware.auth import client_of
from ..protocol.prompts import ChatFields, ChatRequest, PromptRequest
from ..served_model import ServedModel
from ..settings import ServerSettings
from .media import with_media
from .sandbox import render

_CHARACTERS_A_TOKEN = 16
"""More than texts have; what is longer is mostly cut away, or was made to be slow."""
_ALWAYS_READ = 1 << 16
"""Characters of a text that are read whatever the model's length is."""
_RENDERED = "{{ messages[0]['content'] }}"
"""A chat template for a conversation that was rendered already."""


async def prompts_of(model: ServedModel, request: Request, asked: PromptRequest) -> list[Any]:
    """The prompts of a request, as `AsyncLLM` takes them.

    Raises:
        PromptError: there are too many, or there is too much in them.
        RequestError: one cannot be made.
    """
    prompts = [await conversation_of(model, request, asked)] if isinstance(asked, ChatRequest) else asked.prompts()
    check_prompts(model, prompts)
    return prompts


async def conversation_of(model: ServedModel, request: Request, asked: ChatFields) -> dict[str, Any]:
    """A conversation, as `LLM` takes it.

    Raises:
        RequestError: it brings a template, and this server trusts none; or that fails, or takes too long.
        QueueFullError: too many templates of this client wait.
    """
    prompt = await with_media(model, request, asked, asked.conversation)
    if not asked.has_template:
        return prompt
    if not model.settings.trust_request_chat_template:
        name = "chat_template" if asked.chat_template is not None else "chat_template_kwargs"
        raise RequestError(f"{name} from a request is refused (--trust-request-chat-template allows it).", name)
    tokenizer = model.tokenizer()
    template = asked.chat_template
    if template is None:
        template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str):
        raise RequestError("This model's tokenizer has no one chat template; give chat_template.", "chat_template")
    options = {
        **tokenizer.special_tokens_map, "add_generation_prompt": False, **(asked.chat_template_kwargs or {}),
        **prompt["chat_template_kwargs"],
    }  # fmt: skip
    messages, data = without_media(prompt["messages"])
    text = await render(template, messages, options, client_of(request.scope))
    kwargs = {"chat_template": _RENDERED, "add_generation_prompt": False}
    return {
        **prompt,
        "messages": [{"role": "user", "content": text}],
        "chat_template_kwargs": kwargs,
        **({"multi_modal_data": data} if data else {}),
    }


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


def check_candidates(model: ServedModel, prompts: Sequence[Any], labels: Sequence[str], template: str) -> None:
    """Refuse too many candidate labels, or too much in them, as `check_prompts`; a text is read for each."""
    _check_number(model.settings, len(prompts) * len(labels), "candidate_labels")
    _check_texts(model, labels, "candidate_labels")
    _check_texts(model, [template], "hypothesis_template")
    hypotheses = len(labels) * len(template) + sum(map(len, labels))
    _check_size(model.settings, (len(labels) * size(prompts) + len(prompts) * hypotheses) // _CHARACTERS_A_TOKEN)


def check_questions(model: ServedModel, state: int, number: int, questions: int) -> None:
    """Refuse too many questions about a state, or too much in them all; the state is read for each.

    Args:
        state: its characters.
        questions: the characters of all.
    """
    _check_number(model.settings, number, "questions")
    _check_size(model.settings, (number * state + questions) // _CHARACTERS_A_TOKEN)


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
