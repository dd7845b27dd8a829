"""/model."""

from __future__ import annotations

from typing_extensions import TypedDict


class HeadDescription(TypedDict):
    """One of several heads: the name that a request gives as `head_name`."""

    name: str
    labels: list[str]
    problem_type: str | None
    gives_probabilities: bool


class ModelDescription(TypedDict):
    """What the model is.

    `labels` are in the order of their indices, those of the default head where there are several `heads` with names, and
    none of a model without a head, such as an embedder;
    `scores` is whether /score answers for it, `decides` whether /v1/systemone does; `takes_instruction` is whether its pairs
    have a place for one;
    `use_activation` is whether answers are what the activation gives, not logits, where a request does not say;
    `gives_probabilities` is whether those are probabilities: not for a regression, nor where the config names an identity;
    `modalities` are what conversations may hold beside texts: `image`, `video`;
    `prompt_template` is written round each text; with `chat_template_prompt` a text is the user's message of a chat;
    `card` is its README.md, in Markdown.
    """

    id: str
    task: str
    labels: list[str]
    problem_type: str | None
    heads: list[HeadDescription]
    use_activation: bool
    gives_probabilities: bool
    scores: bool
    decides: bool
    takes_instruction: bool
    modalities: list[str]
    prompt_template: str | None
    chat_template_prompt: bool
    max_model_len: int
    card: str | None
