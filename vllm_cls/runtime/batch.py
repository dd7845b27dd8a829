"""Batches: many token sequences as one packed row, or as padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TokenSequence:
    """One prompt as the model sees it.

    Args:
        token_ids: `(num_tokens,)`, at least one.
        position_ids: `(num_tokens,)`, numbered as the model numbers this sequence alone.
        token_type_ids: `(num_tokens,)`, or None where the model takes none.
    """

    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Layout:
    """Where each sequence's rows are among the batch's: `rows[starts[i] : starts[i] + lengths[i]]`."""

    starts: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward and the layout of its rows, flattened to `(num_rows, hidden)`."""

    inputs: dict[str, Any]
    layout: Layout


def packed_batch(sequences: Sequence[TokenSequence], device: torch.device) -> Batch:
    """All sequences in one row `(1, num_tokens)`, positions restarting; no padding.

    The mask of ones keeps transformers from finding the restarts itself and masking by global
    index; our attention knows where each sequence begins.
    """
    lengths = torch.tensor([len(each) for each in sequences])
    starts = lengths.cumsum(0) - lengths
    inputs = {
        "input_ids": torch.tensor([[t for each in sequences for t in each.token_ids]]),
        "position_ids": torch.tensor([[p for each in sequences for p in each.position_ids]]),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if sequences[0].token_type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([[t for each in sequences for t in each.token_type_ids or ()]])
    return Batch({name: value.to(device) for name, value in inputs.items()}, Layout(starts, lengths))


def padded_batch(sequences: Sequence[TokenSequence], device: torch.device, pad_token_id: int) -> Batch:
    """Rows `(num_sequences, longest)`, padded on the right under an attention mask; the model numbers the tokens."""
    longest = max(len(each) for each in sequences)
    lengths = torch.tensor([len(each) for each in sequences])
    starts = torch.arange(len(sequences)) * longest

    def rows(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values]).to(device)

    inputs = {
        "input_ids": rows([each.token_ids for each in sequences], pad_token_id),
        "attention_mask": rows([[1] * len(each) for each in sequences], 0),
    }
    if sequences[0].token_type_ids is not None:
        inputs["token_type_ids"] = rows([each.token_type_ids or () for each in sequences], 0)
    return Batch(inputs, Layout(starts, lengths))
