"""Requests → prompts with marks; the logits at the marks → answers. Both are transformers' own, but for the model."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .settings import reason_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from transformers.decision import DecisionConfig, Question

Columns = Callable[["Question"], Sequence[int]]
"""Which of a model's logits are those of a question's options, in their order; raises `ValueError` where there are none."""


@dataclass(frozen=True)
class DecisionPrompt:
    """One prompt of a request.

    Args:
        token_ids: as the model reads them.
        marks: the number of tokens before each mark; at the token before it a question is answered.
        questions: one a mark.
        num_tokens: of the prompt as it was rendered, those behind the last mark included.
    """

    token_ids: tuple[int, ...]
    marks: Sequence[int]
    questions: Sequence[Question]
    num_tokens: int

    @property
    def pooled_at(self) -> tuple[int, ...]:
        """The places of the tokens before the marks."""
        return tuple(mark - 1 for mark in self.marks)

    @property
    def ends_at_mark(self) -> bool:
        """Whether it is answered at its last token alone."""
        return len(self.marks) == 1 and self.marks[0] == len(self.token_ids)


@dataclass(frozen=True)
class DecisionReader:
    """Makes prompts of requests and answers of logits, by a model's settings.

    Args:
        settings: labels, temperatures and template.
        tokenizer: a copy of the model's, which has the marks as tokens.
        columns: of a question.
        causal: nothing behind the last mark changes an answer, so it is left out.
    """

    settings: DecisionConfig
    tokenizer: PreTrainedTokenizerBase
    columns: Columns
    causal: bool
    _lock: AbstractContextManager[Any] = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of(
        cls, settings: DecisionConfig, tokenizer: PreTrainedTokenizerBase, columns: Columns, *, causal: bool
    ) -> DecisionReader:
        """A reader with a tokenizer of its own, which has the marks as tokens.

        transformers asks for the whole vocabulary at every request, to see that they are there: it is made once.
        """
        from transformers import AddedToken
        from transformers.decision.template_utils import MARK, SPLIT

        own: Any = copy.deepcopy(tokenizer)
        own.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in (MARK, SPLIT)])
        vocabulary = own.get_vocab()
        own.get_vocab = lambda: vocabulary
        return cls(settings, own, columns, causal)

    def read(self, request: Mapping[str, Any] | str) -> list[DecisionPrompt]:
        """The prompts of one request.

        Raises:
            PromptError: the request, its questions or its state are not as they have to be.
        """
        from jinja2 import TemplateError

        try:
            with self._lock:
                prepared = self.settings.prepare_inputs(request, self.tokenizer)
            return [self._prompt(inputs, questions) for inputs, questions in prepared]
        except (TemplateError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise PromptError(reason_of(error)) from error

    def _prompt(self, inputs: Mapping[str, Any], questions: Sequence[Question]) -> DecisionPrompt:
        ids, marks = inputs["input_ids"][0].tolist(), inputs["marks"].tolist()
        if len(marks) != len(questions):
            raise PromptError(
                f"the decision template makes {len(marks)} marks for {len(questions)} questions; it needs one for each."
            )
        if min(marks) < 1:
            raise PromptError("the decision template has a mark before any token; put text before it.")
        for question in questions:
            self.columns(question)  # labels that the model cannot give are refused now
        return DecisionPrompt(tuple(ids[: max(marks)] if self.causal else ids), marks, questions, len(ids))

    def answers(self, prompt: DecisionPrompt, rows: torch.Tensor) -> dict[str, Any]:
        """The answers to a prompt's questions by name, in the System One form.

        Args:
            rows: logits `(num_marks, num_labels)`, or `(num_labels,)` of one mark.
        """
        found = {}
        for row, question in zip(rows.reshape(len(prompt.marks), -1), prompt.questions, strict=True):
            scores = row[list(self.columns(question))]
            warped = self.settings.logits_processors[question.type](None, scores.float())
            found[question.name] = question.answer(warped.softmax(-1).tolist())
        return found


def columns_of_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> Columns:
    """Of logits that are those of tokens.

    Args:
        token_ids: of each logit.
    """
    from transformers.decision import label_token_ids

    column_of = {token: column for column, token in enumerate(token_ids)}

    @functools.cache
    def of_labels(labels: tuple[str, ...]) -> list[int]:
        return [column_of[token] for token in label_token_ids(tokenizer, labels)]

    return lambda question: of_labels(tuple(question.labels))


def columns_of_rows(rows: Callable[[str], range]) -> Columns:
    """Of a decision model's own head.

    Args:
        rows: a question type → the logits of its options.
    """

    def of_question(question: Question) -> range:
        own, count = rows(question.type), len(question.options)
        if count > len(own):
            raise ValueError(
                f"Question {question.name!r}: this model reads at most {len(own)} options for a {question.type} question, "
                f"got {count}."
            )
        return own[:count]

    return of_question
