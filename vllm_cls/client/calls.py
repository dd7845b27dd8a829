"""One function for each route: the request, and how its response is read. Both clients are made of these."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from .results import (
    Classification,
    DecisionAnswers,
    HeadInfo,
    ModelInfo,
    PairScore,
    PooledResult,
    Ranked,
    Response,
    ServedModelInfo,
    Tokens,
    read,
    read_answer,
    read_decision,
    read_list,
    read_ranking,
)

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Prompt = str | Sequence[int] | tuple[str, str] | Mapping[str, Any]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class ClientRequest(Generic[T]):
    """One request.

    Args:
        method: of HTTP.
        path: behind the base URL.
        read: what the call gives, of an answer with one of the statuses `accepted`.
        body: a JSON object, or None; fields that are None are not sent.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: Mapping[str, Any] | None = None
    accepted: frozenset[int] = frozenset({200})


def _posted(path: str, read: Callable[[Any], T], more: Mapping[str, Any] | None, **fields: Any) -> ClientRequest[T]:
    body = {name: value for name, value in fields.items() if value is not None} | dict(more or {})
    return ClientRequest("POST", path, lambda response: read(response.json()), body)


def _got(path: str, read: Callable[[Any], T]) -> ClientRequest[T]:
    return ClientRequest("GET", path, lambda response: read(response.json()))


def _up(path: str) -> ClientRequest[bool]:
    return ClientRequest("GET", path, lambda response: response.status_code == 200, accepted=frozenset({200, 503}))


