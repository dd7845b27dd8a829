"""Rows of results: the model's output as named columns, after fields of the input."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError
from ...result_fields import ANY_ROW, MULTI, REGRESSION, SINGLE, STEPS, TOKENS, row_types

if TYPE_CHECKING:
    from ...outputs import ClassificationOutput, PoolingOutput, RequestOutput, TokenClassificationOutput

NO_PROBABILITIES = (
    "the activation that the model's config names gives none; for those of its labels, open it with --hf-overrides "
    '\'{"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}\''
)
TRUNCATED = "truncated"
ERROR = "error"
ADDED_TYPES = row_types(ANY_ROW)
"""Of `truncated` and `error`, which rows have on top where they are needed."""


class RowResults(NamedTuple):
    """What a job found of one row, as JSON holds it.

    Args:
        columns: of the results; None of a row that has none.
        error: why it has none, or None.
        truncated: whether its text was cut.
        measured: probabilities, or the value of a regression, to compare with the true label; None where nothing is measured.
        tokens: of its prompt.
    """

    columns: dict[str, Any] | None
    error: str | None = None
    truncated: bool = False
    measured: list[float] | None = None
    tokens: int = 0


@dataclass(frozen=True)
class ResultColumns:
    """Which results a row has, and how they are made of a model's answer.

    Args:
        id2label: the names of the labels.
        problem_type: as in transformers, or None.
        threshold: probability from which a label of a multi-label model is given.
        top_k: so many labels with their probabilities, the most probable first; None leaves them out.
        scores: a map label → probability.
        logits: the logits, in the order of the labels' indices.
        use_activation: False gives `logits` in place of every probability.
        gives_probabilities: whether the model's own activation does; if not, there are `logits`, too.

    Raises:
        ConfigError: options that do not go together, or a number out of its range.
    """

    id2label: Mapping[int, str]
    problem_type: str | None = None
    threshold: float = 0.5
    top_k: int | None = None
    scores: bool = False
    logits: bool = False
    use_activation: bool = True
    gives_probabilities: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} must be a probability, from 0 to 1.")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1.")
        wants = "top_k" if self.top_k is not None else "scores" if self.scores else None
        if wants and self.problem_type == "regression":
            raise ConfigError(f"{wants} gives probabilities of labels, and this model is a regression; leave it out.")
        if wants and not self.use_activation:
            raise ConfigError(f"{wants} gives probabilities, and without activation there are none; drop one.")
        if wants and not self.gives_probabilities:
            raise ConfigError(f"{wants} gives probabilities, and {NO_PROBABILITIES}.")

    @property
    def multi_label(self) -> bool:
        return self.problem_type == "multi_label_classification"

    @property
    def regression(self) -> bool:
        return self.problem_type == "regression"

    @property
    def with_probabilities(self) -> bool:
        """Whether the model's answers are probabilities, of which there may be a `score`."""
        return self.use_activation and self.gives_probabilities

    @property
    def kind(self) -> str:
        """What the model is, as `ResultField.rows` has it."""
        return REGRESSION if self.regression else MULTI if self.multi_label else SINGLE

    @functools.cached_property
    def types(self) -> Mapping[str, Any]:
        """The columns of every row, in their order, with their types; `ADDED_TYPES` come on top."""
        wanted = {
            "probs": self.with_probabilities,
            "logits": self.logits or not (self.with_probabilities or self.regression),
            "top_k": self.top_k is not None,
            "scores": self.scores,
        }
        types = {name: kind for name, kind in row_types(self.kind).items() if wanted.get(name, True)}
        if "value" in types:
            types["value"] = list[float] if len(self.id2label) > 1 else float
        return types

    def empty(self) -> dict[str, Any]:
        """The results of a row that has none."""
        return dict.fromkeys(self.types)

    def row(self, output: RequestOutput[ClassificationOutput]) -> dict[str, Any]:
        """The results of one answer; `output.outputs` is set.

        Raises:
            ValueError: the model gave a number that is not finite.
        """
        answer = output.outputs
        probs = list(answer.probs)
        if not all(map(math.isfinite, probs)):
            raise ValueError(f"the model gave {probs}, which is not finite; its weights or its dtype are at fault")
        found: dict[str, Any] = {"label": answer.label, "logits": list(answer.logits if self.use_activation else probs)}
        if self.regression:
            found["value"] = probs[0] if len(probs) == 1 else probs
        elif self.with_probabilities:
            found["probs"] = probs
            found["labels"] = [self._name(i) for i, prob in enumerate(probs) if prob >= self.threshold]
            found["score"] = max(probs)
            ranked = sorted(range(len(probs)), key=lambda i: -probs[i])[: self.top_k]
            found["top_k"] = [{"label": self._name(i), "score": probs[i]} for i in ranked]
            found["scores"] = {self._name(i): prob for i, prob in enumerate(probs)}
        return {name: found.get(name) for name in self.types}

    def _name(self, index: int) -> str:
        return self.id2label.get(index, f"LABEL_{index}")


