"""Heads that answer: which tokens of a prompt a question's answer is read from, and the scores that those give its options."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from transformers.decision import Question


@dataclass(frozen=True)
class Span:
    """Tokens that are read together.

    Args:
        token_ids: one or more.
        rows: `(num_tokens, width)` float32, what the model's `Architecture.head` gives for each: logits, or states as they are.
    """

    token_ids: Sequence[int]
    rows: torch.Tensor


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

    def scores(self, question: Question, read: Sequence[Span]) -> torch.Tensor:
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

    def scores(self, question: Question, read: Sequence[Span]) -> torch.Tensor:
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
