"""/model: what a client has to know of the model to show its answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ..openapi import ERRORS, readable, takes_instruction
from ..protocol.description import HeadDescription, ModelDescription
from ..served_model import ServedModel

_LONGEST_CARD = 200_000  # characters


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(tags=["models"], responses=ERRORS)
    llm = model.llm.llm
    card = (llm.model_card() or "")[:_LONGEST_CARD] or None
    described = llm.describe()
    instructed = takes_instruction(llm)
    heads = [
        HeadDescription(
            name=name,
            labels=list(each.id2label.values()),
            problem_type=each.problem_type,
            gives_probabilities=each.gives_probabilities,
        )
        for name, each in llm.heads.items()
    ]

    # Not awaited: an adapter that was let go is read from its file again.
    @router.get("/model")
    def describe(
        name: Annotated[str | None, Query(alias="model", description="Of an adapter.")] = None,
    ) -> ModelDescription:
        """The labels, the limits and the model card of the model or of an adapter."""
        shown, adapter = model.by_name[name]
        head = llm.head(lora_request=adapter)
        answers = adapter is not None or described["head"] is not None
        labels = list(head.id2label.values()) if answers else []  # an embedder's config has the labels of none
        return ModelDescription(
            id=shown,
            task=described["task"],
            labels=labels,
            problem_type=head.problem_type,
            heads=heads,
            use_activation=llm.use_activation,
            gives_probabilities=bool(labels) and head.gives_probabilities,
            scores=model.classifies and len(labels) == 1,
            decides=llm.decides,
            takes_instruction=instructed,
            modalities=list(readable(model)),
            prompt_template=described["prompt_template"],
            chat_template_prompt=described["chat_template_prompt"],
            max_model_len=llm.max_model_len,
            card=card if adapter is None else None,
        )

    return router
