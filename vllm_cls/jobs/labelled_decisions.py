"""Labelled rows that questions are asked about: for `convert --questions --calibrate`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..calls.decisions import decide_each
from ..errors import ConfigError, PromptError
from ..evaluation import ClassificationMetrics, measured, probabilities
from ..parsing.labels import is_missing
from .decide import DecisionFields, measured_field
from .formats.files import find_sources
from .formats.readers import read_rows
from .results.decision_columns import DecisionColumns
from .training import TrainingRows, read_labels

if TYPE_CHECKING:
    from transformers.decision import DecisionConfig

    from ..model.loaded_model import LoadedModel
    from ..outputs import Decision

_WARM = 64.0
"""A temperature at which no probability is rounded to 0 or 1, so that their logarithms are the scores of the options."""


@dataclass(frozen=True)
class LabelledAnswers:
    """The answers to the questions of one type, with the true ones.

    Args:
        probabilities: of each answer's options, at the temperature `_WARM`.
        gold: the index of the true option.
    """

    probabilities: list[list[float]] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)

    def logits(self) -> Any:
        """The scores of the options before any temperature, `(num_answers, most_options)`; -inf where there are fewer."""
        import numpy as np

        found = np.full((len(self.gold), max(map(len, self.probabilities))), -np.inf)
        for row, each in zip(found, self.probabilities, strict=True):
            row[: len(each)] = np.log(each) * _WARM
        return found

    def metrics(self, logits: Any) -> ClassificationMetrics:
        """What was right of answers with these logits; those of `logits` divided by a temperature, or so."""
        names = [str(index) for index in range(logits.shape[1])]
        return measured((probabilities(row, None) for row in logits.tolist()), self.gold, names)


def labelled_answers(
    loaded: LoadedModel,
    settings: DecisionConfig,
    questions: Mapping[str, Any],
    path: str,
    state_field: str | None,
    columns: Mapping[str, str],
) -> tuple[dict[str, LabelledAnswers], list[str]]:
    """The answers to a file's rows by the questions' types, of those whose truth is known; and what is to be said of the file.

    Args:
        loaded: opened for decisions.
        settings: with which it is asked, but for the temperatures.
        columns: of true answers, by question.

    Raises:
        ConfigError: no row has a true answer, or one is none of a question's.
        JobError: the file cannot be read.
    """
    notes, kept, states = list[str](), [], []
    fields = DecisionFields(state_field, questions=questions, hidden=[*columns.values(), *questions])
    for row in read_rows(find_sources(path), notes):
        truth = {name: row.fields.get(column) for name, column in columns.items()}
        if all(_no_label(value) for value in truth.values()):
            continue
        kept.append((row.place, truth))
        states.append(fields.prompt(row.fields, row.folder))
    if not kept:
        raise ConfigError(
            f"--calibrate {path}: no row has a true answer; name its columns as the questions ({', '.join(questions)}), or "
            "--label-field NAME=COLUMN,…"
        )
    answers = _asked(loaded, settings, states)
    found = dict[str, LabelledAnswers]()
    for name in columns:
        used = [(place, truth[name], each) for (place, truth), each in zip(kept, answers, strict=True)]
        used = [each for each in used if not _no_label(each[1]) and not isinstance(each[2], PromptError)]
        if used:
            _add(found.setdefault(questions[name]["type"], LabelledAnswers()), DecisionColumns(questions, name), used)
    failed = [
        f"{place}: {each}" for (place, _), each in zip(kept, answers, strict=True) if isinstance(each, PromptError)
    ]
    if failed:
        notes.append(f"{len(failed)} rows of {path} were left out; the first: {failed[0]}")
    return found, notes


def truth_columns(label_field: str | None, questions: Mapping[str, Any]) -> dict[str, str]:
    """The columns of true answers: `NAME=COLUMN,…`, or those that are called as the questions.

    Raises:
        ConfigError: it has another form, or there is no such question.
    """
    if label_field is None:
        return {name: name for name in questions}
    pairs = [measured_field(each.strip(), questions) for each in label_field.split(",")]
    return {str(name): str(column) for name, column in pairs}


def _asked(loaded: LoadedModel, settings: DecisionConfig, requests: Sequence[Any]) -> list[Decision | PromptError]:
    """The answers at the temperature `_WARM`."""
    assert loaded.decisions is not None
    warm = dataclasses.replace(settings, temperature=dict.fromkeys(("noul", "choice", "score"), _WARM))
    asked = dataclasses.replace(loaded, decisions=dataclasses.replace(loaded.decisions, settings=warm))
    return list(decide_each(asked, requests, map(str, itertools.count()).__next__))


def _add(answers: LabelledAnswers, columns: DecisionColumns, used: Sequence[tuple[str, Any, Any]]) -> None:
    """Answers to one question."""
    rows = TrainingRows([], [value for _, value, _ in used], [], [place for place, _, _ in used])
    names = [*columns.labels.values()]
    read = read_labels(rows, names, None, "--calibrate", f"the answers to {columns.measured!r}")
    answers.gold.extend(read.targets)
    answers.probabilities.extend(columns.probabilities(each) for _, _, each in used)


def _no_label(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())