def classify(
    input: Prompt | Sequence[Prompt],
    *,
    model: str | None = None,
    head_name: str | None = None,
    use_activation: bool | None = None,
    truncate_prompt_tokens: int | None = None,
    truncation_side: Side | None = None,
    top_k: int | None = None,
    scores: bool | None = None,
    logits: bool | None = None,
    truncated: bool | None = None,
    heads: bool | None = None,
    candidate_labels: Sequence[str] | None = None,
    hypothesis_template: str | None = None,
    multi_label: bool | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[Response[Classification]]:
    """The labels' probabilities of one text or several.

    Args:
        input: a text, token ids, a pair `(text, text_pair)`, or a list of any of these.
        model: a name the server knows, such as an adapter's; None is its own model.
        head_name: of a model with several heads, the one that answers; None is the first.
        use_activation: False gives logits in place of probabilities.
        truncate_prompt_tokens: cut longer prompts to so many tokens; -1 is what the model takes. None refuses them.
        truncation_side: the side that is cut off.
        top_k: give the most probable labels too; and so `scores`, `logits`, whether a text was `truncated`,
            and the answers of all `heads`.
        candidate_labels: in place of the model's own, of a model of natural language inference.
        hypothesis_template: what is said of a text, with `{}` for a candidate label.
        multi_label: each candidate label is true or not, whatever the others are.
        extra: any other fields of the request.

    Raises:
        RejectedError: the request is wrong; the message says what.
        ServerError: any other error of the server.
        UnreachableError: no answer came in time.
    """
    return _posted(
        "/classify",
        lambda answer: read_answer(Classification, answer),
        extra,
        input=_input(input),
        model=model,
        head_name=head_name,
        use_activation=use_activation,
        truncate_prompt_tokens=truncate_prompt_tokens,
        truncation_side=truncation_side,
        top_k=top_k,
        scores=scores,
        logits=logits,
        truncated=truncated,
        heads=heads,
        candidate_labels=candidate_labels,
        hypothesis_template=hypothesis_template,
        multi_label=multi_label,
    )


def chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    model: str | None = None,
    head_name: str | None = None,
    use_activation: bool | None = None,
    truncate_prompt_tokens: int | None = None,
    truncation_side: Side | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[Response[Classification]]:
    """The labels' probabilities of one conversation: messages with `role` and `content`. Else as `classify`."""
    return _posted(
        "/classify",
        lambda answer: read_answer(Classification, answer),
        extra,
        messages=list(messages),
        model=model,
        head_name=head_name,
        use_activation=use_activation,
        truncate_prompt_tokens=truncate_prompt_tokens,
        truncation_side=truncation_side,
    )


def pool(
    input: Prompt | Sequence[Prompt],
    *,
    task: Literal["classify", "token_classify", "embed"] | None = None,
    model: str | None = None,
    head_name: str | None = None,
    use_activation: bool | None = None,
    truncate_prompt_tokens: int | None = None,
    truncation_side: Side | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[Response[PooledResult]]:
    """What the model pools of each text: probabilities, those of every token, or an embedding. Else as `classify`.

    Args:
        task: None is the model's own.
    """
    return _posted(
        "/pooling",
        lambda answer: read_answer(PooledResult, answer),
        extra,
        input=_input(input),
        task=task,
        model=model,
        head_name=head_name,
        use_activation=use_activation,
        truncate_prompt_tokens=truncate_prompt_tokens,
        truncation_side=truncation_side,
    )


def embed(
    input: Prompt | Sequence[Prompt],
    *,
    model: str | None = None,
    truncate_prompt_tokens: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[Response[PooledResult]]:
    """An embedding of each text. Else as `pool`."""
    return pool(input, task="embed", model=model, truncate_prompt_tokens=truncate_prompt_tokens, extra=extra)


def score(
    text_1: str | Sequence[str],
    text_2: str | Sequence[str],
    *,
    model: str | None = None,
    head_name: str | None = None,
    instruction: str | None = None,
    max_tokens_per_query: int | None = None,
    max_tokens_per_doc: int | None = None,
    use_activation: bool | None = None,
    truncate_prompt_tokens: int | None = None,
    truncation_side: Side | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[Response[PairScore]]:
    """How well texts fit: one query with N documents, or N with N. Else as `classify`.

    Args:
        text_1: the query.
        text_2: the document.
        instruction: for the place of that name in the model's score template.
        max_tokens_per_query: the query's first tokens that are kept; None keeps all.
        max_tokens_per_doc: the document's.
    """
    return _posted(
        "/score",
        lambda answer: read_answer(PairScore, answer),
        extra,
        text_1=_input(text_1),
        text_2=_input(text_2),
        model=model,
        head_name=head_name,
        instruction=instruction,
        max_tokens_per_query=max_tokens_per_query,
        max_tokens_per_doc=max_tokens_per_doc,
        use_activation=use_activation,
        truncate_prompt_tokens=truncate_prompt_tokens,
        truncation_side=truncation_side,
    )


def rerank(
    query: str,
    documents: Sequence[str | Mapping[str, Any]],
    *,
    top_n: int | None = None,
    model: str | None = None,
    head_name: str | None = None,
    instruction: str | None = None,
    max_tokens_per_query: int | None = None,
    max_tokens_per_doc: int | None = None,
    truncate_prompt_tokens: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[Response[Ranked]]:
    """The documents by how well they answer the query, the best first. Else as `score`.

    Args:
        top_n: how many; None is all.
    """
    return _posted(
        "/rerank",
        read_ranking,
        extra,
        query=query,
        documents=list(documents),
        top_n=top_n,
        model=model,
        head_name=head_name,
        instruction=instruction,
        max_tokens_per_query=max_tokens_per_query,
        max_tokens_per_doc=max_tokens_per_doc,
        truncate_prompt_tokens=truncate_prompt_tokens,
    )


def decide(
    state: str | Mapping[str, Any] | Sequence[Any],
    questions: Mapping[str, Mapping[str, Any]],
    *,
    model: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ClientRequest[DecisionAnswers]:
    """Answers to typed questions about a state. Else as `classify`.

    Args:
        state: a text, or any JSON.
        questions: name → `{"type": "choice" | "score" | "noul", "instructions", "criteria"}`.
    """
    return _posted("/v1/systemone", read_decision, extra, state=state, questions=questions, model=model)


def tokenize(
    prompt: str,
    *,
    model: str | None = None,
    add_special_tokens: bool | None = None,
    return_token_strs: bool | None = None,
) -> ClientRequest[Tokens]:
    """The token ids of a text, as the model's tokenizer makes them."""
    return _posted(
        "/tokenize",
        lambda answer: read(Tokens, answer),
        None,
        prompt=prompt,
        model=model,
        add_special_tokens=add_special_tokens,
        return_token_strs=return_token_strs,
    )


def detokenize(tokens: Sequence[int], *, model: str | None = None) -> ClientRequest[str]:
    """The text of token ids."""
    return _posted("/detokenize", lambda answer: str(answer["prompt"]), None, tokens=list(tokens), model=model)


def models() -> ClientRequest[list[ServedModelInfo]]:
    """What the server answers for: its model and the adapters of it."""
    return _got("/v1/models", lambda answer: read_list(ServedModelInfo, answer["data"]))


def describe(model: str | None = None) -> ClientRequest[ModelInfo]:
    """What the served model is: its labels, its limits, its model card.

    Args:
        model: a name that the server knows, such as an adapter's; None is its own model.
    """
    query = "" if model is None else "?" + urllib.parse.urlencode({"model": model})
    return _got("/model" + query, _model_info)


def _model_info(answer: Any) -> ModelInfo:
    found = read(ModelInfo, answer)
    return replace(found, heads=read_list(HeadInfo, found.heads))


def health() -> ClientRequest[bool]:
    """Whether the server's engine is alive."""
    return _up("/health")


def ready() -> ClientRequest[bool]:
    """Whether the server takes requests now."""
    return _up("/ready")


def _input(value: Any) -> Any:
    """As JSON: a pair is an object with its two texts, any other sequence a list."""
    if isinstance(value, str | Mapping):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) for each in value):
        return {"text": value[0], "text_pair": value[1]}
    return [_input(each) if not isinstance(each, int) else each for each in value]
