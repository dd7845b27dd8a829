"""Chooses how a loaded model runs: the fastest batching form that the equivalence check allows."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigError, ModelError
from ...pooler.heads import head_dtype, set_head_dtype
from ...pooler.methods import named
from ...registry import registry
from ...runtime.batch import ForwardItem
from ...runtime.layers.absent import has_absent, size_of
from ...runtime.layers.fusion import linear
from ...runtime.layers.prepacking import packed_linear, pays
from ...runtime.loadtime import equivalence, optimize
from ...runtime.runner import Mode, Runner
from .classifier import Classifier


def dummy_items(runner: Runner, lengths: Sequence[int]) -> list[ForwardItem]:
    """Sequences of random tokens of these lengths, at least as long as the model needs."""
    config = runner.backbone.config
    shortest = runner.architecture.min_tokens(config)
    lengths = [max(length, shortest) for length in lengths]
    types = runner.architecture.takes_token_type_ids(config)
    return [ForwardItem(each) for each in equivalence.check_sequences(runner.architecture, config, lengths, types)]


def make_runner(classifier: Classifier, pooling: str, longest: int, quantization: str | None = None) -> Runner:
    """The runner of a loaded model, in the fastest form that the equivalence check allows.

    Args:
        longest: the model's longest sequence, in tokens.
        quantization: what the caller makes of its products afterwards.
    """
    with_head = classifier.has_head or bool(classifier.missing)  # what adapters fill is tried unfilled
    runner = _bare_runner(classifier, pooling, with_head)
    architecture, backbone = classifier.architecture, runner.backbone
    layers = architecture.layers(backbone)
    parameters, _ = size_of(backbone)
    lengths, limit = equivalence.check_lengths(
        backbone.config, parameters, runner.device.type, longest, architecture.min_tokens(backbone.config)
    )
    types = architecture.takes_token_type_ids(backbone.config)
    sequences = equivalence.check_sequences(architecture, backbone.config, lengths, types)
    alone = equivalence.run_alone(runner, sequences, with_head=with_head and runner.scorer is None)
    reason, mode = _why_whole(runner, classifier, pooling, alone), None
    if reason is None and classifier.head_is_trained and pooling == classifier.pooling == "LAST":
        runner.skipped_pad = equivalence.skipped_pad(runner, sequences[0])
    if reason is None:
        why_not = architecture.why_not_packed(backbone.config)
        make = packed_linear if quantization in (None, "none") and pays(backbone) else linear
        mode = optimize.choose_fused_mode(runner, sequences, alone, why_not, limit, make)
        reason = "its backbone by itself gives other states than within the model's forward"
    if mode is None and alone.logits is None:
        raise ModelError("the model gives other states when it runs the same text again; it cannot be classified with.")
    if mode is None and alone.logits is not None:
        _use_whole(runner, classifier, pooling, reason)
        mode = equivalence.choose_whole_mode(runner, sequences, alone.logits, reason, limit)
    assert mode is not None
    runner.mode = mode
    if mode.form == "packed" and not has_absent(layers):
        runner.mode = optimize.quicken(runner, layers, sequences, alone)
    if runner.mode.form != "packed":
        _warn_not_packed(classifier, runner.mode)
    if runner.head is not None and getattr(runner.model, "named_heads", None):
        if runner.mode.whole:
            raise ModelError(f"several heads need a head that runs on pooled states: {reason}.")
        runner.head = runner.model.all_logits  # the first one is checked by now
    runner.counters.clear()
    return runner


def _bare_runner(classifier: Classifier, pooling: str, with_head: bool) -> Runner:
    """A runner that runs one sequence at a time, nothing made faster yet."""
    architecture, model = classifier.architecture, classifier.model
    head = architecture.head(model) if with_head else None
    pool = named(pooling, registry().pooling_methods())
    if classifier.embedder is None:  # which has nothing of a head
        pool = architecture.pooling_method(model, pool)
    runner = Runner(model, architecture, head, pool, Mode("single"))
    runner.scorer = getattr(model, "scorer", None) if classifier.has_head else None
    if runner.scorer is not None:
        runner.head = None
        if hasattr(model, "heads"):  # those beside it, which run on pooled states
            model.heads.to(head_dtype(classifier.config, model.dtype))
        if pooling != "LAST":
            raise ConfigError(f"pooling_type={pooling!r}: a head of label texts reads the last token; leave it out.")
    return runner


def _why_whole(runner: Runner, classifier: Classifier, pooling: str, alone: equivalence.ReferenceStates) -> str | None:
    """Why only the model's whole forward gives its logits, or None; the head is brought to its own dtype."""
    if alone.logits is None:
        return None
    runner.head_dtype = head_dtype(classifier.config, runner.backbone.dtype)
    if runner.head is not None:
        set_head_dtype(runner.model, runner.head, runner.head_dtype)
    return equivalence.why_not_split(runner, alone, comparable=pooling == classifier.pooling)


def _use_whole(runner: Runner, classifier: Classifier, pooling: str, reason: str) -> None:
    """Bring the head to the dtype that the model's whole forward has.

    Raises:
        ConfigError: another pooling was asked for, which needs a head on pooled states.
    """
    if pooling != classifier.pooling:
        raise ConfigError(f"pooling_type={pooling!r} is not possible: {reason}; leave it out.")
    if runner.head is not None:  # the model's own forward knows one dtype
        set_head_dtype(runner.model, runner.head, runner.backbone.dtype)


def _warn_not_packed(classifier: Classifier, mode: Mode) -> None:
    import logging

    logging.getLogger("vllm_cls").info(
        "%s runs %s, not packed: %s", type(classifier.model).__name__, mode.form, mode.reason
    )
