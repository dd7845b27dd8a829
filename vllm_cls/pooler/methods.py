"""Pooling methods over hidden states of many sequences.

Sequence `i` is `hidden[starts[i] : starts[i] + lengths[i]]`, whether the rows were packed (no gaps)
or come from a padded batch (gaps between sequences, which no method reads).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..errors import ConfigError

PoolingMethod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def cls_pool(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The first token's state: `(num_rows, hidden)` → `(num_sequences, hidden)`."""
    return hidden[starts]


def last_pool(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The last token's state, by length: a prompt that ends in pad or eos is pooled there all the same."""
    return hidden[starts + lengths - 1]


def mean_pool(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The mean over all of a prompt's tokens, special ones included, in float32 (as vLLM and Sentence Transformers)."""
    pooled = [
        hidden[start : start + length].float().mean(dim=0)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    return torch.stack(pooled)


def max_pool(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The largest value of each dimension (Sentence Transformers' "max")."""
    return torch.stack([rows.amax(dim=0) for rows in all_tokens(hidden, starts, lengths)])


def mean_sqrt_len_pool(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The sum over the tokens, by the square root of their number (Sentence Transformers' "mean_sqrt_len_tokens")."""
    return mean_pool(hidden, starts, lengths) * lengths.to(hidden.device).float().sqrt()[:, None]


def weighted_mean_pool(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The mean weighted by places, 1 for the first token (Sentence Transformers' "weightedmean", SGPT)."""
    pooled = []
    for rows in all_tokens(hidden, starts, lengths):
        weights = torch.arange(1, len(rows) + 1, device=hidden.device, dtype=torch.float32)
        pooled.append(weights @ rows.float() / weights.sum())
    return torch.stack(pooled)


POOLING_METHODS: dict[str, PoolingMethod] = {
    "CLS": cls_pool,
    "LAST": last_pool,
    "MEAN": mean_pool,
    "MAX": max_pool,
    "MEAN_SQRT_LEN": mean_sqrt_len_pool,
    "WEIGHTED_MEAN": weighted_mean_pool,
}


def named(pooling: str, methods: Mapping[str, PoolingMethod]) -> PoolingMethod:
    """The method of a name, or of several joined by "+", which concatenates their results.

    Raises:
        ConfigError: there is none of that name.
    """
    unknown = [name for name in pooling.split("+") if name not in methods]
    if unknown:
        raise ConfigError(f"pooling {unknown[0]!r} is unknown; use one of {', '.join(methods)}.")
    chosen = [methods[name] for name in pooling.split("+")]
    if len(chosen) == 1:
        return chosen[0]
    return lambda hidden, starts, lengths: torch.cat([each(hidden, starts, lengths) for each in chosen], dim=-1)


def all_tokens(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    """Every token's row: one `(num_tokens, width)` a sequence."""
    return [hidden[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]


def every_token(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Every token's row, one sequence after the other: `(num_rows, width)` → `(num_tokens, width)`."""
    return torch.cat(all_tokens(hidden, starts, lengths))


def step_rows(
    rows: torch.Tensor,
    token_ids: Sequence[int],
    step_tag_id: int | None,
    returned_token_ids: Sequence[int] | None,
) -> torch.Tensor:
    """STEP: keep the columns `returned_token_ids`, then the rows whose token is `step_tag_id` (vLLM's StepPool).

    Args:
        rows: `(num_tokens, num_labels)` of one sequence.
        token_ids: its token ids.
    """
    if returned_token_ids:
        if not all(0 <= column < rows.shape[1] for column in returned_token_ids):
            raise ConfigError(
                f"returned_token_ids={list(returned_token_ids)} must be columns, 0 to {rows.shape[1] - 1}."
            )
        rows = rows[:, list(returned_token_ids)]
    if step_tag_id is not None:
        rows = rows[torch.tensor(token_ids, device=rows.device) == step_tag_id]
    return rows
