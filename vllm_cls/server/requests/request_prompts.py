"""Conversations as prompts: with the model's own template, or, where that is allowed, with the client's."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from ...inputs.media_parts import without_media
from ..errors import RequestError
from ..middleware.auth import client_of
from ..protocol.prompts import ChatFields, ChatRequest, PromptRequest
from ..served_model import ServedModel
from .media import with_media
from .sandbox import render
from .size_limits import check_prompts

# Jinja that writes what was rendered already.
_AS_IT_IS = "{{ messages[0]['content'] }}"


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
    kwargs = {"chat_template": _AS_IT_IS, "add_generation_prompt": False}
    return {
        **prompt,
        "messages": [{"role": "user", "content": text}],
        "chat_template_kwargs": kwargs,
        **({"multi_modal_data": data} if data else {}),
    }
