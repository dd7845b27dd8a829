"""What makes a packed model faster, tried when it is loaded and kept where results stay the same.

Each step but quantization is checked against the states of each sequence alone, taken before anything was changed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...errors import ConfigError
from ...pooler.methods import last_pool
from ..batch import ForwardItem, TokenSequence
from ..cuda.fp8 import apply_fp8
from ..layers.fusion import MakeProduct, fuse, joined, linear, unfuse
from ..layers.prepacking import packed_linear, prepack, unpack
from ..layers.pruning import prune_last_layer
from ..layers.quantization import Int8Linear, quantize_int8, watch_inputs
from ..native.int8 import compiled
from ..row import KeyValues
from ..runner import Mode, Runner
from ..schedule import begun
from .equivalence import FAILURES, ReferenceStates, choose_mode, relative_error, tolerance


def choose_fused_mode(
    runner: Runner,
    sequences: Sequence[TokenSequence],
    alone: ReferenceStates,
    why_not_packed: str | None,
    limit: int | None,
    make: MakeProduct = linear,
) -> Mode | None:
    """As `selfcheck.choose_mode`, with joined projections where the packed form is exact with them.

    Args:
        make: makes the products.
    """
    changed = 0 if why_not_packed is not None else fuse(runner.backbone, make)
    if why_not_packed is None and make is packed_linear:
        changed += prepack(runner.backbone)
    if changed:
        mode = choose_mode(runner, sequences, alone, None, limit)
        if mode is not None and mode.form == "packed":
            return mode
        unfuse(runner.backbone)
        unpack(runner.backbone)
    return choose_mode(runner, sequences, alone, why_not_packed, limit)


def quicken(
    runner: Runner, layers: Sequence[torch.nn.Module], sequences: Sequence[TokenSequence], alone: ReferenceStates
) -> Mode:
    """The packed mode of `runner`, with the last layer pruned and beginnings shared where that is exact.

    Args:
        layers: of the backbone, in their order; empty where they are not known.
        sequences: what `check_sequences` made, and what they give `alone`.
    """
    packed = runner.mode
    pruned = bool(layers) and prunes(runner, layers, sequences, alone)
    runner.mode = replace(packed, pruned=pruned)
    size = bytes_a_shared_token(runner, sequences, alone)
    return replace(packed, pruned=pruned, shared=size > 0, bytes_a_token=size)


def prunes(
    runner: Runner, layers: Sequence[torch.nn.Module], sequences: Sequence[TokenSequence], alone: ReferenceStates
) -> bool:
    """Whether the last layer can run for the pooled positions alone; `runner.mode` is the packed one."""
    if not runner.pools_one:
        return False
    prune_last_layer(layers)
    try:
        hidden, _, row = runner.hidden([ForwardItem(each) for each in sequences], pooled_only=True)
    except FAILURES:
        return False
    if row is None or row.pooled is None or row.num_pruned == 0:
        return False
    expected = _pooled(runner, alone)
    return relative_error(hidden[row.pooled].float(), expected) <= tolerance(runner)


def bytes_a_shared_token(runner: Runner, sequences: Sequence[TokenSequence], alone: ReferenceStates) -> int:
    """Bytes of a token's keys and values, where prompts can go on from them; 0 where they cannot.

    Tried by cutting sequences twice: the second part goes on from the first, the third from both. The third is the
    last token alone, which finds out what reaches back to its neighbours by other ways than attention.
    """
    if runner.pool is not last_pool:
        return 0
    cut = [index for index, each in enumerate(sequences) if len(each) >= 3]
    expected = _pooled(runner, alone)[cut]
    whole = [sequences[index] for index in cut]
    firsts = [KeyValues(len(each) // 3) for each in whole]
    boths = [KeyValues(len(each) - 1) for each in whole]
    try:
        runner.keep(
            [ForwardItem(begun(each, kept.num_tokens), keep=kept) for each, kept in zip(whole, firsts, strict=True)]
        )
        runner.keep(
            [
                ForwardItem(begun(each, kept.num_tokens), past, kept)
                for each, past, kept in zip(whole, firsts, boths, strict=True)
            ]
        )
        for pasts in (firsts, boths):
            works = [ForwardItem(each, past) for each, past in zip(whole, pasts, strict=True)]
            hidden, layout, row = runner.hidden(works, pooled_only=runner.mode.pruned, probe=True)
            pooled = runner.pool(hidden, layout.starts, layout.lengths).float()
            if row is None or not row.causal or not relative_error(pooled, expected) <= tolerance(runner):
                return 0
    except FAILURES:
        return 0
    return max((kept.num_bytes // kept.num_tokens for kept in boths), default=0)


def _pooled(runner: Runner, alone: ReferenceStates) -> torch.Tensor:
    """Pooled states of the sequences alone, `(num_sequences, hidden)`."""
    lengths = torch.tensor([len(states) for states in alone.states])
    return runner.pool(torch.cat(alone.states), lengths.cumsum(0) - lengths, lengths).float()


def quantize(
    runner: Runner, method: str | None, layers: Sequence[torch.nn.Module], works: Sequence[ForwardItem]
) -> None:
    """Run a backbone's products in fewer bits. The form was chosen before, by exact numbers.

    Args:
        method: "int8" (CPU), "fp8" (GPU) or None.
        layers: of the backbone. What a pruned last layer computes for pooled positions alone stays in float32: it
            costs nothing there, and nothing behind it evens out its errors.
        works: prompts whose inputs to each product are watched. What none of them runs, such as towers for images, stays
            in float32.

    Raises:
        ConfigError: the device, its processor or the dtype has no such products.
    """
    if method == "fp8":
        apply_fp8(runner.backbone)
    if method != "int8":
        return
    compiled()  # once, before several threads ask for it
    with watch_inputs(runner.backbone) as seen:
        expected = _each_alone(runner, works)
    exact = set(layers[-1].modules()) if runner.mode.pruned else set()
    count = 0
    for shared, first in joined(runner.backbone):
        if first in seen:
            shared.remake(functools.partial(Int8Linear, input_max=seen[first]), whole=first not in exact)
            count += 1
    count += quantize_int8(runner.backbone, lambda name, module: module in exact or module not in seen, seen)
    if count == 0:
        raise ConfigError("quantization='int8' finds no linear layer of this model that it could change; use 'none'.")
    exact_again = [replace(work, sequence=replace(work.sequence, exact=True)) for work in works]
    if not relative_error(_each_alone(runner, exact_again), expected) <= tolerance(runner):
        raise ConfigError("quantization='int8': this model no longer gives its float32 states beside it; use 'none'.")


def _each_alone(runner: Runner, works: Sequence[ForwardItem]) -> torch.Tensor:
    """States of all tokens, `(num_tokens, hidden)`; some models run one prompt at a time."""
    return torch.cat([runner.hidden([work])[0] for work in works])


def check_int8(device: torch.device, dtype: torch.dtype) -> None:
    """Called before a model is loaded.

    Raises:
        ConfigError: it would not run as float32 on a CPU.
    """
    if device.type != "cpu" or dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"quantization='int8' runs float32 models on a CPU, and this would be {name} on {device.type}; add "
            "device='cpu', dtype='float32' (--device cpu --dtype float32)."
        )
