"""Batches: many token sequences as one packed row, or as padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .row import KeyValues

if TYPE_CHECKING:
    from .lora import Adapter


@dataclass(frozen=True)
class TokenSequence:
    """One prompt as the model sees it.

    Args:
        token_ids: `(num_tokens,)`, at least one.
        position_ids: `(num_tokens,)`, numbered as the model numbers this sequence alone.
        token_type_ids: `(num_tokens,)`, or None where the model takes none.
        cache_salt: prompts of different salts share no keys and values (vLLM's name).
        adapter: LoRA adapter that it runs with, or None.
    """

    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None = None
    cache_salt: str | None = None
    adapter: Adapter | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Work:
    """One prompt for one forward.

    Args:
        sequence: the whole prompt.
        past: keys and values of its first tokens, computed earlier, which the forward need not compute; or None.
        keep: where keys and values of its first tokens go, or None.
    """

    sequence: TokenSequence
    past: KeyValues | None = None
    keep: KeyValues | None = None

    @property
    def num_cached_tokens(self) -> int:
        return self.past.num_tokens if self.past else 0

    def __len__(self) -> int:
        """Tokens that the forward computes."""
        return len(self.sequence) - self.num_cached_tokens


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


def packed_batch(works: Sequence[Work], device: torch.device) -> Batch:
    """All sequences in one row `(1, num_tokens)`, positions restarting; no padding.

    The mask of ones keeps transformers from finding the restarts itself and masking by global
    index; our attention knows where each sequence begins.
    """
    lengths = torch.tensor([len(each) for each in works])
    starts = lengths.cumsum(0) - lengths

    def row(name: str) -> torch.Tensor:
        return torch.tensor([[v for each in works for v in getattr(each.sequence, name)[each.num_cached_tokens :]]])

    inputs = {"input_ids": row("token_ids"), "position_ids": row("position_ids")}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if works[0].sequence.token_type_ids is not None:
        inputs["token_type_ids"] = row("token_type_ids")
    return Batch({name: to_device(value, device) for name, value in inputs.items()}, Layout(starts, lengths))


def padded_batch(works: Sequence[Work], device: torch.device, pad_token_id: int) -> Batch:
    """Rows `(num_sequences, longest)`, padded on the right under an attention mask; the model numbers the tokens."""
    sequences = [each.sequence for each in works]
    longest = max(len(each) for each in sequences)
    lengths = torch.tensor([len(each) for each in sequences])
    starts = torch.arange(len(sequences)) * longest

    def rows(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        padded = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values])
        return to_device(padded, device)

    inputs = {
        "input_ids": rows([each.token_ids for each in sequences], pad_token_id),
        "attention_mask": rows([[1] * len(each) for each in sequences], 0),
    }
    if sequences[0].token_type_ids is not None:
        inputs["token_type_ids"] = rows([each.token_type_ids or () for each in sequences], 0)
    return Batch(inputs, Layout(starts, lengths))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to where the model is; to a GPU from pinned memory, so that the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
