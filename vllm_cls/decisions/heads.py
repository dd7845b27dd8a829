"""Heads that read several tokens of one prompt: which these are, and the scores that they give a question's options or labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from transformers.decision import Question


@dataclass(frozen=True)
class ReadSpan:
    """Tokens that are read together.

    Args:
        token_ids: one or more.
        rows: `(num_tokens, width)` float32, what the model's `Architecture.head` gives for each: logits, or states as they are.
    """

    token_ids: Sequence[int]
    rows: torch.Tensor


def places_of(spans: Iterable[range]) -> list[int]:
    """The indices of the tokens of spans, one span after the other."""
    return [place for span in spans for place in span]


def read_spans(token_ids: Sequence[int], spans: Sequence[range], rows: torch.Tensor) -> list[ReadSpan]:
    """Spans of a prompt with their rows.

    Args:
        rows: `(num_places, width)`, those of `places_of(spans)`.
    """
    parts = rows.split([len(span) for span in spans])
    return [ReadSpan(token_ids[span.start : span.stop], part) for span, part in zip(spans, parts, strict=True)]


class DecisionHead:
    """What reads the marks that a template puts into a prompt.

    Attributes:
        in_pairs: marks stand round spans, one before and one behind; else each is read at the token before it.
    """

    in_pairs: bool = False

    def num_marks(self, question: Question) -> int:
        """How many marks a question has; the marks of a prompt are those of its questions, one after the other.

        Raises:
            ValueError: the model cannot answer it, as when it has too many options.
        """
        return 1

    def reads(self, questions: Sequence[Question], marks: Sequence[int]) -> list[list[range]]:
        """The tokens that each question of a prompt is read from, as the spans that `scores` gets.

        Args:
            marks: the number of tokens before each.

        Raises:
            ValueError: the template puts the marks elsewhere, or `num_marks` says so.
        """
        counts = [self.num_marks(question) for question in questions]
        if len(marks) != sum(counts):
            raise ValueError(
                f"the decision template makes {len(marks)} marks for {len(questions)} questions; this model reads {sum(counts)}."
            )
        remaining = iter(marks)
        found = []
        for count in counts:
            own = [next(remaining) for _ in range(count)]
            ends = zip(own[::2], own[1::2], strict=True) if self.in_pairs else ((mark - 1, mark) for mark in own)
            found.append([range(start, end) for start, end in ends])
        if any(span.start < 0 or not span for spans in found for span in spans):
            raise ValueError("the decision template has a mark with no token before it to read; put text there.")
        return found

    def scores(self, question: Question, read: Sequence[ReadSpan]) -> torch.Tensor:
        """The scores of a question's options, `(num_options,)`, before their temperature.

        Args:
            read: what `reads` named.
        """
        raise NotImplementedError


class LogitsAtMark(DecisionHead):
    """One mark a question: each option has a logit of its own.

    Args:
        columns: a question → which logits are those of its options, in their order; `ValueError` where there are none.
    """

    def __init__(self, columns: Callable[[Question], Sequence[int]]) -> None:
        self._columns = columns

    def num_marks(self, question: Question) -> int:
        self._columns(question)
        return 1

    def scores(self, question: Question, read: Sequence[ReadSpan]) -> torch.Tensor:
        return read[0].rows[0, list(self._columns(question))]


def logits_of_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> LogitsAtMark:
    """The head of a language model, whose logits are those of tokens.

    Args:
        token_ids: of each logit.
    """
    from transformers.decision import label_token_ids

    column_of = {token: column for column, token in enumerate(token_ids)}

    @functools.cache
    def of_labels(labels: tuple[str, ...]) -> list[int]:
        return [column_of[token] for token in label_token_ids(tokenizer, labels)]

    return LogitsAtMark(lambda question: of_labels(tuple(question.labels)))


class LabelHead:
    """What classifies a text by labels of the request, which stand in its prompt."""

    def prompt(self, text: str, labels: Sequence[str]) -> str:
        """A text and the labels that it may have, as the model reads them.

        Raises:
            ValueError: a label cannot stand there.
        """
        raise NotImplementedError

    def reads(self, token_ids: Sequence[int], num_labels: int) -> list[range]:
        """The tokens that the labels' logits are read from, as the spans that `logits` gets.

        Raises:
            ValueError: labels are missing from the prompt.
        """
        raise NotImplementedError

    def logits(self, token_ids: Sequence[int], read: Sequence[ReadSpan]) -> torch.Tensor:
        """The labels' logits, `(num_labels,)`.

        Args:
            token_ids: of the prompt.
            read: what `reads` named.
        """
        raise NotImplementedError
