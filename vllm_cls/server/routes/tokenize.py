"""/tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from ..errors import RequestError
from ..openapi import documented
from ..protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChat,
    TokenizePrompt,
    TokenizeResponse,
)
from ..requests.json_bodies import json_response, read
from ..requests.request_context import asked_special_tokens, seconds_left
from ..requests.request_prompts import check_prompts, conversation_of
from ..served_model import ServedModel


def form(fields: dict[str, Any]) -> type[TokenizePrompt | TokenizeChat]:
    """Which form a body has."""
    return TokenizeChat if "messages" in fields else TokenizePrompt


def detokenize_form(fields: dict[str, Any]) -> type[DetokenizeRequest]:
    """The one form."""
    return DetokenizeRequest


def text_of(model: ServedModel, tokens: list[int]) -> str:
    """What token ids stand for.

    Raises:
        RequestError: one is no token.
    """
    tokenizer = model.tokenizer()
    for each in tokens:
        if not 0 <= each < model.llm.llm.vocab_size:
            raise RequestError(f"Token id {each} is out of vocabulary.", "tokens")
    return str(tokenizer.decode(tokens))


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["tokenize"])
    llm = model.llm.llm

    @router.post("/tokenize", **documented(TokenizeResponse, TokenizePrompt, TokenizeChat))
    async def tokenize(request: Request) -> Response:
        """The tokens that the model would see, however many."""
        body = await read(request, form)
        model.by_name[body.model]
        prompt = await conversation_of(model, request, body) if isinstance(body, TokenizeChat) else body.prompt
        check_prompts(model, [prompt])
        tokens = await model.llm.token_ids(
            prompt, add_special_tokens=asked_special_tokens(body), timeout=seconds_left(request.scope["state"])
        )
        strings = None
        if body.return_token_strs:
            strings = await asyncio.to_thread(model.tokenizer().convert_ids_to_tokens, tokens)
        content = TokenizeResponse(
            count=len(tokens), max_model_len=llm.max_model_len, tokens=tokens, token_strs=strings
        )
        return await json_response(content, len(tokens))

    @router.post("/detokenize", **documented(DetokenizeResponse, DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """The text that token ids stand for."""
        body = await read(request, detokenize_form)
        model.by_name[body.model]
        check_prompts(model, [body.tokens])
        text = await model.llm.tokenizing(
            partial(text_of, model, body.tokens), timeout=seconds_left(request.scope["state"])
        )
        return await json_response(DetokenizeResponse(prompt=text))

    return router
