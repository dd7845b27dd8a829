"""Shared beginnings: each runs once, within memory, exact, and only among prompts that may share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.inputs.tokenization import Tokenized
from vllm_cls.runtime.batch import ForwardItem, TokenSequence
from vllm_cls.runtime.engine import Engine, SequenceResult
from vllm_cls.runtime.prefixes.prefix_tree import plan_prefixes
from vllm_cls.runtime.row import KeyValues

TEMPLATE = list(range(20, 40))
FEW_SHOT = [*TEMPLATE, *range(60, 72)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LLM:
    return LLM(str(folder))


@pytest.fixture
def llm(loaded: LLM) -> LLM:
    """As new: nothing is in its cache."""
    loaded.reset_prefix_cache()
    return loaded


def engine_of(llm: LLM) -> Engine:
    return llm._open.engine


def asked(llm: LLM, prompts: Sequence[list[int]]) -> tuple[list[list[float]], list[int], Any]:
    """Logits, cached tokens of each, and what was counted."""
    before = llm.counters
    outputs = llm.classify(prompts)
    done = llm.counters - before
    return [each.outputs.logits for each in outputs], [each.num_cached_tokens for each in outputs], done


def sequence(ids: Sequence[int], types: Sequence[int] | None = None, salt: str | None = None) -> TokenSequence:
    return TokenSequence(tuple(ids), tuple(range(len(ids))), None if types is None else tuple(types), salt)


def same(first: Any, second: Any) -> bool:
    return torch.allclose(torch.as_tensor(first), torch.as_tensor(second), atol=1e-4)


def alone(llm: LLM, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    return [engine_of(llm).runner.logits([ForwardItem(each)])[0] for each in sequences]


# -- counting ----------------------------------------------------------------------------------------


def test_the_tokens_computed_are_those_of_the_plan(llm: LLM) -> None:
    prompts = [[*FEW_SHOT, 80 + i, 90] for i in range(6)] + [[*TEMPLATE, 80 + i, 91] for i in range(6)] + [TEMPLATE[:3]]
    plan = plan_prefixes([tuple(each) for each in prompts], [0] * len(prompts), min_tokens=8, min_saved=64)
    assert [len(each.token_ids) for each in plan.prefixes] == [20], "twelve more tokens for six prompts save too little"
    logits, cached, done = asked(llm, prompts)
    own = sum(map(len, prompts)) - sum(cached)
    assert done.num_tokens == own + 20
    assert done.num_shared_tokens == sum(cached) == 12 * 20
    assert done.num_prompt_tokens == sum(map(len, prompts))
    assert same(logits, torch.stack(alone(llm, [sequence(each) for each in prompts])))


def test_nested_beginnings_are_each_computed_once(llm: LLM) -> None:
    prompts = [[*FEW_SHOT, 80 + i, 90] for i in range(9)] + [[*TEMPLATE, 80 + i, 91] for i in range(6)]
    logits, cached, done = asked(llm, prompts)
    assert cached == [32] * 9 + [20] * 6
    assert done.num_tokens == 32 + 15 * 2
    assert done.num_forwards == 3, "the template, what follows it, and all prompts"
    assert same(logits, torch.stack(alone(llm, [sequence(each) for each in prompts])))


def test_what_saves_too_little_is_not_shared(llm: LLM) -> None:
    _, cached, done = asked(llm, [[*TEMPLATE, 80 + i] for i in range(3)])
    assert cached == [0, 0, 0] and done.num_tokens == 63 and done.num_forwards == 1


@pytest.mark.parametrize("options", [{"enable_prefix_caching": False}, {"prefix_cache_bytes": 0}])
def test_sharing_can_be_turned_off(folder: Path, options: dict[str, Any]) -> None:
    llm = LLM(str(folder), **options)
    prompts = [[*TEMPLATE, 80 + i] for i in range(9)]
    for _ in range(2):
        logits, cached, done = asked(llm, prompts)
        assert cached == [0] * 9 and done.num_tokens == 9 * 21
    assert llm.describe()["prefix_sharing"] is False
    assert same(logits, torch.stack(alone(llm, [sequence(each) for each in prompts])))


def test_token_classify_reads_every_state_and_shares_nothing(llm: LLM) -> None:
    prompts = [[*TEMPLATE, 80 + i] for i in range(9)]
    llm.classify(prompts)
    before = llm.counters
    outputs = llm.encode(prompts, pooling_task="token_classify")
    assert [tuple(each.outputs.data.shape) for each in outputs] == [(21, 3)] * 9
    assert (llm.counters - before).num_tokens == 9 * 21
    assert (llm.counters - before).num_pruned_tokens == 0


def test_given_places_share_up_to_the_first_and_run_the_last_layer_alone(llm: LLM) -> None:
    ends = [80, 81], [80, 81], [82, 83, 84], [85, 86], [87]
    places = (21,), (20, 21), (20, 22), (21, 20, 21), (3, 20)  # the first two differ in nothing else
    given = [
        replace(sequence([*TEMPLATE, *end]), pooled_at=wanted) for end, wanted in zip(ends, places, strict=True)
    ] + [replace(sequence([*TEMPLATE, 80 + i, 90, 80 + i]), pooled_at=(20,)) for i in range(6)]
    before = llm.counters
    found = [each for each in engine_of(llm).token_logits(given) if isinstance(each, SequenceResult)]
    done = llm.counters - before
    assert [each.num_cached_tokens for each in found] == [20] * 4 + [0] + [20] * 6
    assert done.num_tokens == 20 + sum(map(len, given)) - 10 * 20
    assert done.num_pruned_tokens == done.num_tokens - sum(len(each.pooled_at or ()) for each in given)
    whole = engine_of(llm).token_logits([replace(each, pooled_at=None) for each in given])
    for each, every, wanted in zip(found, whole, given, strict=True):
        assert isinstance(every, SequenceResult)
        assert same(each.row, every.row[list(wanted.pooled_at or ())])
    mixed = engine_of(llm).token_logits([given[1], replace(given[1], pooled_at=None)])
    assert [each.row.shape[0] for each in mixed if isinstance(each, SequenceResult)] == [2, 22]
    assert isinstance(mixed[0], SequenceResult) and same(mixed[0].row, found[1].row)


@pytest.mark.parametrize("name", ["bert", "bloom"])
def test_given_places_of_models_that_share_nothing(name: str, tmp_path: Path) -> None:
    """Packed where every token sees all others, and padded."""
    with LLM(str(tiny.classifier(name, tmp_path))) as llm:
        plain = llm._open.processor.tokenize([list(range(20, 20 + length)) for length in (9, 3, 12)])
        whole = [each.sequence for each in plain if isinstance(each, Tokenized)]
        every = engine_of(llm).token_logits(whole)
        found = engine_of(llm).token_logits([replace(each, pooled_at=(2, 0)) for each in whole])
    for all_rows, rows in zip(every, found, strict=True):
        assert isinstance(all_rows, SequenceResult) and isinstance(rows, SequenceResult)
        assert same(rows.row, all_rows.row[[2, 0]])


def test_embeddings_share_and_are_the_same(llm: LLM) -> None:
    prompts = [[*TEMPLATE, 80 + i] for i in range(9)]
    outputs = llm.encode(prompts, pooling_task="embed")
    assert [each.num_cached_tokens for each in outputs] == [20] * 9
    llm.reset_prefix_cache()
    for prompt, output in zip(prompts, outputs, strict=True):
        (lone,) = llm.encode([prompt], pooling_task="embed")
        assert same(lone.outputs.data, output.outputs.data)
        llm.reset_prefix_cache()


# -- across calls ------------------------------------------------------------------------------------


def test_a_second_call_computes_no_beginning_again(llm: LLM) -> None:
    first = asked(llm, [[*TEMPLATE, 80 + i] for i in range(9)])
    second = asked(llm, [[*TEMPLATE, 100 + i] for i in range(9)])
    assert first[2].num_tokens == 20 + 9 and second[2].num_tokens == 9
    assert second[1] == [20] * 9
    lone = asked(llm, [[*TEMPLATE, 120]])
    assert lone[2].num_tokens == 1 and lone[1] == [20]
    llm.reset_prefix_cache()
    again = asked(llm, [[*TEMPLATE, 120]])
    assert again[2].num_tokens == 21 and same(again[0], lone[0])


def test_lone_prompts_that_begin_alike_are_noticed(tmp_path: Path) -> None:
    long = list(range(20, 34)) * 2 + list(range(40, 46))
    # The first is remembered by its tokens, the second is seen to begin like it and keeps that, others use it.
    longer = LLM(str(tiny.classifier("qwen2", tmp_path, max_position_embeddings=128)))
    prompts = [[*long, *long, *long[:4], 80 + i] for i in range(4)]
    counted = [asked(longer, [each]) for each in prompts]
    assert [cached[0] for _, cached, _ in counted] == [0, 0, 72, 72]
    assert [done.num_tokens for *_, done in counted] == [73, 73, 1, 1]
    for prompt, (logits, *_) in zip(prompts, counted, strict=True):
        assert same(logits[0], alone(longer, [sequence(prompt)])[0])


def test_a_prompt_that_is_cached_whole_computes_its_last_token(llm: LLM) -> None:
    llm.classify([[*FEW_SHOT, 80 + i] for i in range(9)])
    for prompt in (FEW_SHOT, FEW_SHOT[:20], FEW_SHOT[:9]):
        logits, cached, done = asked(llm, [prompt])
        assert cached == [len(prompt) - 1] and done.num_tokens == 1
        assert same(logits[0], alone(llm, [sequence(prompt)])[0])
    for prompt in (FEW_SHOT[:8], FEW_SHOT[:1]):
        logits, cached, _ = asked(llm, [prompt])
        assert cached == [0] and same(logits[0], alone(llm, [sequence(prompt)])[0])


def test_salts_are_kept_apart(llm: LLM) -> None:
    engine = engine_of(llm)
    engine.logits([sequence([*TEMPLATE, 80 + i], salt="a") for i in range(9)])
    for salt, expected in (("b", 0), (None, 0), ("a", 20)):
        (answer,) = engine.logits([sequence([*TEMPLATE, 100], salt=salt)])
        assert isinstance(answer, SequenceResult) and answer.num_cached_tokens == expected
    mixed = [sequence([*TEMPLATE, 80 + i], salt=str(i)) for i in range(9)]
    engine.prefix_cache.clear()
    assert [each.num_cached_tokens for each in engine.logits(mixed) if isinstance(each, SequenceResult)] == [0] * 9


def test_the_same_prompt_under_two_salts_is_computed_for_each(llm: LLM) -> None:
    before = llm.counters
    engine_of(llm).logits([sequence(TEMPLATE, salt="a"), sequence(TEMPLATE, salt="b"), sequence(TEMPLATE, salt="a")])
    done = llm.counters - before
    assert done.num_tokens == 40 and done.num_duplicates == 1


# -- memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 8, 40, 100])
def test_keys_and_values_are_within_the_cache_and_one_wave(
    folder: Path, loaded: LLM, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = engine_of(loaded).runner.mode.bytes_a_token
    llm = LLM(str(folder), prefix_cache_bytes=max(1, tokens * size), max_num_batched_tokens=64)
    engine = engine_of(llm)
    alive: dict[StorageWeakRef, int] = {}
    append = KeyValues.append

    def counting(self: KeyValues, key: torch.Tensor, value: torch.Tensor) -> None:
        append(self, key, value)
        alive.update((StorageWeakRef(each.untyped_storage()), each.nbytes) for each in self.layers[-1])
        assert sum(its for each, its in alive.items() if not each.expired()) <= 2 * tokens * size
        assert engine.prefix_cache.num_bytes <= max(1, tokens * size)

    monkeypatch.setattr(KeyValues, "append", counting)
    roots = [[10 + root * 9 + i % 9 for i in range(20 + root % 3)] for root in range(12)]
    prompts = [[*root, 200 + i, *([300] * (i % 3))] for root in roots for i in range(8)]
    for _ in range(2):
        logits, _, done = asked(llm, prompts)
        assert same(logits[::7], torch.stack(alone(llm, [sequence(each) for each in prompts[::7]])))
        assert (done.num_tokens < done.num_prompt_tokens) == (tokens >= 20)


def test_earlier_prompts_do_not_crowd_out_those_of_this_call(folder: Path, loaded: LLM) -> None:
    size = engine_of(loaded).runner.mode.bytes_a_token
    llm = LLM(str(folder), prefix_cache_bytes=30 * size)
    for root in range(6):
        llm.classify([[*range(10 + root, 30 + root), 200 + i] for i in range(9)])
    _, cached, done = asked(llm, [[*range(100, 120), 200 + i] for i in range(9)])
    assert cached == [20] * 9 and done.num_tokens == 20 + 9


# -- failures ----------------------------------------------------------------------------------------


def test_a_prompt_that_is_refused_in_a_shared_wave_costs_itself_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = engine_of(llm).runner
    forward = runner.backbone.forward

    def refuses(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if (input_ids == 99).any():
            raise RuntimeError("not this one")
        return forward(input_ids=input_ids, **kwargs)

    prompts = [[*TEMPLATE, 90 + i] for i in range(12)]
    expected = alone(llm, [sequence(each) for each in prompts])
    monkeypatch.setattr(runner.backbone, "forward", refuses)
    outputs = list(llm.classify_iter(prompts))
    assert [each.error is None for each in outputs] == [prompt[-1] != 99 for prompt in prompts]
    assert "refuses this prompt of 21 tokens: not this one" in str(outputs[9].error)
    for output, logits in zip(outputs, expected, strict=True):
        assert output.error or (same(output.outputs.logits, logits) and output.num_cached_tokens == 20)


def test_a_beginning_that_is_refused_leaves_no_trace(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(llm)
    runner: Any = engine.runner
    prompts = [[*TEMPLATE, 90 + i] for i in range(9)] + [[150, 151, 152]]
    expected = alone(llm, [sequence(each) for each in prompts])
    attend = runner.backbone.layers[1].forward
    broken = True

    def breaks_half_way(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if broken and hidden.shape[1] >= 20:
            raise RuntimeError("not now")
        return attend(hidden, *args, **kwargs)

    monkeypatch.setattr(runner.backbone.layers[1], "forward", breaks_half_way)
    kept: list[KeyValues] = []
    append = KeyValues.append
    monkeypatch.setattr(KeyValues, "append", lambda self, *states: (kept.append(self), append(self, *states)))
    outputs = list(llm.classify_iter(prompts))
    assert [each.error is None for each in outputs] == [False] * 9 + [True]
    assert len(engine.prefix_cache) == 0 and engine.prefix_cache.num_bytes == 0
    assert kept and not any(each.layers for each in kept), "one of its layers was kept"
    broken = False
    logits, cached, _ = asked(llm, prompts)
    assert cached == [20] * 9 + [0] and same(logits, torch.stack(expected))


def test_a_nan_in_one_prompt_reaches_no_other(folder: Path) -> None:
    llm = LLM(str(folder))
    prompts = [[*TEMPLATE, 90 + i] for i in range(9)] + [[*TEMPLATE, 80, 90 + i] for i in range(9)]
    llm.model.get_input_embeddings().weight.data[80] = float("nan")
    outputs = list(llm.classify_iter(prompts))
    assert [each.error is None for each in outputs] == [True] * 9 + [False] * 9
    assert outputs[0].num_cached_tokens == 20


# -- who may share -----------------------------------------------------------------------------------


def test_token_types_are_not_shared(tmp_path: Path) -> None:
    """A causal BERT takes token types: the same tokens are not the same keys."""
    folder = tiny.classifier("bert", tmp_path, is_decoder=True)
    llm = LLM(str(folder), pooler_config={"pooling_type": "LAST"})
    engine = engine_of(llm)
    assert engine.runner.shares
    ids = [20 + i for i in range(20)]
    sequences = [sequence([*ids, 60 + i], [0] * 10 + [i % 2] * 11) for i in range(20)]
    sequences += [sequence([*ids, 60], types) for types in ([0] * 21, [1] * 21)]
    for _ in range(2):
        answers = engine.logits(sequences)
        for answer, expected in zip(answers, alone(llm, sequences), strict=True):
            assert isinstance(answer, SequenceResult) and same(answer.row, expected)
    assert any(isinstance(each, SequenceResult) and each.num_cached_tokens for each in answers), (
        "those without types share"
    )


def test_a_beginning_below_a_rotary_switch_is_not_computed_for_prompts_above_it(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
        "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 40,
    }  # fmt: skip
    folder = tiny.classifier("llama", tmp_path, rope_parameters=rope, max_position_embeddings=96)
    llm = LLM(str(folder))
    assert engine_of(llm).runner.shares
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    beginnings = [[20 + i for i in range(30)], [100 + i for i in range(30)]]
    prompts = [[*begun, *[60 + i] * n] for begun in beginnings for i, n in enumerate((30, 28, 20, 25, 1, 2, 3, 4, 3))]
    prompts += [[*beginnings[0], *[150] * 16, 160 + i] for i in range(6)]
    for call in range(2):
        logits, cached, _ = asked(llm, prompts)
        for prompt, found in zip(prompts, logits, strict=True):
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([prompt])).logits[0]
            assert same(found, expected), f"{len(prompt)} tokens"
        assert cached[4:9] == [30] * 5 and cached[-1] == 46
        assert call == 0 or cached[0] == 30, "what prompts above the switch kept serves others above it"


@pytest.mark.parametrize("pooling", ["CLS", "MEAN"])
def test_other_poolings_of_a_decoder_share_nothing(folder: Path, pooling: str) -> None:
    llm = LLM(str(folder), pooler_config={"pooling_type": pooling})
    engine = engine_of(llm)
    assert not engine.runner.shares and engine.prefix_cache.max_bytes == 0
    assert engine.runner.mode.pruned == (pooling == "CLS")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompts = [[*TEMPLATE, 80 + i] for i in range(9)] + [[40], [41, 42]]
    for prompt, logits in zip(prompts, asked(llm, prompts)[0], strict=True):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([prompt]))[0][0]
            expected = model.score(hidden[0] if pooling == "CLS" else hidden.mean(0))
        assert same(logits, expected)


def test_windows_cross_the_beginnings(tmp_path: Path) -> None:
    for name in ("qwen2-window", "gemma2"):
        folder = tiny.classifier(name, tmp_path / name)
        llm = LLM(str(folder))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        prompts = [[*FEW_SHOT, *range(80, 80 + i)] for i in range(1, 13)] + [[*TEMPLATE, 150 + i] for i in range(9)]
        logits, cached, _ = asked(llm, prompts)
        assert min(cached) >= 20
        for prompt, found in zip(prompts, logits, strict=True):
            with torch.no_grad():
                assert same(found, model(input_ids=torch.tensor([prompt])).logits[0])
