"""Forwards of small batches, recorded once as CUDA graphs: the host submits one graph instead of every kernel.

A graph has fixed shapes and addresses, so batches are padded to a bucket of tokens and sequences: the padding is
sequences of its own, which nobody else sees. A recorded forward must not depend on anything that the host knew of the
batch it was recorded with; that is tried at once with a batch of other lengths, and a bucket that differs is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...pooler.methods import last_pool
from ..batch import ForwardItem, PooledRowLayout, pooled_spans, spans_of, to_device
from ..context import running
from ..row import PackedRow, VarlenLayout
from .equivalence import FAILURES, check_sequences, relative_error, tolerance

if TYPE_CHECKING:
    from ..runner import Runner

Replay = Callable[[], torch.Tensor]
Bucket = tuple[int, int]

_WARM_UP = 2  # forwards before one is recorded: libraries choose their kernels in them


def bucket_of(num_tokens: int, num_sequences: int, max_tokens: int, max_sequences: int) -> Bucket | None:
    """The smallest `(tokens, sequences)` that hold a batch and padding sequences of at least a token each."""
    sequences = 1 << num_sequences.bit_length()  # more than `num_sequences`: one is padding
    tokens = max(32, 1 << (num_tokens + sequences - num_sequences - 1).bit_length())
    return (tokens, sequences) if tokens <= max_tokens and sequences <= max_sequences else None


def record(forward: Replay, pool: Any) -> Replay:
    """Record a forward as a CUDA graph, on the current device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = forward()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


@dataclass
class _Recorded:
    inputs: _Inputs
    replay: Replay
    num_pruned: int


