"""Batches: many token sequences as one packed row, or as padded rows; their way to the device, and results' way back."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ..pooler.methods import PoolingMethod, cls_pool, last_pool
from .row import KeyValues, SequenceSpan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..architecture import Architecture
    from ..media.features import MediaInput, SequenceMedia
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
        media: images and videos in it, or None.
        pooled_at: the tokens whose states are wanted, by their places; None for what the model pools.
    """

    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None = None
    cache_salt: str | None = None
    adapter: LoRAAdapter | None = None
    decoder_ids: tuple[int, ...] | None = None
    num_behind: int = 0
    exact: bool = False
    media: SequenceMedia | None = None
    pooled_at: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_before(self) -> int:
        """Tokens before the first one that is pooled, of a prompt that is pooled at its end or at given places."""
        return len(self.token_ids) - 1 if self.pooled_at is None else min(self.pooled_at)

    @property
    def key_ids(self) -> tuple[int, ...]:
        """Token ids that tell prompts apart: those of images and videos stand for their contents."""
        return self.token_ids if self.media is None else self.media.key_ids

    def skipping(self, pad_token_id: int) -> TokenSequence:
        """The same, pooled before the pad tokens at its end, by a head that looks for its last token so."""
        if self.token_ids[-1] != pad_token_id:
            return self
        behind = sum(1 for _ in itertools.takewhile(pad_token_id.__eq__, reversed(self.token_ids)))
        return replace(self, num_behind=min(behind, len(self) - 1))  # of nothing but pad tokens, the first


class SequenceForm:
    """What a model reads beside token ids, as its architecture derives it of them: the same of every prompt, so asked once.

    Args:
        config: the backbone's.
    """

    def __init__(self, architecture: Architecture, config: PreTrainedConfig) -> None:
        self._positions = architecture.numbering(config)
        self._pooled = architecture.pooled_count(config) or len
        self._decoder = functools.partial(architecture.decoder_ids, config) if config.is_encoder_decoder else None

    def sequence(self, ids: Sequence[int], types: Sequence[int] | None, cache_salt: str | None = None) -> TokenSequence:
        """A prompt of these tokens.

        Args:
            types: token types, or None where the model takes none.

        Raises:
            PromptError: there is nothing to pool.
        """
        decoder_ids = None if self._decoder is None else self._decoder(ids)
        return TokenSequence(
            tuple(ids),
            tuple(range(len(ids)) if self._positions is None else self._positions(ids)),
            None if types is None else tuple(types),
            cache_salt,
            decoder_ids=None if decoder_ids is None else tuple(decoder_ids),
            num_behind=len(ids) - self._pooled(ids),
        )


@dataclass(frozen=True)
class ForwardItem:
    """One prompt for one forward.

    Args:
        sequence: the whole prompt.
        past: keys and values of its first tokens, computed earlier, which the forward need not compute; or None.
        keep: where keys and values of its first tokens go, or None.
        num_cached_tokens: of `past`.
        num_tokens: that the forward computes.
    """

    sequence: TokenSequence
    past: KeyValues | None = None
    keep: KeyValues | None = None
    num_cached_tokens: int = field(init=False)
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        cached = self.past.num_tokens if self.past is not None else 0
        object.__setattr__(self, "num_cached_tokens", cached)
        object.__setattr__(self, "num_tokens", len(self.sequence.token_ids) - cached)

    def media_inputs(self) -> Iterator[MediaInput]:
        """Images and videos whose tokens the forward computes."""
        return iter(()) if self.sequence.media is None else self.sequence.media.inputs_from(self.num_cached_tokens)

    def __len__(self) -> int:
        return self.num_tokens


media_of: Callable[[ForwardItem], SequenceMedia | None] = operator.attrgetter("sequence.media")


