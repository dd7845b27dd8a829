"""The results of a client's calls, as dataclasses; unknown fields are ignored, so newer servers work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, those that were added to its texts included."""

    prompt_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True)
class Classification:
    """The labels' probabilities of one text.

    Args:
        index: its place in the request.
        label: the most probable label; None where there is one label only.
        probs: by the labels' indices; logits where the request had `use_activation=False`, and what the model's activation
            gives where that is no probabilities (`ModelInfo.gives_probabilities`).
        num_classes: how many there are.
        scores: label → probability, where the request asked for it; so with the following.
        top_k: the most probable labels, each `{"label", "score"}`.
        logits: by the labels' indices.
        truncated: whether the text was cut.
        heads: by the name of each of several heads, its `label`, `probs`, `num_classes`, and what else was asked for.
    """

    index: int
    label: str | None
    probs: list[float]
    num_classes: int
    scores: dict[str, float] | None = None
    top_k: list[dict[str, Any]] | None = None
    logits: list[float] | None = None
    truncated: bool | None = None
    heads: dict[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class DecisionAnswers:
    """The answers to typed questions about a state.

    Args:
        answers: by the questions' names, in the System One form: `type`, and `noul`, or `choice` or `score` with
            `confidence` and `probabilities`.
    """

    answers: dict[str, dict[str, Any]]
    model: str | None = None
    usage: Usage = Usage()


@dataclass(frozen=True)
class PooledResult:
    """Probabilities or an embedding of one text, `(size,)`, or of each of its tokens, `(num_tokens, size)`."""

    index: int
    data: list[Any]


@dataclass(frozen=True)
class PairScore:
    """The score of one pair of texts, and whether it was truncated, if the request asked for that."""

    index: int
    score: float
    truncated: bool | None = None


@dataclass(frozen=True)
class Ranked:
    """A document of a ranking: its index in the request, its score, its text (None without `return_documents`)."""

    index: int
    relevance_score: float
    text: str | None = None


@dataclass(frozen=True)
class Response(Generic[T]):
    """The results of a request, in the order of its texts (a ranking: by falling score). A sequence of them."""

    id: str
    model: str | None
    usage: Usage
    data: list[T]

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> T:
        return self.data[index]


@dataclass(frozen=True)
class Tokens:
    """The token ids of a text, how many there are, and how many the model takes."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


@dataclass(frozen=True)
class ServedModelInfo:
    """A model that the server answers for: its own (`parent` is None) or an adapter of it."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


@dataclass(frozen=True)
class HeadInfo:
    """One of several heads of the served model: its name, its labels by index, its problem type.

    `gives_probabilities` as in `ModelInfo`.
    """

    name: str
    labels: list[str]
    problem_type: str | None = None
    gives_probabilities: bool = True

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.labels))


@dataclass(frozen=True)
class ModelInfo:
    """What the served model is.

    Args:
        id: the name that requests may give as `model`.
        task: "classify" or "token_classify".
        labels: their names by index.
        problem_type: as in transformers, or None.
        heads: those that have names, the default one, whose labels those are, first.
        use_activation: whether answers are what the activation gives, not logits, where a request does not say.
        gives_probabilities: whether those are probabilities: not for a regression, nor where the config names an identity.
        max_model_len: the longest text in tokens.
        prompt_template: that is written round each text, or None.
        chat_template_prompt: whether a text becomes the user's message of a chat.
        takes_instruction: whether what pairs are written with has a place for an instruction.
        modalities: what conversations may hold beside texts: "image", "video".
        card: the text of the model card (Markdown), or None.
    """

    id: str
    task: str
    labels: list[str]
    problem_type: str | None = None
    heads: list[HeadInfo] = field(default_factory=list)
    use_activation: bool = True
    gives_probabilities: bool = True
    max_model_len: int | None = None
    prompt_template: str | None = None
    chat_template_prompt: bool = False
    takes_instruction: bool = False
    modalities: list[str] = field(default_factory=list)
    card: str | None = field(default=None, repr=False)


def read(kind: type[T], values: Any, **more: Any) -> T:
    """A `kind`, which is a dataclass, from a JSON object of the server.

    Raises:
        ValueError: a field is missing.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"it has {values!r} where a {kind.__name__} should be")
    known = fields(kind)  # type: ignore[arg-type]
    given = {each.name: values[each.name] for each in known if each.name in values} | more
    missing = [
        each.name
        for each in known
        if each.default is MISSING and each.default_factory is MISSING and each.name not in given
    ]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    return kind(**given)


def read_list(kind: type[T], values: Any) -> list[T]:
    """As `read`, of a JSON array."""
    if not isinstance(values, list):
        raise ValueError(f"it has {values!r} where a list should be")
    return [read(kind, each) for each in values]


def read_answer(kind: type[T], values: Any) -> Response[T]:
    """The answer of a route that gives a list of `kind`."""
    usage = read(Usage, values.get("usage") or {})
    return Response(values.get("id", ""), values.get("model"), usage, read_list(kind, values.get("data")))


def read_decision(values: Any) -> DecisionAnswers:
    """The answer of /v1/systemone."""
    tokens = (values.get("usage") or {}).get("input_tokens", 0)
    return DecisionAnswers(dict(values["answers"]), values.get("model"), Usage(tokens, tokens))


def read_ranking(values: Any) -> Response[Ranked]:
    """The answer of /rerank, whose documents lie one level deeper."""
    usage = read(Usage, values.get("usage") or {})
    ranked = [read(Ranked, each, text=(each.get("document") or {}).get("text")) for each in values.get("results") or []]
    return Response(values.get("id", ""), values.get("model"), usage, ranked)
