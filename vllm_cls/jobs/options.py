"""What a job over files asks of a model, whatever the files and whoever runs the model; and how the job runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..calls.candidates import Candidates
from ..errors import ConfigError, JobError
from .report.progress import JobProgress
from .results.decision_columns import DecisionColumns
from .results.result_columns import KeptFields, ResultColumns
from .rows import PromptFields

OnProgress = Callable[[JobProgress], None]

_NOTED_APART = ("prompts", "results", "answers", "candidates")
_NOT_WITH_CANDIDATES = (
    "text_pair_field",
    "messages_field",
    "image_field",
    "video_field",
    "use_activation",
    "head_name",
)
_NEEDS_PROBABILITIES = "label_field needs probabilities, and without activation there are none; drop one."


@dataclass(frozen=True)
class JobOptions:
    """The options of `classify_file` that say what a row of results holds; another process can be sent them.

    Args:
        prompts: how a row's prompt is read.
        results: what a row of results holds, of a model that classifies texts.
        answers: the same where questions are asked of it; else None.
        candidates: labels in place of the model's own; or None.

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
    candidates: Candidates | None = None

    def __post_init__(self) -> None:
        if self.long_text not in ("truncate", "error"):
            raise ConfigError(f"long_text={self.long_text!r} is unknown; use 'truncate' or 'error'.")
        if self.truncation_side not in (None, "left", "right"):
            raise ConfigError(f"truncation_side={self.truncation_side!r} is unknown; use 'left' or 'right'.")
        self.shape({}, None, self.use_activation is not False)  # refuses what cannot be
        if self.label_field is not None and self.use_activation is False:
            raise ConfigError(_NEEDS_PROBABILITIES)
        strays = [each for each in self.of_whole_texts if each in _NOT_WITH_CANDIDATES]
        if self.candidates is not None and strays:
            raise ConfigError(f"{', '.join(strays)}: not with candidate_labels, which are for one text; leave it out.")

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
        options = {name: value for name, value in vars(self).items() if name not in _NOTED_APART}
        candidates = {} if self.candidates is None else self.candidates.arguments
        return {**options, **candidates, "fields": asdict(self.prompts), "results": self.results.__name__}


@dataclass(frozen=True)
class RunOptions:
    """The options of `classify_file` that say how a job runs; what a row of results holds does not depend on them.

    Args:
        rows_of_a_part: what a killed job computes again at most; None is as of jobs over rows.

    Raises:
        ConfigError: one of them is wrong.
    """

    format: str | None = None
    overwrite: bool = False
    restart: bool = False
    on_error: str = "continue"
    max_errors: int | None = None
    on_progress: OnProgress | None = None
    delimiter: str | None = None
    encoding: str | None = None
    report: str | os.PathLike[str] | None = None
    rows_of_a_part: int | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("continue", "fail"):
            raise ConfigError(f"on_error={self.on_error!r} is unknown; use 'continue' or 'fail'.")
        if self.max_errors is not None and (self.max_errors < 0 or self.on_error == "fail"):
            raise ConfigError(
                f"max_errors={self.max_errors} must be 0 or more, and on_error='fail' is max_errors=0; drop one."
            )

    @property
    def page(self) -> Path | None:
        """Where the report goes."""
        return None if self.report is None else Path(self.report)

    def check_report(self, options: JobOptions, files: Iterable[str | None]) -> None:
        """Refuse a report that cannot be, before anything runs.

        Args:
            files: the inputs and the output, which it must not replace; None is standard output.

        Raises:
            ConfigError: there is nothing to report, or nothing to draw it.
            JobError: it cannot be written there.
        """
        page = self.page
        if page is None:
            return
        if options.label_field is None:
            raise ConfigError("report compares with true labels; name their field with --label-field (label_field=…).")
        if not page.parent.is_dir() or page.is_dir():
            raise JobError(f"the report {page} cannot be written: name a file in a folder that exists.")
        if os.path.realpath(page) in (os.path.realpath(file) for file in files if file is not None):
            raise JobError(
                f"the report {page} is also the output or an input, and would replace it; choose another name."
            )
        if page.exists() and not self.overwrite:
            raise JobError(f"the report {page} is there already; --overwrite (overwrite=True) replaces it.")
        from .report.plots import check_installed

        check_installed()

    @property
    def most_errors(self) -> float:
        """How many rows may fail."""
        if self.max_errors is None:
            return 0 if self.on_error == "fail" else math.inf
        return self.max_errors
