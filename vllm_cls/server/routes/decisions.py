"""/v1/systemone and /v1/decisions, where the model was opened for decisions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ...inputs.prompts import size
from ...outputs import Decision
from ..openapi import documented
from ..protocol.common import CommonRequest
from ..protocol.decisions import (
    DecisionsRequest,
    DecisionsResponse,
    DecisionsUsage,
    InputTokensDetails,
    OutputTokensDetails,
    SystemOneRequest,
    SystemOneResponse,
    SystemOneUsage,
)
from ..requests.decision_forms import Images, answers, images_of, system_one, with_assets
from ..requests.json_bodies import json_response, read
from ..requests.request_context import RequestContext
from ..requests.request_prompts import check_questions
from ..served_model import ServedModel

PATHS = ("/v1/systemone", "/v1/decisions")


async def _decide(
    model: ServedModel,
    request: Request,
    name: str | None,
    asked: dict[str, Any],
    images: Images,
    salt: str | None = None,
) -> tuple[str, Decision]:
    """The model's name, and the answers."""
    check_questions(model, size(asked["state"]), len(asked["questions"]), size(asked["questions"]))
    context = RequestContext.from_request(model, request, CommonRequest.model_construct(model=name, cache_salt=salt))
    sending = {key: context.options[key] for key in ("request_id", "timeout", "cache_salt", "max_tokens")}
    return context.name, await model.llm.decide(await with_assets(model, request, asked, images), **sending)


async def system_one_answer(model: ServedModel, request: Request, body: SystemOneRequest) -> Response:
    """Answers by the questions' names."""
    asked = {"state": body.state, "questions": body.questions}
    name, found = await _decide(model, request, body.model, asked, images_of(body.assets))
    usage = SystemOneUsage(input_tokens=found.num_prompt_tokens, output_tokens=0)
    return await json_response(SystemOneResponse(model=name, answers=found, usage=usage))


async def decisions_answer(model: ServedModel, request: Request, body: DecisionsRequest) -> Response:
    """Answers in the questions' order."""
    name, found = await _decide(model, request, body.model, *system_one(body), body.prompt_cache_key)
    tokens = found.num_prompt_tokens
    usage = DecisionsUsage(
        input_tokens=tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=found.num_cached_tokens, cache_write_tokens=0),
        output_tokens=0,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=tokens,
    )
    return await json_response(DecisionsResponse(answers=answers(body, found), model=name, usage=usage))


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["decisions"])

    @router.post(PATHS[0], **documented(SystemOneResponse, SystemOneRequest))
    async def systemone(request: Request) -> Response:
        """Answers to typed questions about a state, as `transformers serve` and vLLM give them."""
        return await system_one_answer(model, request, await read(request, lambda _: SystemOneRequest))

    @router.post(PATHS[1], **documented(DecisionsResponse, DecisionsRequest))
    async def decisions(request: Request) -> Response:
        """Answers to typed questions about a text or a conversation, as OpenAI's API gives them."""
        return await decisions_answer(model, request, await read(request, lambda _: DecisionsRequest))

    return router
