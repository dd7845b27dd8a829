"""Batches: many token sequences as one packed row, or as padded rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .row import KeyValues

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..architecture import Architecture
    from .adapter import LoRAAdapter


@dataclass(frozen=True)
class TokenSequence:
    """One prompt as the model sees it.

    Args:
        token_ids: `(num_tokens,)`, at least one.
        position_ids: `(num_tokens,)`, numbered as the model numbers this sequence alone.
        token_type_ids: `(num_tokens,)`, or None where the model takes none.
        cache_salt: prompts of different salts share no keys and values (vLLM's name).
        adapter: LoRA adapter that it runs with, or None.
        decoder_ids: `(num_tokens,)`, what the decoder of an encoder-decoder reads, or None.
        num_behind: tokens at the end that are not pooled.
        exact: run by the float32 products of a model whose products are int8.
    """

    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None = None
    cache_salt: str | None = None
    adapter: LoRAAdapter | None = None
    decoder_ids: tuple[int, ...] | None = None
    num_behind: int = 0
    exact: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)

    def skipping(self, pad_token_id: int | None) -> TokenSequence:
        """The same, pooled before the pad tokens at its end, by a head that looks for its last token so."""
        if pad_token_id is None or self.token_ids[-1] != pad_token_id:
            return self
        behind = sum(1 for _ in itertools.takewhile(pad_token_id.__eq__, reversed(self.token_ids)))
        return replace(self, num_behind=min(behind, len(self) - 1))  # of nothing but pad tokens, the first


def token_sequence(
    architecture: Architecture, config: PreTrainedConfig, ids: Sequence[int], types: Sequence[int] | None
) -> TokenSequence:
    """A prompt with all that an architecture derives of its token ids.

    Args:
        types: token types, or None where the model takes none.
    """
    decoder_ids = architecture.decoder_ids(config, ids)
    return TokenSequence(
        tuple(ids),
        tuple(architecture.position_ids(config, ids)),
        None if types is None else tuple(types),
        decoder_ids=None if decoder_ids is None else tuple(decoder_ids),
        num_behind=len(ids) - architecture.pooled_tokens(config, ids),
    )


@dataclass(frozen=True)
class ForwardItem:
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
class PooledRowLayout:
    """Where each sequence's pooled rows are among the batch's: `rows[starts[i] : starts[i] + lengths[i]]`."""

    starts: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, works: Sequence[ForwardItem], starts: torch.Tensor) -> PooledRowLayout:
        """Of sequences whose rows begin at `starts`."""
        return cls(starts, torch.tensor([len(each) - each.sequence.num_behind for each in works]))


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward and the layout of its rows, flattened to `(num_rows, hidden)`."""

    inputs: dict[str, Any]
    layout: PooledRowLayout

    @property
    def positions(self) -> torch.Tensor | None:
        """`(num_tokens,)` of a packed row, each token's place in its text."""
        given = self.inputs.get("position_ids")
        return None if given is None else given[0]


def packed_batch(works: Sequence[ForwardItem], device: torch.device) -> Batch:
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
    if works[0].sequence.decoder_ids is not None:
        inputs |= {"decoder_input_ids": row("decoder_ids"), "decoder_position_ids": inputs["position_ids"]}
    return Batch({name: to_device(value, device) for name, value in inputs.items()}, PooledRowLayout.of(works, starts))


def padded_batch(works: Sequence[ForwardItem], device: torch.device, pad_token_id: int) -> Batch:
    """Rows `(num_sequences, longest)`, padded on the right under an attention mask; the model numbers the tokens."""
    sequences = [each.sequence for each in works]
    longest = max(len(each) for each in sequences)
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
    if sequences[0].decoder_ids is not None:
        inputs["decoder_input_ids"] = rows([each.decoder_ids or () for each in sequences], pad_token_id)
    return Batch(inputs, PooledRowLayout.of(works, starts))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to where the model is; to a GPU from pinned memory, so that the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
