"""Labels that a request names; without torch, so that a command says at once what is wrong with them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError

if TYPE_CHECKING:
    import torch

    from ..inputs.prompts import Prompt

HYPOTHESIS = "This example is {}."


@dataclass(frozen=True)
class Candidates:
    """Labels that a text may have.

    Args:
        labels: each different; or a text with commas between them, as transformers takes it.
        template: makes a hypothesis of a label, in the place of `{}`.
        multi_label: each label is true or not, whatever the others are; of a single label, always.

    Raises:
        ConfigError: there are no labels, one is there twice, or the template has no place for one.
    """

    labels: Sequence[str]
    template: str = HYPOTHESIS
    multi_label: bool = False

    def __post_init__(self) -> None:
        given: Any = self.labels
        if isinstance(given, str):
            given = [each.strip() for each in given.split(",")]
        if not given or not all(isinstance(each, str) and each for each in given) or len(set(given)) < len(given):
            raise ConfigError(
                f"candidate_labels={list(given)} must be texts, one or more, each once and none empty.",
                "candidate_labels",
            )
        object.__setattr__(self, "labels", tuple(given))
        try:  # nothing of Python's format but the place: a width could ask for any amount of memory
            places = [place[1:] for place in string.Formatter().parse(self.template) if place[1] is not None]
        except (ValueError, TypeError):
            places = []
        if places != [("", "", None)]:
            raise ConfigError(
                f"hypothesis_template={self.template!r} needs one {{}} for the label.", "hypothesis_template"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """These as `LLM.classify` takes them."""
        return {
            "candidate_labels": self.labels,
            "hypothesis_template": self.template,
            "multi_label": self.multi_label,
        }

    def pairs(self, text: Prompt | PromptError) -> list[Prompt | PromptError]:
        """A text with each hypothesis, or why there is no text."""
        if isinstance(text, PromptError):
            return [text] * len(self.labels)
        return [replace(text, text_pair=self.template.format(label)) for label in self.labels]

    def probabilities(self, logits: torch.Tensor, entailment: int) -> torch.Tensor:
        """As transformers' zero-shot pipeline: `(num_labels, num_answers)` → `(num_labels,)`.

        Args:
            entailment: its place among the answers.
        """
        if self.multi_label or len(self.labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            return logits[:, [contradiction, entailment]].softmax(-1)[:, 1]
        return logits[:, entailment].softmax(-1)


def candidates_of(labels: Sequence[str] | None, template: str | None, multi_label: bool) -> Candidates | None:
    """The labels of a request; None where it names none.

    Raises:
        ConfigError: they are wrong, or the rest is given without them.
    """
    if labels is not None:
        return Candidates(labels, HYPOTHESIS if template is None else template, multi_label)
    for name, given in (("hypothesis_template", template is not None), ("multi_label", multi_label)):
        if given:
            raise ConfigError(f"{name} is for candidate_labels, which are not given.", name)
    return None
