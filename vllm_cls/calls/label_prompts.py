"""Labels that a request names, put into the prompt of a model that is made for it: one prompt a text, a logit a label."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..decisions.heads import LabelHead, places_of, read_spans
from ..errors import ConfigError, PromptError
from ..inputs.prompts import Prompt
from ..outputs import ClassificationOutput, ClassificationRequestOutput
from .output_processor import not_finite
from .tasks import PoolingTask, TaskCall, task_call, texts_alone

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.loaded_model import LoadedModel
    from ..params import PoolingParams
    from ..runtime.engine import Result


def classify(
    loaded: LoadedModel,
    texts: Sequence[Prompt | PromptError],
    labels: Sequence[str],
    tokenization_kwargs: Mapping[str, Any] | None = None,
    *,
    multi_label: bool,
) -> TaskCall[ClassificationRequestOutput]:
    """A call that classifies texts by labels of the request.

    Args:
        texts: or why there is none.
        labels: each different.
        multi_label: each is true or not, whatever the others are; of a single label, always.

    Raises:
        ConfigError: a label cannot stand in a prompt.
    """
    head: Any = loaded.classifier.model
    try:
        prompts = [
            each if isinstance(each, PromptError) else replace(each, text=head.prompt(each.text, labels))
            for each in texts
        ]
    except ValueError as error:
        raise ConfigError(f"candidate_labels: {error}", "candidate_labels") from error
    finish = functools.partial(_classified, head, labels, multi_label)
    kind = PoolingTask("token_classify", finish, functools.partial(_placed, head, len(labels)))
    return task_call(loaded, kind, prompts, None, None, tokenization_kwargs, texts_alone(loaded))


def _placed(head: LabelHead, num_labels: int, prompt: Tokenized) -> Tokenized | PromptError:
    """A prompt that is pooled at the tokens that its labels are read from."""
    try:
        spans = head.reads(prompt.sequence.token_ids, num_labels)
    except ValueError as error:
        return PromptError(str(error))
    return replace(prompt, sequence=replace(prompt.sequence, pooled_at=tuple(places_of(spans))))


def _classified(
    head: LabelHead,
    labels: Sequence[str],
    multi_label: bool,
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: Callable[[], str],
) -> list[ClassificationRequestOutput | PromptError]:
    """Probabilities of each text's labels."""
    named = dict(enumerate(labels))
    outputs: list[ClassificationRequestOutput | PromptError] = []
    with loaded.engine.counters.timed("outputs"), torch.inference_mode():
        for each, result in zip(tokenized, results, strict=True):
            if isinstance(result, PromptError):
                outputs.append(result)
                continue
            ids = each.sequence.token_ids
            rows = result.row.to(loaded.engine.runner.device)
            read = read_spans(ids, head.reads(ids, len(labels)), rows)
            logits = loaded.pooler.calibrated(head.logits(ids, read).float().cpu())
            if not bool(logits.isfinite().all()):
                outputs.append(not_finite())
                continue
            probs = (logits.sigmoid() if multi_label or len(labels) == 1 else logits.softmax(-1)).tolist()
            answer = ClassificationOutput(probs, logits.tolist(), named, probs)
            outputs.append(ClassificationRequestOutput(next_id(), answer, list(ids), truncated=each.truncated))
    return outputs