@dataclass(frozen=True)
class SpanColumns:
    """What a row of a token classifier's results has: `spans`, a list of `{label, score, start, end, word}`."""

    @property
    def types(self) -> Mapping[str, Any]:
        """The columns with their types."""
        return row_types(TOKENS)

    def empty(self) -> dict[str, Any]:
        """The results of a row that has none."""
        return dict.fromkeys(self.types)

    def row(self, output: RequestOutput[TokenClassificationOutput]) -> dict[str, Any]:
        """The results of one answer; `output.outputs` is set."""
        return {"spans": [asdict(each) for each in output.outputs.spans]}


@dataclass(frozen=True)
class StepColumns:
    """What a row of a process reward model's results has: `steps`, a list of `{score, probs}`.

    `score` is the last label's probability, that of a good step; without activation, `{score, logits}`.

    Args:
        use_activation: False gives logits.
    """

    use_activation: bool

    @property
    def types(self) -> Mapping[str, Any]:
        """The columns with their types."""
        return row_types(STEPS)

    def empty(self) -> dict[str, Any]:
        """The results of a row that has none."""
        return dict.fromkeys(self.types)

    def row(self, output: RequestOutput[PoolingOutput]) -> dict[str, Any]:
        """The results of one answer; `output.outputs` is set.

        Raises:
            ValueError: the text has no step.
        """
        rows = output.outputs.data.tolist()
        if not rows:
            raise ValueError("the text has no step: none of its tokens is the one that ends a step (step_tag_id)")
        numbers = "probs" if self.use_activation else "logits"
        return {"steps": [{"score": row[-1], numbers: row} for row in rows]}


@dataclass
class KeptFields:
    """Which fields of the input a row of results begins with.

    A field that has the name of a result column is kept under `input_` and its name, and noted in `renamed`.

    Args:
        keep: "all", "none", or names.
        reserved: the names of the result columns.
    """

    keep: str | Sequence[str]
    reserved: Sequence[str]
    renamed: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        names = [name.strip() for name in self.keep.split(",")] if isinstance(self.keep, str) else list(self.keep)
        self._all = names == ["all"]
        self._names = [] if names in (["all"], ["none"]) else [name for name in names if name]
        self._reserved = frozenset(self.reserved)

    def output_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields kept of one row, under the names that they have in the output."""
        if self._all:
            if self._reserved.isdisjoint(fields):
                return dict(fields)
            return {self.name(name, fields): value for name, value in fields.items()}
        self.seen.update(name for name in self._names if name in fields)
        return {self.name(name, fields): fields[name] for name in self._names if name in fields}

    def name(self, name: str, fields: Mapping[str, Any] | Sequence[str]) -> str:
        """The name in the output of the field `name` of a row with `fields`."""
        if name not in self._reserved:
            return name
        new = self.renamed.get(name, f"input_{name}")
        others = {given for of, given in self.renamed.items() if of != name}
        while new in fields or new in self._reserved or new in others:
            new = f"input_{new}"
        self.renamed[name] = new
        return new

    def mapping(self, known: Sequence[str]) -> dict[str, str]:
        """The kept ones of the input's columns, each with its name in the output."""
        names = known if self._all else [name for name in self._names if name in known]
        return {name: self.name(name, known) for name in names}

    @property
    def named(self) -> list[str]:
        """The fields that `keep` names."""
        return self._names

    @property
    def never_seen(self) -> list[str]:
        """Fields that `keep` names and that no row had."""
        return [name for name in self._names if name not in self.seen]
