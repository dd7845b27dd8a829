"""The table of all fields of results: name, type, meaning, and where each occurs.

Rows of files take their columns and types from here, OpenAPI its descriptions. Python's outputs, the server's and the
client's typed answers and docs/outputs.md are written out and tested against it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from .outputs import Span

Presence = Literal["always", "on request", "where it applies"]
ALWAYS: Presence = "always"
ON_REQUEST: Presence = "on request"
NEEDED: Presence = "where it applies"

ANY_ROW = "any"
SINGLE, MULTI, REGRESSION, PAIR = "single label", "multi-label", "regression", "pair"
TOKENS, STEPS = "token classifier", "process reward model"

CLASSIFY, POOLING, SCORE, RERANK = "/classify", "/pooling", "/score", "/rerank"


class LabelScore(TypedDict):
    """A label and its entry of `probs`."""

    label: str
    score: float


class StepScore(TypedDict):
    """How good a step is, the last label's number, and those of all labels: `probs`, or without activation `logits`."""

    score: float
    probs: NotRequired[list[float]]
    logits: NotRequired[list[float]]


@dataclass(frozen=True)
class ResultField:
    """One field.

    Args:
        name: the same wherever it occurs.
        type: a Python type; in JSON, what that is there. None is a value where the meaning says so; in a row that has an
            `error`, every result is None.
        meaning: one plain sentence.
        python: classes of what `LLM` gives that have it as an attribute.
        rows: when rows of files have it, by what the model is.
        http: when the entries of a route's answer have it, by the route.
    """

    name: str
    type: Any
    meaning: str
    python: Collection[str] = ()
    rows: Mapping[str, Presence] = field(default_factory=dict)
    http: Mapping[str, Presence] = field(default_factory=dict)


