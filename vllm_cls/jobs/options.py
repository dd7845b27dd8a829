"""What a job over files asks of a model, whatever the files and whoever runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import ConfigError
from .decision_columns import DecisionColumns
from .results import KeptFields, ResultColumns
from .rows import PromptFields

_NEEDS_PROBABILITIES = "label_field needs probabilities, and without activation there are none; drop one."


@dataclass(frozen=True)
class JobOptions:
    """The options of `classify_file` that say what a row of results holds; another process can be sent them.

    Args:
        prompts: how a row's prompt is read.
        results: what a row of results holds, of a model that classifies texts.
        answers: the same where questions are asked of it; else None.

    Raises:
        ConfigError: one of them is wrong, whatever the model.
    """

    prompts: PromptFields = field(default_factory=PromptFields)
    results: type[ResultColumns] = ResultColumns
    keep_fields: str | Sequence[str] = "all"
    threshold: float = 0.5
    top_k: int | None = None
    scores: bool = False
    logits: bool = False
    use_activation: bool | None = None
    label_field: str | None = None
    head_name: str | None = None
    aggregation: str | None = None
    long_text: str = "truncate"
    truncation_side: str | None = None
    answers: DecisionColumns | None = None

    def __post_init__(self) -> None:
        if self.long_text not in ("truncate", "error"):
            raise ConfigError(f"long_text={self.long_text!r} is unknown; use 'truncate' or 'error'.")
        if self.truncation_side not in (None, "left", "right"):
            raise ConfigError(f"truncation_side={self.truncation_side!r} is unknown; use 'left' or 'right'.")
        self.shape({}, None, self.use_activation is not False)  # refuses what cannot be
        if self.label_field is not None and self.use_activation is False:
            raise ConfigError(_NEEDS_PROBABILITIES)

    def shape(
        self, id2label: Any, problem_type: str | None, use_activation: bool, gives_probabilities: bool = True
    ) -> ResultColumns:
        """The results of a row, of a model that classifies texts; the arguments are those of `ResultColumns`."""
        return self.results(
            id2label,
            problem_type,
            self.threshold,
            self.top_k,
            self.scores,
            self.logits,
            use_activation,
            gives_probabilities,
        )

    @property
    def fields(self) -> list[str]:
        """The fields that rows must have, but for the text, which a model's template can do without."""
        prompts = self.prompts
        named = [prompts.pair, prompts.messages, prompts.image, prompts.video, self.label_field]
        return [name for name in (*named, *KeptFields(self.keep_fields, ()).named) if name is not None]

    @property
    def of_whole_texts(self) -> list[str]:
        """The options given, by name, that mean nothing where tokens or steps of a text are classified."""
        given = {
            "text_pair_field": self.prompts.pair,
            "messages_field": self.prompts.messages,
            "image_field": self.prompts.image,
            "video_field": self.prompts.video,
            "threshold": None if self.threshold == 0.5 else self.threshold,
            "top_k": self.top_k,
            "scores": self.scores or None,
            "logits": self.logits or None,
            "use_activation": self.use_activation,
            "label_field": self.label_field,
            "head_name": self.head_name,
        }
        return [name for name, value in given.items() if value is not None]

    def noted(self) -> dict[str, Any]:
        """What the bytes of the output depend on, to compare with another run's."""
        options = {name: value for name, value in vars(self).items() if name not in ("prompts", "results", "answers")}
        return {**options, "fields": asdict(self.prompts), "results": self.results.__name__}