@dataclass(frozen=True)
class PooledRowLayout:
    """Where each sequence's pooled rows are among the batch's: `rows[starts[i] : starts[i] + lengths[i]]`.

    Args:
        given: the indices of the rows of `TokenSequence.pooled_at`, where all sequences say it.
        counts: so many of them belong to each sequence.
    """

    starts: torch.Tensor
    lengths: torch.Tensor
    given: torch.Tensor | None = None
    counts: Sequence[int] = ()

    def places(self, pool: PoolingMethod) -> torch.Tensor | None:
        """The indices of the rows that are given, or that a method reads, one a sequence; None where it may read all."""
        if self.given is not None:
            return self.given
        if pool is cls_pool:
            return self.starts
        return self.starts + self.lengths - 1 if pool is last_pool else None


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward, the layout of its rows, flattened to `(num_rows, hidden)`, and the spans of a packed row."""

    inputs: dict[str, Any]
    layout: PooledRowLayout
    spans: Sequence[SequenceSpan] = ()


# What a packed forward reads of each sequence that has it, by the names of transformers.
_PACKED = {
    "input_ids": "token_ids",
    "position_ids": "position_ids",
    "token_type_ids": "token_type_ids",
    "decoder_input_ids": "decoder_ids",
}


def packed_batch(works: Sequence[ForwardItem], device: torch.device) -> Batch:
    """All sequences in one row `(1, num_tokens)`, positions restarting; no padding.

    The mask of ones keeps transformers from finding the restarts itself and masking by global
    index; our attention knows where each sequence begins.
    """
    names = [name for name, part in _PACKED.items() if getattr(works[0].sequence, part) is not None]
    rows = [
        [value for each in works for value in getattr(each.sequence, _PACKED[name])[each.num_cached_tokens :]]
        for name in names
    ]
    tensors = to_device(torch.tensor(rows), device)
    inputs = dict(zip(names, tensors.split(1), strict=True))
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "decoder_input_ids" in inputs:
        inputs["decoder_position_ids"] = inputs["position_ids"]
    spans = spans_of([each.num_tokens for each in works], [each.past for each in works], [each.keep for each in works])
    starts = torch.tensor([span.queries.start for span in spans])
    return Batch(inputs, _layout(works, starts), spans)


def spans_of(
    lengths: Sequence[int],
    pasts: Sequence[KeyValues | None] | None = None,
    keeps: Sequence[KeyValues | None] | None = None,
) -> list[SequenceSpan]:
    """Spans of sequences laid one behind the other.

    Args:
        lengths: tokens of each that the row holds.
        pasts: keys and values that precede each; None for none.
        keeps: where each one's keys and values are kept; None for nowhere.
    """
    made, start = [], 0
    for index, length in enumerate(lengths):
        here = slice(start, start + length)
        past = pasts[index] if pasts else None
        keep = keeps[index] if keeps else None
        made.append(SequenceSpan(here, here, past.num_tokens if past else 0, past, keep))
        start += length
    return made


def pooled_spans(
    spans: Sequence[SequenceSpan], places: Sequence[int], counts: Sequence[int] = ()
) -> list[SequenceSpan]:
    """The spans again, each with a pooled token as its only query.

    Args:
        places: the row indices of these tokens.
        counts: so many of them belong to each span; one where it is empty.
    """
    made = []
    owners = [span for span, count in zip(spans, counts, strict=True) for _ in range(count)] if counts else spans
    for index, (span, place) in enumerate(zip(owners, places, strict=True)):
        offset = span.offset + place - span.queries.start
        made.append(SequenceSpan(slice(index, index + 1), span.keys, offset, span.past))
    return made


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
    return Batch(inputs, _layout(works, starts))


def _layout(works: Sequence[ForwardItem], starts: torch.Tensor) -> PooledRowLayout:
    """The layout of works whose first computed tokens are these rows."""
    lengths = torch.tensor([each.num_tokens - each.sequence.num_behind for each in works])
    given = [each.sequence.pooled_at for each in works]
    if None in given:
        return PooledRowLayout(starts, lengths)
    counts = [len(each or ()) for each in given]
    firsts = starts - torch.tensor([each.num_cached_tokens for each in works])
    places = torch.tensor([place for each in given for place in each or ()]) + firsts.repeat_interleave(
        torch.tensor(counts)
    )
    return PooledRowLayout(starts, lengths, places, counts)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to where the model is; to a GPU from pinned memory, so that the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def fetch(rows: torch.Tensor | list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Begin to copy rows to the host; what it gives back waits for them, and gives one tensor each.

    They are the caller's, outside inference mode.

    Args:
        rows: `(num_rows, …)`, or a list of tensors.
    """
    parts = [rows] if isinstance(rows, torch.Tensor) else rows
    if not parts or parts[0].device.type == "cpu":
        copies = [part.clone() for part in parts]
        return functools.partial(list, copies[0] if isinstance(rows, torch.Tensor) else copies)
    if isinstance(rows, torch.Tensor):
        all_rows = _from_gpu(rows)
        return lambda: list(all_rows())
    if len({row.shape[1:] for row in rows}) > 1:  # adapters with other numbers of labels
        waiting = [_from_gpu(row) for row in rows]
        return lambda: [copy() for copy in waiting]
    sizes = [len(row) for row in rows]
    together = _from_gpu(torch.cat(rows))
    return lambda: list(together().split(sizes))


def _from_gpu(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return host.clone()  # pinned memory is given back, however long the rows are kept

    return wait
