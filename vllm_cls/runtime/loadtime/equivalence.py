"""Decides, when a model is loaded, how its sequences may share a forward.

A few sequences run packed and one by one; if any token's state differs beyond rounding, slower forms
are tried in turn. So an architecture nobody has seen is slower, never wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...architecture import Architecture
from ...compat.transformers_calls import hints
from ...errors import ModelError
from ...pooler.methods import every_token
from ..attention import packed_attention
from ..batch import ForwardItem, SequenceForm, TokenSequence
from ..cuda.varlen import kernels_for
from ..mask import PackedMask
from ..runner import Mode, Runner

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

T = TypeVar("T")

# Largest relative error of one token's state: rounding stays well below, a leak between sequences far above.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}
_LENGTHS = (5, 1, 17, 33)
_WINDOWS = (
    "sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention", "window_size",
    "attention_window", "attention_window_size",
)  # fmt: skip
# Texts of more tokens than these attend to the best keys only. Equal scores are common there, and which of them win
# depends on the padding: such a text always runs alone.
_SELECTIONS = ("keep_window_size", "index_topk", "indexer_budget")
FAILURES = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, packed_attention.NotPackable,
)  # fmt: skip
# Arithmetic the check may cost, in multiply-adds: a second or two.
_BUDGET = {"cpu": 1.5e11, "cuda": 2e14}


def check_lengths(
    config: PreTrainedConfig, num_parameters: int, device: str, longest: int, shortest: int = 1
) -> tuple[list[int], int | None]:
    """Lengths to check with, and the length beyond which sharing a forward stays unchecked (None: nowhere).

    Args:
        config: names the windows and chunks, each of which some length has to cross.
        num_parameters: of the backbone, for the cost.
        device: "cpu" or "cuda".
        longest: the model's longest sequence, in tokens.
        shortest: its shortest.
    """
    text = config.get_text_config()
    selections = [getattr(text, name, None) for name in _SELECTIONS]
    limit = min((each for each in selections if isinstance(each, int) and each > 0), default=None)
    lengths = [length for length in _LENGTHS if shortest <= length <= min(longest, limit or longest)]
    lengths = lengths or [min(shortest, longest)]
    windows = {each for name in _WINDOWS for each in _values(text, name) if isinstance(each, int)}
    for window in sorted(each for each in windows if 2 <= each < longest):
        if num_parameters * (window + 7) <= _BUDGET.get(device, _BUDGET["cuda"]):
            lengths.append(min(window + 7, longest))
        else:
            limit = window if limit is None else min(limit, window)
    return lengths, limit


def _values(config: PreTrainedConfig, name: str) -> list[Any]:
    """What a config says under a name: one value, none, or several where its layers differ."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers' answer where they do
        value = [getattr(each, name, None) for each in config.per_layer_config]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_sequences(
    architecture: Architecture, config: PreTrainedConfig, lengths: Sequence[int], with_token_types: bool
) -> list[TokenSequence]:
    """Random sequences of these lengths, without special tokens, which some models treat apart."""
    text = config.get_text_config()
    ending = getattr(text, "eos_token_id", None) if config.is_encoder_decoder else None
    special = {value for name, value in vars(text).items() if name.endswith("_token_id") and isinstance(value, int)}
    generator = torch.Generator().manual_seed(0)
    allowed = torch.tensor([i for i in range(min(architecture.vocab_size(config), 4096)) if i not in special])
    form, made = SequenceForm(architecture, config), []
    for length in lengths:
        ids = allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist()
        if ending is not None:
            ids[-1] = ending  # BART and its kin pool there, and refuse texts without it
        types = tuple(int(i >= length // 2) for i in range(length)) if with_token_types else None
        made.append(form.sequence(ids, types))
    return made


@dataclass(frozen=True)
class ReferenceStates:
    """What each sequence gives by itself, by transformers' own attention; all else is held to it.

    Args:
        states: every token's state, `(num_tokens, hidden)` a sequence, float32; empty where only the whole model runs.
        logits: of the model's own forward, float32, `(num_sequences, num_labels)`, or `(num_tokens, num_labels)` of a
            token classifier; None for a model without a head.
    """

    states: list[torch.Tensor]
    logits: torch.Tensor | None


def run_alone(runner: Runner, sequences: Sequence[TokenSequence], *, with_head: bool) -> ReferenceStates:
    """Run each sequence by itself, once: the backbone's states are taken as the model's own forward goes by.

    Raises:
        ModelError: the model cannot run, or its states are not finite.
    """
    runner.mode = Mode("single", whole=with_head)
    states: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    for each in sequences:
        work = ForwardItem(each)
        seen: list[Any] = []
        if with_head:
            hook = runner.backbone.register_forward_hook(
                lambda module, inputs, output, seen=seen: seen.append(output[0])
            )
            try:
                with _states_as_the_head_is(runner.model):
                    logits.append(_reference(runner.logits, work, runner.model.config))
            finally:
                hook.remove()
        if len(seen) == 1 and isinstance(seen[0], torch.Tensor) and seen[0].shape[:-1] == (1, len(each)):
            states.append(seen[0][0].float())
        elif not with_head:
            states.append(_reference(functools.partial(_token_states, runner), work, runner.model.config)[0])
    if len(states) < len(sequences):
        states = []
    if not all(bool(torch.isfinite(each).all()) for each in [*states, *logits]):
        raise ModelError(
            "the model gives NaN or infinite hidden states; its weights or its dtype are wrong (try --dtype float32)."
        )
    return ReferenceStates(states, torch.cat(logits) if logits else None)


@contextmanager
def _states_as_the_head_is(model: PreTrainedModel) -> Iterator[None]:
    """While the model's own forward runs, what stands beside its backbone gets states of its own dtype.

    A head is float32 behind a backbone of bfloat16, and its forward knows one dtype.
    """

    def cast(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = next(module.parameters()).dtype
        return tuple(
            each.to(dtype) if isinstance(each, torch.Tensor) and each.is_floating_point() else each for each in inputs
        )

    beside = [each for name, each in model.named_children() if name != model.base_model_prefix]
    hooks = [each.register_forward_pre_hook(cast) for each in beside if any(True for _ in each.parameters())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def choose_mode(
    runner: Runner,
    sequences: Sequence[TokenSequence],
    alone: ReferenceStates,
    why_not_packed: str | None,
    limit: int | None,
) -> Mode | None:
    """The fastest form whose results equal those of each sequence alone; None if the backbone by itself gives others.

    Args:
        runner: of the loaded model.
        sequences: what `check_sequences` made.
        alone: what `run_alone` gave for them.
        why_not_packed: the architecture's own reason, or None.
        limit: what `check_lengths` gave.
    """
    reasons: list[str] = []
    for form in ("packed", "padded", "equal", "single"):
        reason = (why_not_packed or _not_packable(runner)) if form == "packed" else None
        if reason is None:
            runner.mode = Mode(form)
            kernels = kernels_for(runner.device, runner.backbone.dtype) if form == "packed" else []
            for kernel in (*kernels, None):  # the last runs each sequence by itself
                runner.kernel = kernel
                reason = _difference(runner, sequences, alone.states)
                if reason is None:
                    break
        if reason is None:
            return Mode(form, reason="; ".join(reasons), checked_up_to=limit)
        reasons.append(f"not {form}: {reason}")
    return None


def choose_whole_mode(
    runner: Runner, sequences: Sequence[TokenSequence], own: torch.Tensor, reason: str, limit: int | None
) -> Mode:
    """As `choose_mode`, for a model whose own forward gives the logits, `own`."""
    reasons = [reason]
    for form in ("padded", "equal"):
        runner.mode = Mode(form, whole=True)
        if form == "equal":
            rows = len(sequences[0]) if runner.pool is every_token else 1
            sequences, own = [sequences[0]] * 2, own[:rows].repeat(2, 1)
        try:
            error = float(
                (runner.logits([ForwardItem(each) for each in sequences]) - own).abs().max()
                / own.abs().max().clamp_min(1e-6)
            )
        except (RuntimeError, ValueError, TypeError, IndexError) as failure:
            reasons.append(f"not {form}: {_short(failure)}")
            continue
        if error <= tolerance(runner):
            return Mode(form, whole=True, reason="; ".join(reasons), checked_up_to=limit)
        reasons.append(f"not {form}: logits differ by {error:.1e}")
    return Mode("single", whole=True, reason="; ".join(reasons))


def _reference(step: Callable[[Sequence[ForwardItem]], T], work: ForwardItem, config: PreTrainedConfig) -> T:
    """What a sequence alone gives, which everything else is held to.

    Raises:
        ModelError: the model cannot run even that.
    """
    try:
        return step([work])
    except FAILURES as failure:
        raise ModelError(
            f"the model's own forward fails on a text of {len(work)} tokens ({_short(failure)}); its config may not fit "
            f"its weights, or it takes no texts of that length{hints(config, str(failure))}."
        ) from failure


def _not_packable(runner: Runner) -> str | None:
    backbone = runner.backbone
    if not backbone._can_set_attn_implementation():
        return "its attention is its own code, outside transformers' attention interface"
    return None


def _difference(runner: Runner, sequences: Sequence[TokenSequence], alone: Sequence[torch.Tensor]) -> str | None:
    """What differs when the sequences share forwards as the runner's mode allows, or None."""
    groups: dict[Any, list[int]] = {}
    for index, each in enumerate(sequences):
        groups.setdefault(runner.key(index, len(each)), []).append(index)
    for indices in groups.values():
        # A form of equal lengths has one sequence a group here: run it twice in one batch.
        members = indices * 2 if len(indices) == 1 and runner.mode.form == "equal" else indices
        try:
            together = _token_states(runner, [ForwardItem(sequences[i]) for i in members])
        except FAILURES as failure:
            return _short(failure)
        for index, states in zip(members, together, strict=True):
            error = relative_error(states, alone[index])
            if not error <= tolerance(runner):
                return f"states of {len(sequences[index])} tokens differ by {error:.1e} from the same text alone"
    return None


def _token_states(runner: Runner, works: Sequence[ForwardItem]) -> list[torch.Tensor]:
    hidden, layout, _ = runner.hidden(works)
    if hidden.shape[0] < int((layout.starts + layout.lengths).max()):
        raise ValueError("its hidden states are fewer than its tokens")
    bounds = zip(layout.starts.tolist(), layout.lengths.tolist(), strict=True)
    return [hidden[start : start + length].float() for start, length in bounds]


def relative_error(states: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of one token's state `(hidden,)`, relative to its length."""
    if states.shape != expected.shape:
        return float("inf")
    return float(((states - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)).max())


def tolerance(runner: Runner) -> float:
    """The largest relative error that rounding explains in the model's dtype."""
    return _TOLERANCE.get(runner.model.dtype, 1e-3)


def _short(failure: Exception) -> str:
    if isinstance(failure, packed_attention.NotPackable):
        return str(failure)
    text = str(failure).strip().splitlines()
    if text and PackedMask.__name__ in text[0]:
        return "it computes with its attention's mask itself"
    return f"{type(failure).__name__}: {text[0][:120] if text else 'no message'}"


def skipped_pad(runner: Runner, sequence: TokenSequence) -> int | None:
    """The pad token, if the model's own forward looks for the last token that is none, and else takes the last one.

    transformers' decoders do so, and a head was trained on the states that they found. Tried, with a pad token behind a
    sequence, since the classes differ.
    """
    config = runner.backbone.config
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    if runner.head is None or config.is_encoder_decoder or not isinstance(pad, int):
        return None
    if not 0 <= pad < runner.architecture.vocab_size(config):
        return None
    types = None if sequence.token_type_ids is None else (*sequence.token_type_ids, 0)
    behind = runner.sequence_form.sequence((*sequence.token_ids, pad), types)
    mode = runner.mode
    alone = run_alone(runner, [behind], with_head=True)
    runner.mode = mode
    if not alone.states or alone.logits is None:
        return None
    with torch.inference_mode():
        last, before = runner.head(alone.states[0][[-1, -2]].to(runner.head_dtype)).float()
    wrong, right = ((each - alone.logits[0]).abs().max() for each in (last, before))
    return pad if right < wrong else None


def why_not_split(runner: Runner, alone: ReferenceStates, *, comparable: bool) -> str | None:
    """Why the head cannot run on pooled states, or None if it can.

    Args:
        alone: states and the model's own logits.
        comparable: the runner pools as the model's own forward does, so that both must agree.
    """
    own = alone.logits
    assert own is not None
    if runner.head is None:
        return "its head is part of its forward"
    if not alone.states:
        return "its backbone gives no state for every token"
    lengths = torch.tensor([len(states) for states in alone.states])
    try:
        with torch.inference_mode():
            pooled = runner.pool(torch.cat(alone.states), lengths.cumsum(0) - lengths, lengths)
            split = runner.head(pooled.to(runner.head_dtype)).float()
    except FAILURES as failure:
        return f"its head does not run on pooled states ({_short(failure)})"
    if split.shape != own.shape:
        return f"its head gives logits of shape {tuple(split.shape[1:])} on pooled states"
    error = float((split - own).abs().max() / own.abs().max().clamp_min(1e-6))
    if comparable and not error <= tolerance(runner):
        return f"its head on pooled states differs by {error:.1e} from its own forward"
    return None
