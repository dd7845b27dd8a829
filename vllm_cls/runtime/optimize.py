"""What makes a packed model faster, tried when it is loaded and kept where results stay the same.

Each step is checked against the states of each sequence alone, taken before anything was changed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import ConfigError
from ..pooler.methods import last_pool, pooled_places
from .batch import TokenSequence, Work
from .cuda.fp8 import apply_fp8
from .fusion import fuse, joined, unfuse
from .pruning import prune_last_layer
from .quantization import Int8Linear, quantize_int8, watch_inputs
from .row import KeyValues
from .runner import Mode, Runner
from .schedule import begun
from .selfcheck import FAILURES, relative_error, tolerance


def quicken(
    runner: Runner, layers: Sequence[torch.nn.Module], sequences: Sequence[TokenSequence], alone: Sequence[torch.Tensor]
) -> Mode:
    """The packed mode of `runner`, with the last layer pruned and beginnings shared where that is exact.

    Args:
        layers: of the backbone, in their order; empty where they are not known.
        sequences: what `check_sequences` made; `alone` are their states.
    """
    packed = runner.mode
    pruned = bool(layers) and prunes(runner, layers, sequences)
    runner.mode = replace(packed, pruned=pruned)
    size = bytes_a_shared_token(runner, sequences, alone)
    return replace(packed, pruned=pruned, shared=size > 0, bytes_a_token=size)


def fuse_projections(runner: Runner, sequences: Sequence[TokenSequence], alone: Sequence[torch.Tensor]) -> int:
    """Join projections that read the same input; undone where that changes the states.

    Returns:
        How many modules run in another form now.
    """
    count = fuse(runner.backbone)
    runner.mode = Mode("single")
    states = [runner.hidden([Work(each)])[0].float() for each in sequences[:2]]
    if all(relative_error(*pair) <= tolerance(runner) for pair in zip(states, alone, strict=False)):
        return count
    unfuse(runner.backbone)
    return 0


def prunes(runner: Runner, layers: Sequence[torch.nn.Module], sequences: Sequence[TokenSequence]) -> bool:
    """Whether the last layer can run for the pooled positions alone; `runner.mode` is the packed one."""
    if pooled_places(runner.pool, torch.zeros(1), torch.ones(1)) is None:
        return False
    works = [Work(each) for each in sequences]
    expected, *_ = runner.hidden(works)
    prune_last_layer(layers)
    try:
        hidden, layout, row = runner.hidden(works, pooled_only=True)
    except FAILURES:
        return False
    places = pooled_places(runner.pool, layout.starts, layout.lengths)
    assert places is not None and row is not None
    return row.num_pruned > 0 and relative_error(hidden[places].float(), expected[places].float()) <= tolerance(runner)


def bytes_a_shared_token(runner: Runner, sequences: Sequence[TokenSequence], alone: Sequence[torch.Tensor]) -> int:
    """Bytes of a token's keys and values, where prompts can go on from them; 0 where they cannot.

    Tried by cutting sequences twice: the second part goes on from the first, the third from both.
    """
    if runner.pool is not last_pool:
        return 0
    size = 0
    try:
        *_, row = runner.hidden([Work(each) for each in sequences], probe=True)
        if row is None or not row.causal:
            return 0
        for sequence, states in zip(sequences, alone, strict=True):
            length = len(sequence)
            if length < 3:
                continue
            first, both = KeyValues(length // 3), KeyValues(2 * length // 3)
            runner.keep([Work(begun(sequence, first.num_tokens), keep=first)])
            runner.keep([Work(begun(sequence, both.num_tokens), past=first, keep=both)])
            for past in (first, both):
                pooled = runner.states([Work(sequence, past), Work(sequence)])
                if not relative_error(pooled, states[-1:].expand_as(pooled)) <= tolerance(runner):
                    return 0
            size = max(size, both.num_bytes // both.num_tokens)
    except FAILURES:
        return 0
    return size


def quantize(runner: Runner, method: str | None, works: Sequence[Work]) -> None:
    """Run a backbone's products in fewer bits. The form was chosen before, by exact numbers.

    Args:
        method: "int8" (CPU), "fp8" (GPU) or None.
        works: prompts whose inputs to each product are watched.

    Raises:
        ConfigError: the device, its processor or the dtype has no such products.
    """
    device, dtype = runner.device.type, runner.backbone.dtype
    if method == "fp8":
        unfuse(runner.backbone)  # torchao changes the modules themselves
        apply_fp8(runner.backbone)
    if method != "int8":
        return
    if device != "cpu" or dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"quantization='int8' runs float32 models on a CPU; this one is {name} on {device}.")
    seen = watch_inputs(runner.backbone, lambda: [runner.hidden([work]) for work in works])
    for shared, first in joined(runner.backbone):
        shared.remake(functools.partial(Int8Linear, input_max=seen.get(first)))
    quantize_int8(runner.backbone, input_max=seen)
