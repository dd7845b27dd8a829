"""`decide_file`: each row is a state that questions are asked about; the same job as `classify_file`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError, nearest
from .media_fields import items_in
from .options import JobOptions, OnProgress, RunOptions
from .report.job_report import JobReport
from .results.decision_columns import ANSWER_TYPES, DecisionColumns
from .rows import PromptFields, missing
from .run import name_of, opened, run_job

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from .remote import RemoteModel


@dataclass(frozen=True)
class DecisionFields(PromptFields):
    """A row as a state.

    Args:
        text: the column that is the state; None is the whole row.
        questions: asked about every state.
        hidden: the columns that no state may have, those of true answers.
        image: the column of images, which the state has under the names `<COLUMN 1>`, `<COLUMN 2>` …
    """

    text: str | None = None
    questions: Mapping[str, Any] = field(default_factory=dict)
    hidden: Sequence[str] = ()

    def check(self, llm: LLM | RemoteModel) -> None:
        try:
            llm.decide({"state": "", "questions": self.questions})
        except PromptError as error:
            raise ConfigError(f"questions: {error}") from error
        if self.image is not None:
            self.reading(llm.media, templated=True)

    def prompt(self, fields: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
        for name in filter(None, (self.text, self.image)):
            if name not in fields:
                raise PromptError(missing(name, fields))
        whole = (
            {k: v for k, v in fields.items() if k not in self.hidden}
            if self.text is None
            else {self.text: fields[self.text]}
        )
        if self.image is None:
            return {"state": whole if self.text is None else fields[self.text], "questions": self.questions}
        items = items_in(self.image, fields[self.image], folder)
        assets = {f"<{self.image} {number}>": item for number, item in enumerate(items, start=1)}
        return {"state": {**whole, self.image: list(assets)}, "questions": self.questions, "assets": assets}


QUESTIONS = "questions.json"
"""The file in a model's folder with the questions that it is asked where no others are given."""


def given_questions(questions: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """Questions by name, or a file of them, checked as far as no model has to say."""
    asked = _checked(dict(questions), "questions") if isinstance(questions, Mapping) else read_questions(questions)
    _check_columns(asked)
    return asked


def _stored_questions(model: Any) -> dict[str, Any]:
    """The questions in a model's folder.

    Args:
        model: its folder, its GGUF file, or an open one.

    Raises:
        ConfigError: there are none.
    """
    name = name_of(model)
    files = getattr(model, "checkpoint_files", ())
    folder = Path(name).expanduser() if name is not None else files[0].parent if files else None
    if folder is not None and folder.is_file():  # a GGUF file
        folder = folder.parent
    if folder is None or not (folder / QUESTIONS).is_file():
        raise ConfigError(
            "there are no questions: give a file of them, --questions FILE (questions=…), or a model's folder with its own "
            f"({QUESTIONS}, which vcls convert --questions writes)."
        )
    return given_questions(folder / QUESTIONS)


def read_questions(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Questions by name, from a .json, .yaml or .yml file; they may stand under the key `questions`.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        """Names are texts, whatever YAML makes of true, yes or 1: so JSON has them, and the requests."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    key.tag = "tag:yaml.org,2002:str"
            return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"there is no file of questions {str(file)!r}; write one, .yaml or .json: a name, and below it the type (noul, choice "
            "or score), instructions and criteria (vcls decide --help shows one)."
        )
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"questions {file}: {' '.join(str(error).split())}") from error
    inner = found.get("questions") if isinstance(found, dict) else None
    return _checked(inner if isinstance(inner, dict) and "type" not in inner else found, str(file))


def _checked(questions: Any, where: str) -> dict[str, Any]:
    """Raise `ConfigError` unless these are questions by name; the rest is checked by what reads requests."""
    good = isinstance(questions, dict) and questions
    for name, question in questions.items() if good else ():
        kind = question.get("type") if isinstance(question, dict) else None
        if not isinstance(name, str) or kind not in ANSWER_TYPES:
            raise ConfigError(
                f"{where}: the question {name!r} needs a type: {', '.join(ANSWER_TYPES)}; it has {kind!r}."
            )
    if not good:
        raise ConfigError(f"{where} holds no questions: name → type, instructions, criteria.")
    return dict(questions)


def _check_columns(questions: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where two columns of the output would have one name."""
    taken = {"error": "the reason of a row that failed"}
    for name, question in questions.items():
        for column in (name + ending for ending in ANSWER_TYPES[question["type"]]):
            if column in taken:
                raise ConfigError(
                    f"the question {name!r} has a column {column!r}, which is {taken[column]}, too; rename it."
                )
            taken[column] = f"a column of the question {name!r}"


def measured_field(label_field: str | None, questions: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The question and the column of `NAME=COLUMN`.

    Raises:
        ConfigError: it has another form, or there is no such question.
    """
    if label_field is None:
        return None, None
    name, found, column = label_field.partition("=")
    if not found or not column:
        raise ConfigError(
            f"label_field={label_field!r} has the form NAME=COLUMN: a question, and the column of its answer."
        )
    if name not in questions:
        raise ConfigError(f"label_field={label_field!r}: there is no question {name!r}.{nearest(name, questions)}")
    return name, column


def decide_file(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    questions: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    state_field: str | None = None,
    label_field: str | None = None,
    image_field: str | None = None,
    keep_fields: str | Sequence[str] = "all",
    format: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_error: str = "continue",
    max_errors: int | None = None,
    on_progress: OnProgress | None = None,
    **llm_options: Any,
) -> JobReport:
    """Ask questions about the rows of files; the arguments are those of `vcls decide`.

    Each row of the output has the kept fields of its input, then `NAME` of each question: the probability of true (noul),
    the chosen option, or the score; and `NAME_confidence` and `NAME_probabilities` of the last two. All else is as for
    `classify_file`.

    Args:
        questions: name → `{"type": "choice" | "score" | "noul", "instructions", "criteria"}`, or a .json or .yaml file; None
            are those that the model's folder holds.
        state_field: the column that is the state; None is the whole row, without the column of the true answer.
        label_field: `NAME=COLUMN`: compare the answer to this question with this column (true or false, an option, or the
            number of a level), and give metrics in the report.
        image_field: the column of images, as for `classify_file`, for a model that reads them. The state has them in that
            column, under the names `<COLUMN 1>`, `<COLUMN 2>` …, which questions may use too.

    Raises:
        JobError, ConfigError, ModelError: as for `classify_file`; also for questions that the model cannot be asked.
    """
    named = isinstance(model, str | os.PathLike) or "convert" in llm_options
    if named and llm_options.get("convert", "auto") == "auto":
        llm_options["convert"] = "decide"
    how = RunOptions(format, overwrite, restart, on_error, max_errors, on_progress, delimiter, encoding)
    with contextlib.ExitStack() as at_the_end:
        if questions is None and isinstance(model, str | os.PathLike) and not os.path.exists(model):
            model = at_the_end.enter_context(opened(model, llm_options))  # of a hub id, the folder is known then
            llm_options = {}
        asked = _stored_questions(model) if questions is None else given_questions(questions)
        name, column = measured_field(label_field, asked)
        options = JobOptions(
            DecisionFields(state_field, image=image_field, questions=asked, hidden=() if column is None else (column,)),
            keep_fields=keep_fields,
            label_field=column,
            answers=DecisionColumns(asked, name),
        )
        return run_job(model, inputs, output, options, how, llm_options)
