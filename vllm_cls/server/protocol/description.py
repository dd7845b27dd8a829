"""/model."""

from __future__ import annotations

from typing_extensions import TypedDict


class ModelDescription(TypedDict):
    """What the model is.

    `labels` are in the order of their indices; `scores` is whether /score answers for it; `takes_instruction` is whether
    its pairs have a place for one; `prompt_template` is written round each text; `card` is its README.md, in Markdown.
    """

    id: str
    task: str
    labels: list[str]
    problem_type: str | None
    use_activation: bool
    scores: bool
    takes_instruction: bool
    prompt_template: str | None
    max_model_len: int
    card: str | None
