"""Columns of a model with several heads."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .result_columns import ResultColumns

if TYPE_CHECKING:
    from ...client import HeadInfo
    from ...model.heads.output_heads import RunningHead
    from ...outputs import RequestOutput


@dataclass(frozen=True)
class HeadColumns:
    """The results of one head under their own names, then those of every other one as `NAME_label`, `NAME_score` ….

    Args:
        chosen: of the head that was asked for, or the default one.
        others: of the other ones, by name.
    """

    chosen: ResultColumns
    others: Mapping[str, ResultColumns]

    @classmethod
    def from_heads(
        cls, chosen: ResultColumns, heads: Mapping[str, RunningHead | HeadInfo], name: str | None
    ) -> HeadColumns:
        """The columns that `chosen` asks for, of every head; what needs probabilities is left out where there are none.

        Args:
            name: of the head that `chosen` is for; None is the first one.
        """
        other_heads = {
            each: head for index, (each, head) in enumerate(heads.items()) if each != name and (name or index)
        }
        others = {}
        for each, head in other_heads.items():
            shape = chosen if head.gives_probabilities else replace(chosen, top_k=None, scores=False)
            others[each] = replace(
                shape,
                id2label=head.id2label,
                problem_type=head.problem_type,
                gives_probabilities=head.gives_probabilities,
            )
        return cls(chosen, others)

    @functools.cached_property
    def types(self) -> Mapping[str, Any]:
        """The columns of every row, in their order, with their types."""
        others = {f"{name}_{column}": kind for name, each in self.others.items() for column, kind in each.types.items()}
        return {**self.chosen.types, **others}

    def empty(self) -> dict[str, Any]:
        """The results of a row that has none."""
        return dict.fromkeys(self.types)

    def row(self, output: RequestOutput[Any]) -> dict[str, Any]:
        """The results of one answer; `output.outputs` is set.

        Raises:
            ValueError: the model gave a number that is not finite.
        """
        found = self.chosen.row(output)
        answer_of_all: Any = output  # of a model with several heads
        for name, each in self.others.items():
            results = each.row(replace(output, outputs=answer_of_all.heads[name]))
            found |= {f"{name}_{column}": value for column, value in results.items()}
        return found
