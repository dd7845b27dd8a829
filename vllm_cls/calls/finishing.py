"""From rows of the engine to what requests asked for: calibration, activation, normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import PromptError
from ..outputs import ClassificationOutput
from ..params import PoolingParams
from ..pooler.methods import step_rows

if TYPE_CHECKING:
    from ..model.loaded_model import LoadedModel
    from ..runtime.adapter import LoRAAdapter
    from ..runtime.batch import TokenSequence
    from ..runtime.engine import Result


def finish_row(
    loaded: LoadedModel, task: str, answer: Result, sequence: TokenSequence, params: PoolingParams
) -> torch.Tensor:
    """What one request gets of its row.

    Raises:
        PromptError: the model refused this prompt, or gave NaN or infinity for it.
    """
    if isinstance(answer, PromptError):
        raise answer
    row = answer.row
    if not bool(torch.isfinite(row).all()):
        raise _not_finite()
    if task == "embed":
        row = loaded.classifier.embedder.embed(row) if loaded.classifier.embedder is not None else row
        return torch.nn.functional.normalize(row, dim=-1) if loaded.pooler.activates(params.use_activation) else row
    head = loaded.head_of(params, sequence.adapter)
    data = head.pooler.finish(loaded.pooler.calibrated(row[..., head.columns]), params.use_activation)
    config = loaded.pooler.config
    if task == "token_classify" and config.tok_pooling_type == "STEP":
        tag = params.step_tag_id if params.step_tag_id is not None else config.step_tag_id
        return step_rows(data, sequence.token_ids, tag, params.returned_token_ids or config.returned_token_ids)
    return data


def finish_classes(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    answers: Sequence[Result],
    params: Sequence[PoolingParams],
) -> list[dict[str | None, ClassificationOutput] | PromptError]:
    """What each head gives each request of its logits, all at once: `finish_row` for the task of many small rows."""
    outputs: list[dict[str | None, ClassificationOutput] | PromptError] = list(answers)  # type: ignore[arg-type]
    places: dict[LoRAAdapter | None, list[int]] = {}
    for index, each in enumerate(answers):
        if not isinstance(each, PromptError):
            places.setdefault(sequences[index].adapter, []).append(index)
    for adapter, members in places.items():
        rows = torch.stack([answers[index].row for index in members])  # type: ignore[union-attr]
        logits = loaded.pooler.calibrated(rows)
        finite = torch.isfinite(logits).all(dim=-1).tolist()
        activated = [loaded.pooler.activates(params[index].use_activation) for index in members]
        found = {
            head.name: head.with_adapter(adapter).outputs(logits[:, head.columns], activated) for head in loaded.heads
        }
        for row, index in enumerate(members):
            by_head = {name: outputs_of[row] for name, outputs_of in found.items()}
            outputs[index] = by_head if finite[row] else _not_finite()
    return outputs


def _not_finite() -> PromptError:
    return PromptError("the model gives NaN or infinity for this prompt; try dtype='float32'.")
