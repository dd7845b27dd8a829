"""What a model's folder says of its decisions: `decision.json` and `decision_template.jinja`, read by transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.decision import DecisionConfig

FILE, TEMPLATE = "decision.json", "decision_template.jinja"


def has_settings(folder: Path) -> bool:
    """Whether a folder says that its model is for decisions."""
    return (folder / FILE).is_file() or (folder / TEMPLATE).is_file()


def read_settings(folder: Path, name: str) -> DecisionConfig:
    """The settings in a folder; transformers' defaults where there are none.

    Args:
        name: of the model, for errors.

    Raises:
        ModelError: a file cannot be read, or holds what it may not.
        ConfigError: transformers is too old.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        from transformers.decision import DecisionConfig
    except ImportError as error:
        raise ConfigError("decisions need transformers 5.23 or newer; pip install -U transformers.") from error

    try:
        settings = DecisionConfig.from_file(folder / FILE if (folder / FILE).is_file() else None)
        if (folder / TEMPLATE).is_file():
            settings.chat_template = (folder / TEMPLATE).read_text(encoding="utf-8")
        _ = settings.logits_processors  # a temperature that is none is refused now
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: {FILE} or {TEMPLATE} cannot be read ({reason}); correct it.") from error
    return settings


def check_questions(
    settings: DecisionConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Mapping[str, Any],
    *,
    by_labels: bool,
) -> None:
    """Raise `ConfigError` unless these questions can be asked of a model.

    Args:
        by_labels: they are answered by label tokens, which have to be single ones.
    """
    from jinja2 import TemplateError
    from transformers.decision import label_token_ids

    if tokenizer is None:
        raise ConfigError("questions need the model's tokenizer, which is not in its folder; give one.")
    try:
        prompts = settings.prepare_inputs({"state": "", "questions": dict(questions)}, copy.deepcopy(tokenizer))
        for _, asked in prompts if by_labels else ():
            for question in asked:
                label_token_ids(tokenizer, tuple(question.labels))
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(f"questions: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Why transformers reads no request, in words that say what to do."""
    if isinstance(error, json.JSONDecodeError):
        return f"a request that is a text has to be JSON ({error})."
    reason = str(error).strip("'\"") or type(error).__name__
    if "chat_template" in reason and "not set" in reason:
        return (
            f"this model's tokenizer has no chat template, in which a question would be asked; put a {TEMPLATE} beside the model "
            "(vcls convert --questions … --decision-template FILE writes it), or give a chat template (chat_template=…), or take "
            "a model for chats."
        )
    return reason


def label_ids(settings: DecisionConfig, tokenizer: PreTrainedTokenizerBase | None, name: str) -> list[int]:
    """The token ids of all labels that a question can have, each once; a label of several tokens is left out.

    Raises:
        ConfigError: there is no tokenizer, or no label is one token.
    """
    from transformers.decision import Question, label_token_ids

    if tokenizer is None:
        raise ConfigError(f"{name}: decisions need the model's tokenizer, which is not in its folder; give one.")
    found: dict[int, None] = {}
    for kind in Question.questions_types:
        for label in _labels(settings, kind):
            try:
                found[label_token_ids(tokenizer, (label,))[0]] = None
            except ValueError:  # a question that needs it is refused
                continue
    if not found:
        raise ConfigError(f"{name}: no label of its decisions is one token of its tokenizer; give others in {FILE}.")
    return list(found)


def _labels(settings: DecisionConfig, kind: str) -> list[str]:
    """The labels of a question type, as many as there are."""
    from transformers.decision import Question

    if settings.labels.get(kind):
        return list(settings.labels[kind])
    most = {"noul": None, "choice": dict.fromkeys(map(str, range(26))), "score": list(map(str, range(26)))}
    question = {"type": kind, **({} if most[kind] is None else {"criteria": most[kind]})}
    return list(Question.from_request(kind, question, settings).labels)
