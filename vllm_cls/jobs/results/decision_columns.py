"""What a row of decisions holds: the answer to each question under its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...outputs import Decision, RequestOutput

ANSWER_TYPES: dict[str, dict[str, Any]] = {
    "noul": {"": float},
    "choice": {"": str, "_confidence": float, "_probabilities": dict[str, float]},
    "score": {"": float, "_confidence": float, "_probabilities": dict[str, float]},
}
"""The columns of an answer behind the question's name."""


@dataclass(frozen=True)
class DecisionColumns:
    """The answer to each question under its name: a probability (noul), an option (choice) or a number (score).

    Of the last two also `NAME_confidence` and `NAME_probabilities`.

    Args:
        questions: by name.
        measured: the question whose answer is compared with a column, or None.
    """

    questions: Mapping[str, Any]
    measured: str | None = None

    @property
    def types(self) -> Mapping[str, Any]:
        """The columns with their types."""
        return {
            name + ending: kind
            for name, question in self.questions.items()
            for ending, kind in ANSWER_TYPES[question["type"]].items()
        }

    def empty(self) -> dict[str, Any]:
        """The results of a row that has none."""
        return dict.fromkeys(self.types)

    def row(self, output: RequestOutput[Decision]) -> dict[str, Any]:
        """The results of one answer; `output.outputs` is set."""
        found = {}
        for name, answer in output.outputs.items():
            found[name] = answer[answer["type"]]
            for ending in ("confidence", "probabilities"):
                if ending in answer:
                    found[f"{name}_{ending}"] = answer[ending]
        return found

    def numbers(self, output: RequestOutput[Decision]) -> list[float]:
        """The probabilities of the answers to the measured question, in the order of `labels`."""
        return self.probabilities(output.outputs)

    def probabilities(self, answers: Mapping[str, Any]) -> list[float]:
        """Those of one row's answers."""
        assert self.measured is not None
        answer = answers[self.measured]
        return [1 - answer["noul"], answer["noul"]] if "noul" in answer else list(answer["probabilities"].values())

    @property
    def labels(self) -> dict[int, str]:
        """The answers to the measured question that a column can have."""
        if self.measured is None:
            return {}
        question = self.questions[self.measured]
        if question["type"] == "noul":
            return {0: "false", 1: "true"}
        criteria = question["criteria"]
        return dict(enumerate(criteria if isinstance(criteria, Mapping) else map(str, range(len(criteria)))))
