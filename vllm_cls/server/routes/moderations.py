"""/v1/moderations, of a guard model or a classifier."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ...calls.moderations import THRESHOLD
from ...outputs import Moderation
from ..openapi import documented
from ..protocol.moderations import CATEGORIES, ModerationRequest, ModerationResponse, ModerationResult, applied
from ..protocol.parts import MediaPart
from ..requests.json_bodies import json_response, read
from ..requests.media import filled, items_of
from ..requests.request_context import RequestContext
from ..requests.request_prompts import check_prompts
from ..served_model import ServedModel

PATH = "/v1/moderations"


async def answer(model: ServedModel, request: Request, body: ModerationRequest) -> Response:
    """Whether each input is harmful, and of which categories."""
    call, settings = RequestContext.from_request(model, request, body), model.settings
    prompts = [each if isinstance(each, str) else await _conversation(model, request, each) for each in body.input]
    check_prompts(model, prompts)
    asked = (body.threshold, settings.threshold, THRESHOLD)
    found = await model.llm.moderate(
        prompts,
        threshold=next(each for each in asked if each is not None),
        categories=body.categories,
        safe_label=settings.safe_label,
        **call.options,
    )
    results = [_result(each, applied(given)) for each, given in zip(found, body.input, strict=True)]
    head = call.head("modr")
    return await json_response(ModerationResponse(id=head["id"], model=head["model"], results=results))


async def _conversation(model: ServedModel, request: Request, parts: list[Any]) -> dict[str, Any]:
    """A message of a text and images, read."""
    media = [each for each in parts if isinstance(each, MediaPart)]
    items = await items_of(model, request, media, param="input")
    return {"messages": [{"role": "user", "content": filled(parts, items)}]}


def _result(found: Moderation, types: list[Any]) -> ModerationResult:
    """With OpenAI's categories, which are false where the model does not have them."""
    return ModerationResult(
        flagged=found.flagged,
        categories={**dict.fromkeys(CATEGORIES, False), **found.categories},
        category_scores={**dict.fromkeys(CATEGORIES, 0.0), **found.scores},
        category_applied_input_types={
            name: types if name in found.scores else [] for name in (*CATEGORIES, *found.scores)
        },
    )


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["moderations"])

    @router.post(PATH, **documented(ModerationResponse, ModerationRequest))
    async def moderations(request: Request) -> Response:
        """Whether inputs are harmful, and of which categories, as OpenAI's API says it."""
        return await answer(model, request, await read(request, lambda _: ModerationRequest))

    return router