class Graphs:
    """Pooled states of small batches from recorded forwards.

    Args:
        runner: packed, with a varlen kernel, pooling one token a sequence.
        recorder: makes a forward replayable.
        max_tokens: of a bucket; larger batches keep the device busy without this.
        max_sequences: of a bucket.
        max_graphs: recorded at most.
    """

    def __init__(
        self,
        runner: Runner,
        recorder: Callable[[Replay], Replay],
        *,
        max_tokens: int = 512,
        max_sequences: int = 64,
        max_graphs: int = 16,
    ) -> None:
        self.runner = runner
        self.why_not: str | None = None
        self._recorder = recorder
        self._limits = (max_tokens, max_sequences)
        self._max_graphs = max_graphs
        self._recorded: dict[Bucket, _Recorded | None] = {}
        self._seen: set[Bucket] = set()

    @classmethod
    def on_cuda(cls, runner: Runner) -> Graphs | None:
        """For a runner on a GPU; None where its forward cannot be recorded."""
        if runner.device.type != "cuda" or runner.kernel is None or not runner.parallel or not runner.pools_one:
            return None
        pool = torch.cuda.graph_pool_handle()

        def recorder(forward: Replay) -> Replay:
            with torch.cuda.device(runner.device):
                return record(forward, pool)

        return cls(runner, recorder)

    @property
    def num_graphs(self) -> int:
        return sum(each is not None for each in self._recorded.values())

    def states(self, works: Sequence[ForwardItem]) -> torch.Tensor | None:
        """Pooled states `(num_sequences, hidden)`, float32; None where the batch has to run as usual."""
        special = any(each.past or each.keep or each.sequence.adapter or each.sequence.num_behind for each in works)
        if self.why_not is not None or special:
            return None
        bucket = bucket_of(sum(map(len, works)), len(works), *self._limits)
        if bucket is None:
            return None
        if bucket not in self._seen:  # a size that comes once is not worth recording
            self._seen.add(bucket)
            return None
        if bucket not in self._recorded and len(self._recorded) < self._max_graphs:
            self._recorded[bucket] = self._try(bucket, works)
        recorded = self._recorded.get(bucket)
        return None if recorded is None else self._replay(recorded, works)

    def _replay(self, recorded: _Recorded, works: Sequence[ForwardItem]) -> torch.Tensor:
        recorded.inputs.fill(works)
        states = recorded.replay()[: len(works)].clone()
        num_tokens = recorded.inputs.bucket[0]
        self.runner.counters.add(num_forwards=1, num_tokens=num_tokens, num_pruned_tokens=recorded.num_pruned)
        return states

    def _try(self, bucket: Bucket, works: Sequence[ForwardItem]) -> _Recorded | None:
        """Record a bucket, and compare what it gives for this batch and one of other lengths with the usual forward."""
        try:
            expected = [(batch, self.runner.eager_states(batch)) for batch in (self._others(works), works)]
            recorded = self._record(bucket, works)
            for batch, states in expected:
                error = relative_error(self._replay(recorded, batch), states)
                if not error <= tolerance(self.runner):
                    raise ValueError(f"states of a recorded forward differ by {error:.1e}")
        except FAILURES as failure:
            self.why_not = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
            logging.getLogger("vllm_cls").warning("recorded forwards are not used any more: %s", self.why_not)
            return None
        return recorded

    def _others(self, works: Sequence[ForwardItem]) -> list[ForwardItem]:
        """A batch that fits the same bucket, of other lengths and other tokens."""
        runner, config = self.runner, self.runner.backbone.config
        types = works[0].sequence.token_type_ids is not None
        lengths = [(len(each) + 1) // 2 for each in works]
        return [ForwardItem(each) for each in check_sequences(runner.architecture, config, lengths, types)]

    def _record(self, bucket: Bucket, works: Sequence[ForwardItem]) -> _Recorded:
        inputs = _Inputs(self.runner, bucket, with_types=works[0].sequence.token_type_ids is not None)
        lengths = inputs.fill(works)
        num_pruned = 0

        def forward() -> torch.Tensor:
            nonlocal num_pruned
            row = inputs.row(lengths)
            states = run(self.runner, inputs.tensors, row, inputs.places)
            num_pruned = row.num_pruned
            return states

        with torch.inference_mode():
            return _Recorded(inputs, self._recorder(forward), num_pruned)


class _Inputs:
    """What a recorded forward reads, always at the same place; filled anew for every batch.

    Args:
        with_types: the model takes token types.
    """

    def __init__(self, runner: Runner, bucket: Bucket, *, with_types: bool) -> None:
        self.runner = runner
        self.bucket = bucket
        num_tokens, num_sequences = bucket
        names = ["input_ids", "position_ids", *(["token_type_ids"] if with_types else [])]
        device = runner.device
        with torch.inference_mode():
            self._rows = torch.zeros(len(names), num_tokens, dtype=torch.long, device=device)
            self.places = torch.zeros(num_sequences, dtype=torch.long, device=device)
            self._ends = torch.zeros(num_sequences + 1, dtype=torch.int32, device=device)
            self._ones = torch.arange(num_sequences + 1, dtype=torch.int32, device=device)
            self.tensors = {name: self._rows[index : index + 1] for index, name in enumerate(names)}
            self.tensors["attention_mask"] = torch.ones(1, num_tokens, dtype=torch.long, device=device)

    @torch.inference_mode()
    def fill(self, works: Sequence[ForwardItem]) -> list[int]:
        """Write a batch behind which padding sequences fill the bucket; gives the lengths of all."""
        num_tokens, num_sequences = self.bucket
        lengths = [len(each) for each in works]
        lengths += [1] * (num_sequences - len(works))
        lengths[-1] += num_tokens - sum(lengths)
        ends = torch.tensor([0, *lengths]).cumsum(0)
        rows = torch.zeros(self._rows.shape, dtype=torch.long)
        rows[0] = self.runner.pad_token_id
        for index, name in enumerate(("token_ids", "position_ids", "token_type_ids")[: len(rows)]):
            values = [value for each in works for value in getattr(each.sequence, name)]
            rows[index, : len(values)] = torch.tensor(values)
        device = self.runner.device
        places = PooledRowLayout(ends[:-1], ends.diff()).places(self.runner.pool)
        assert places is not None
        self._rows.copy_(to_device(rows, device), non_blocking=True)
        self.places.copy_(to_device(places, device), non_blocking=True)
        self._ends.copy_(to_device(ends.int(), device), non_blocking=True)
        return lengths

    def row(self, lengths: Sequence[int]) -> PackedRow:
        """A row whose plans read the device's tensors; its spans, which the host knows, are for this batch only."""
        pruned = self.runner.mode.pruned
        num_tokens, num_sequences = self.bucket
        row = PackedRow(spans_of(lengths), kernel=self.runner.kernel, static=True)
        row.plans[False] = VarlenLayout(self._ends, self._ends, num_tokens, num_tokens, aligned=True)
        if pruned:
            row.pooled, row.pooled_spans = self.places, pooled_spans(row.spans, [0] * num_sequences)
            at_end = self.runner.pool is last_pool
            row.plans[True] = VarlenLayout(self._ones, self._ends, 1, num_tokens, aligned=at_end)
        return row


def run(runner: Runner, inputs: dict[str, torch.Tensor], row: PackedRow, places: torch.Tensor) -> torch.Tensor:
    """One forward over static inputs: pooled states `(num_sequences, hidden)`, float32."""
    with running(row=row):
        hidden: torch.Tensor = runner.backbone(**inputs, **runner.options)[0]
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, places).float()