RESULT_FIELDS: tuple[ResultField, ...] = (
    ResultField(
        "index",
        int,
        "The place in the request, from 0.",
        python=("RankedDocument",),
        http=dict.fromkeys((CLASSIFY, POOLING, SCORE, RERANK), ALWAYS),
    ),
    ResultField("object", str, "What the entry is: `pooling` or `score`.", http={POOLING: ALWAYS, SCORE: ALWAYS}),
    ResultField(
        "label",
        str | None,
        "The most probable label; null for a model of one label, unless the server's `--threshold` gives it.",
        python=("ClassificationOutput",),
        rows={SINGLE: ALWAYS},
        http={CLASSIFY: ALWAYS},
    ),
    ResultField(
        "score",
        float,
        "The highest of `probs`, null in a row without `probs`; of a pair, what the activation gives.",
        python=("ScoringOutput",),
        rows={SINGLE: ALWAYS, PAIR: ALWAYS},
        http={SCORE: ALWAYS},
    ),
    ResultField(
        "labels",
        list[str],
        "The labels whose probability is at least the threshold; null in a row without `probs`.",
        rows={MULTI: ALWAYS},
    ),
    ResultField(
        "value", float | list[float], "A regression's number, or the list of its several.", rows={REGRESSION: ALWAYS}
    ),
    ResultField(
        "probs",
        list[float],
        "What the activation gives, by the labels' indices (logits with `use_activation` false); a row has it if these "
        "are probabilities.",
        python=("ClassificationOutput",),
        rows={SINGLE: NEEDED, MULTI: NEEDED},
        http={CLASSIFY: ALWAYS},
    ),
    ResultField(
        "probabilities",
        list[float] | None,
        "Probabilities by the labels' indices, whatever `probs` holds; null for a regression.",
        python=("ClassificationOutput",),
    ),
    ResultField(
        "num_classes",
        int,
        "How many numbers `probs` has.",
        python=("ClassificationOutput",),
        http={CLASSIFY: ALWAYS},
    ),
    ResultField("id2label", dict[int, str], "The labels' names by their indices.", python=("ClassificationOutput",)),
    ResultField(
        "logits",
        list[float],
        "What the activation is applied to, by the labels' indices; in a row also in place of missing `probs`.",
        python=("ClassificationOutput",),
        rows={SINGLE: ON_REQUEST, MULTI: ON_REQUEST, REGRESSION: ON_REQUEST},
        http={CLASSIFY: ON_REQUEST},
    ),
    ResultField(
        "top_k",
        list[LabelScore],
        "So many labels, each with its entry of `probs`, the highest first.",
        rows={SINGLE: ON_REQUEST, MULTI: ON_REQUEST},
        http={CLASSIFY: ON_REQUEST},
    ),
    ResultField(
        "scores",
        dict[str, float],
        "Each label's entry of `probs`, by its name.",
        python=("ClassificationOutput",),
        rows={SINGLE: ON_REQUEST, MULTI: ON_REQUEST},
        http={CLASSIFY: ON_REQUEST},
    ),
    ResultField(
        "heads",
        dict[str, dict[str, Any]],
        "The answers of all heads that have names, by these; a row has columns `NAME_label` … instead.",
        python=("ClassificationRequestOutput",),
        http={CLASSIFY: ON_REQUEST},
    ),
    ResultField(
        "spans",
        list[Span],
        "The labelled parts of the text, in their order.",
        python=("TokenClassificationOutput",),
        rows={TOKENS: ALWAYS},
    ),
    ResultField(
        "steps", list[StepScore], "An entry for each token that ends a step, in their order.", rows={STEPS: ALWAYS}
    ),
    ResultField(
        "data",
        list[float] | list[list[float]] | str,
        "Numbers, or a row of them for each token; in Python a tensor, over HTTP also base64 of their bytes.",
        python=("PoolingOutput",),
        http={POOLING: ALWAYS},
    ),
    ResultField(
        "offsets",
        list[tuple[int, int] | None] | None,
        "Where each token stands in the text, in characters; null for tokens that were added, and as a whole where that is "
        "not known.",
        python=("PoolingRequestOutput",),
        http={POOLING: ON_REQUEST},
    ),
    ResultField("embedding", list[float], "The embedding of the text.", python=("EmbeddingOutput",)),
    ResultField("hidden_size", int, "How many numbers `embedding` has.", python=("EmbeddingOutput",)),
    ResultField(
        "document",
        dict,
        "The document as it was given; over HTTP an object with it as `text`, left out if `return_documents` is false.",
        python=("RankedDocument",),
        http={RERANK: NEEDED},
    ),
    ResultField(
        "relevance_score",
        float,
        "How well the document fits the query: what `score` is of a pair.",
        python=("RankedDocument",),
        http={RERANK: ALWAYS},
    ),
    ResultField("request_id", str, "The name of the request.", python=("RequestOutput",)),
    ResultField(
        "prompt_token_ids", list[int], "The tokens of the prompt, as the model saw them.", python=("RequestOutput",)
    ),
    ResultField("finished", bool, "True, as in vLLM.", python=("RequestOutput",)),
    ResultField(
        "num_cached_tokens",
        int,
        "How many of the prompt's tokens were not computed again.",
        python=("RequestOutput",),
    ),
    ResultField(
        "truncated",
        bool,
        "Whether the prompt was cut.",
        python=("RequestOutput",),
        rows={ANY_ROW: NEEDED},
        http={CLASSIFY: ON_REQUEST, SCORE: ON_REQUEST},
    ),
    ResultField(
        "error",
        str | None,
        "Why there is no result, or what of the row could not be stored.",
        python=("RequestOutput",),
        rows={ANY_ROW: NEEDED},
    ),
)


def row_types(kind: str) -> dict[str, Any]:
    """Each field that rows of a `kind` of model can have, with its type, in the order of the columns."""
    return {each.name: each.type for each in RESULT_FIELDS if kind in each.rows}


def fields_on_request(route: str) -> frozenset[str]:
    """The fields that a response has if the request sets a field of the same name."""
    return frozenset(each.name for each in RESULT_FIELDS if each.http.get(route) == ON_REQUEST)


def add_descriptions(schema: dict[str, Any]) -> None:
    """Describe the properties of a JSON schema that are fields of results, where the schema does not."""
    meanings = {each.name: each.meaning for each in RESULT_FIELDS}
    for name, each in schema.get("properties", {}).items():
        if name in meanings:
            each.setdefault("description", meanings[name])
