"""The results of a request: vLLM's output classes, with label names added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class PoolingOutput:
    """`data`: probabilities `(num_labels,)`, per token `(num_tokens, num_labels)`, or an embedding `(hidden,)`."""

    data: torch.Tensor


@dataclass(frozen=True)
class ClassificationOutput:
    """Probabilities of one prompt, in the order of the labels' indices.

    `probs` holds what the model's activation gives: logits where the request asked for `use_activation=False`, a value
    for a regression, and what the config names where that gives no probabilities (the identity of some
    cross-encoders). `probabilities` holds probabilities whatever was asked for and whatever the activation is, and is None
    for a regression, which has none. `label` is the most probable label; it is None for a single label, which has no
    winner.
    """

    probs: list[float]
    logits: list[float] = field(default_factory=list)
    id2label: dict[int, str] = field(default_factory=dict, repr=False)
    probabilities: list[float] | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.probs)

    @property
    def label(self) -> str | None:
        if len(self.probs) < 2:
            return None
        best = max(range(len(self.probs)), key=self.probs.__getitem__)
        return self.id2label.get(best, f"LABEL_{best}")

    @property
    def scores(self) -> dict[str, float]:
        """Label → its entry of `probs`."""
        return {self.id2label.get(i, f"LABEL_{i}"): p for i, p in enumerate(self.probs)}


@dataclass(frozen=True)
class Span:
    """A part of a text with its label.

    Args:
        label: without `B-` and `I-`, unless it is a single token's.
        score: probability; the mean over its words or tokens.
        start: of its first character in the text, from 0.
        end: behind its last character.
        word: its tokens as the tokenizer writes them; `text[start:end]` is what stands there.
    """

    label: str
    score: float
    start: int
    end: int
    word: str


@dataclass(frozen=True)
class TokenClassificationOutput:
    """The spans of one text, in their order."""

    spans: list[Span]


@dataclass(frozen=True)
class EmbeddingOutput:
    """`embedding`: the vector of a text."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True)
class ScoringOutput:
    """`score`: a number, a probability unless the model's activation says otherwise."""

    score: float


@dataclass(frozen=True)
class RequestOutput(Generic[T]):
    """One answer; `error` says why there is none, and then `outputs` is None.

    `truncated` is True where the prompt was cut to the model's length.
    """

    request_id: str
    outputs: T
    prompt_token_ids: list[int] = field(repr=False)
    finished: bool = True
    num_cached_tokens: int = 0
    truncated: bool = False
    error: str | None = None


@dataclass(frozen=True)
class PoolingRequestOutput(RequestOutput[PoolingOutput]):
    """Output of `LLM.encode`.

    `offsets`, of a token classifier: where each token of a plain text stands in it, `(start, end)` in characters; None for a
    token that the tokenizer added. It is None as a whole for pairs, chats, token ids, and where the tokenizer does not know.
    """

    offsets: list[tuple[int, int] | None] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ClassificationRequestOutput(RequestOutput[ClassificationOutput]):
    """Output of `LLM.classify`.

    `heads` has every head's result by name, where the model has several; `outputs` is that of the one asked for, else the
    first one's.
    """

    heads: dict[str, ClassificationOutput] = field(default_factory=dict)


class TokenClassificationRequestOutput(RequestOutput[TokenClassificationOutput]):
    """Output of `LLM.token_classify`."""


class Decision(dict[str, Any]):
    """Output of `LLM.decide`: the answer to each question of a request by its name, in the System One form.

    Args:
        answers: `{"type": "noul", "noul"}`, `{"type": "choice", "choice", "confidence", "probabilities"}` or
            `{"type": "score", "score", "legend", "confidence", "probabilities"}` by question.
        num_prompt_tokens: of its prompts together.
        num_cached_tokens: of these, those whose keys and values were at hand.
        error: why there are no answers; None where there are.
    """

    def __init__(
        self,
        answers: Mapping[str, Any],
        num_prompt_tokens: int = 0,
        num_cached_tokens: int = 0,
        error: str | None = None,
    ) -> None:
        super().__init__(answers)
        self.num_prompt_tokens = num_prompt_tokens
        self.num_cached_tokens = num_cached_tokens
        self.error = error


class Moderation(NamedTuple):
    """Output of `LLM.moderate`.

    Args:
        flagged: whether the text is harmful.
        categories: whether it is of each category of the model.
        scores: the probability of each.
        num_prompt_tokens: of its prompts together.
    """

    flagged: bool
    categories: dict[str, bool]
    scores: dict[str, float]
    num_prompt_tokens: int = 0


class ScoringRequestOutput(RequestOutput[ScoringOutput]):
    """Output of `LLM.score`."""


class EmbeddingRequestOutput(RequestOutput[EmbeddingOutput]):
    """Output of `LLM.embed`."""
