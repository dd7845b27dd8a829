"""`convert --questions`: a model with the questions that it answers, and the settings of its decisions, beside its weights."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architecture import ConversionPlan
from ..config import ModelConfig, RuntimeConfig, has_own_code
from ..decisions.settings import check_questions
from ..errors import ConfigError, ModelError
from ..jobs.decide import QUESTIONS
from ..jobs.labelled_decisions import LabelledAnswers, labelled_answers
from ..model.loading.head_choice import answers_questions
from ..model.loading.source import ModelSource
from ..pooler.calibration import FOLDS, fit, held_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.decision import DecisionConfig

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_KEPT = ("generation_config.json",)  # it stays a language model

_CARD = """# {name}

{base} answers typed questions about a state, with a probability for every option: {questions}.

```sh
vcls decide {name} rows.jsonl -o decided.jsonl
```

```python
import json
import transformers

questions = json.load(open("{name}/questions.json"))
decide = transformers.pipeline("decision", "{name}")
decide({{"state": "…", "questions": questions}})
```
"""


def settings_for(
    source: ModelSource, questions: Mapping[str, Any], template: str | os.PathLike[str] | None
) -> DecisionConfig:
    """The settings of a model's decisions, with another template where one is given.

    Args:
        template: a file with the Jinja that transformers' decisions are rendered with; None keeps the model's, or the default.

    Raises:
        ConfigError: the template or the questions are not for this model, or it answers none.
    """
    if source.decisions is None or not answers_questions(source):
        raise ConfigError(f"{source.checkpoint.name} answers no questions; take a language model.")
    _own_class(source)  # before a template that it may lack
    changed: dict[str, Any] = {"adapter": None}  # which is merged
    if template is not None:
        try:
            changed["chat_template"] = Path(template).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"--decision-template {template} cannot be read: {_reason(error)}.") from error
    settings = dataclasses.replace(source.decisions, **changed)
    check_questions(settings, source.tokenizer, questions, by_labels=not source.is_decision_model)
    return settings


def decision_plan(
    source: ModelSource, settings: DecisionConfig, questions: Mapping[str, Any], out: Path
) -> ConversionPlan:
    """What to write: the model as it is, with its adapter merged, and the files of its decisions.

    Raises:
        ModelError: it is no language model and no decision model of transformers'.
    """
    name = out.resolve().name
    card = _CARD.format(
        name=name, base=f"`{source.checkpoint.name}`", questions=", ".join(f"`{each}`" for each in questions)
    )
    return ConversionPlan(
        checkpoint=source.checkpoint,
        config=source.config,
        classifier_class=_own_class(source),
        head_tensors=None,
        out=out,
        card=card,
        files=_files(source, settings, questions),
        adapter=source.adapter,
    )


def calibrated(
    options: ModelConfig,
    budget: int | None,
    settings: DecisionConfig,
    questions: Mapping[str, Any],
    path: str,
    state_field: str | None,
    columns: Mapping[str, str],
    seed: int,
) -> tuple[DecisionConfig, dict[str, Any], list[str]]:
    """The settings with a temperature for each type of question, where that improves the log loss of answers held out.

    Args:
        options: of the model, which runs over the rows.
        path: of labelled rows; `state_field` and `columns` say what they are, as for `labelled_answers`.

    Returns:
        The settings; what was measured by type; and what is to be said of the file.

    Raises:
        ConfigError: too few rows have a true answer.
    """
    from ..model.model_handle import OpenModel  # the runtime, which other conversions do without
    from ..model.parallel.opening import open_model

    with OpenModel(open_model(options, RuntimeConfig(budget))) as opened:
        answers, notes = labelled_answers(opened._open, settings, questions, path, state_field, columns)
    temperature, report = dict(settings.temperature), {}
    for kind, each in answers.items():
        report[kind] = _fitted(kind, each, float(temperature.get(kind, 1.0)), seed)
        if report[kind]["kept"]:
            temperature[kind] = report[kind]["temperature"]
    return dataclasses.replace(settings, temperature=temperature), report, notes


def _fitted(kind: str, answers: LabelledAnswers, temperature: float, seed: int) -> dict[str, Any]:
    """A temperature for answers that have another one now, and whether it improves those that it was not fitted on."""
    import numpy as np
    from sklearn.model_selection import KFold

    count = len(answers.gold)
    if count < FOLDS:
        raise ConfigError(f"--calibrate: {count} true answers to {kind} questions are too few; give {FOLDS} or more.")
    logits = answers.logits()
    gold = np.eye(logits.shape[1])[answers.gold]
    folds = list(KFold(FOLDS, shuffle=True, random_state=seed).split(logits))
    before, after = answers.metrics(logits / temperature), answers.metrics(held_out(logits, gold, folds, False))
    assert before.log_loss is not None and after.log_loss is not None  # of labels
    found: dict[str, Any] = {"rows": count, "kept": after.log_loss < before.log_loss}
    for name in ("log_loss", "calibration_error"):
        found |= {f"{name}_before": getattr(before, name), f"{name}_after": getattr(after, name)}
    return found | ({"temperature": 1 / fit(logits, gold, False).scale} if found["kept"] else {})


def mapped_elsewhere(source: ModelSource, out: Path) -> list[str]:
    """A warning for language models of which transformers' pipeline makes a decision model with a random head, by their path."""
    from transformers import MODEL_FOR_DECISION_MAPPING

    if source.is_decision_model or type(source.config) not in MODEL_FOR_DECISION_MAPPING:
        return []
    made, kind = MODEL_FOR_DECISION_MAPPING[type(source.config)].__name__, source.config.model_type
    return [
        f"transformers' pipeline, given the path of a {kind} model, makes a {made} with a random head of it; give it the model: "
        f"DecisionPipeline(model=AutoModelForCausalLM.from_pretrained({str(out)!r}), tokenizer=…)"
    ]


def _own_class(source: ModelSource) -> type[PreTrainedModel]:
    import transformers

    name = source.class_name
    if source.is_decision_model:  # the plugin's, under transformers' name
        return source.architecture.classifier_class(type(source.config))
    found: type[PreTrainedModel] | None = getattr(transformers, name, None)
    if has_own_code(source.config):
        raise ModelError(
            f"{source.checkpoint.name} has code of its own, which is not copied; put {QUESTIONS} beside it by hand."
        )
    if found is None or not name.endswith(_LANGUAGE_MODELS):
        raise ModelError(
            f"{source.checkpoint.name} is a {name or 'model without a class name'}, and questions are answered by a language "
            "model with its output layer, or a decision model."
        )
    return found


def _files(source: ModelSource, settings: DecisionConfig, questions: Mapping[str, Any]) -> dict[str, str]:
    """The files beside the weights, by their names."""
    kept = [source.checkpoint.folder / name for name in _KEPT]
    files = {path.name: path.read_text(encoding="utf-8") for path in kept if path.is_file()}
    with tempfile.TemporaryDirectory() as folder:
        settings.save_pretrained(folder)
        files |= {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    return files | {QUESTIONS: json.dumps(questions, indent=2, ensure_ascii=False) + "\n"}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
