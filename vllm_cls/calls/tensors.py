"""Answers that are tensors or numbers of them: of `LLM.encode`, `embed` and `reward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import PromptError
from ..outputs import EmbeddingOutput, EmbeddingRequestOutput, PoolingOutput, PoolingRequestOutput
from ..params import PoolingParams
from ..pooler.methods import step_rows
from .output_processor import NextId, not_finite

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.loaded_model import LoadedModel
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
        raise not_finite()
    if task == "embed":
        row = loaded.classifier.embedder.embed(row) if loaded.classifier.embedder is not None else row
        if (params.dimensions or 0) > len(row):
            raise PromptError(
                f"dimensions={params.dimensions}: embeddings of this model have {len(row)}.", "dimensions"
            )
        row = row[: params.dimensions]
        return torch.nn.functional.normalize(row, dim=-1) if loaded.pooler.activates(params.use_activation) else row
    head = loaded.head_of(params, sequence.adapter)
    data = head.pooler.finish(loaded.pooler.calibrated(row[..., head.columns]), params.use_activation)
    config = loaded.pooler.config
    if task == "token_classify" and config.tok_pooling_type == "STEP":
        tag = params.step_tag_id if params.step_tag_id is not None else config.step_tag_id
        return step_rows(data, sequence.token_ids, tag, params.returned_token_ids or config.returned_token_ids)
    return data


def encoded(
    task: str,
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: NextId,
) -> list[PoolingRequestOutput | PromptError]:
    """A tensor for each prompt; see `LLM.encode`."""
    outputs: list[PoolingRequestOutput | PromptError] = []
    with loaded.engine.counters.timed("outputs"):
        for each, result, asked in zip(tokenized, results, params, strict=True):
            try:
                data = finish_row(loaded, task, result, each.sequence, asked)
            except PromptError as error:
                outputs.append(error)
                continue
            outputs.append(
                PoolingRequestOutput(
                    next_id(),
                    PoolingOutput(data),
                    list(each.sequence.token_ids),
                    num_cached_tokens=result.num_cached_tokens,  # type: ignore[union-attr]  # else it was an error
                    truncated=each.truncated,
                    offsets=_offsets(each, len(data)) if task == "token_classify" else None,
                )
            )
    return outputs


def _offsets(tokenized: Tokenized, num_rows: int) -> list[tuple[int, int] | None] | None:
    """Where the tokens stand, if each has a row."""
    places = tokenized.places
    if places is None or len(places.offsets) != num_rows:
        return None
    return [None if special else offset for offset, special in zip(places.offsets, places.special, strict=True)]


def embedded(
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: NextId,
) -> list[EmbeddingRequestOutput | PromptError]:
    """The numbers of each text."""
    return [
        each
        if isinstance(each, PromptError)
        else EmbeddingRequestOutput(
            each.request_id,
            EmbeddingOutput(each.outputs.data.tolist()),
            each.prompt_token_ids,
            num_cached_tokens=each.num_cached_tokens,
            truncated=each.truncated,
        )
        for each in encoded("embed", loaded, tokenized, results, params, next_id)
    ]
