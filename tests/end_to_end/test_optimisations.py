"""Every optimisation, on and off and in every mixture: the same logits as each prompt alone by transformers' own forward.

And each is counted at work, so that one that silently stops fails here without any timing.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_cls import LLM
from vllm_cls.config import RuntimeConfig
from vllm_cls.model.opening import make_engine
from vllm_cls.runtime.attention import sdpa
from vllm_cls.runtime.batch import TokenSequence
from vllm_cls.runtime.engine import Engine, SequenceResult
from vllm_cls.runtime.layers import fusion
from vllm_cls.runtime.mask import MOST_SCORES
from vllm_cls.runtime.native import attention
from vllm_cls.runtime.runner import Runner

from ..models import tiny

TOLERANCE = 1e-4
MOST_KEYS = attention._MOST_KEYS
Drawn = tuple[tuple[int, ...], bool]  # token ids, and whether their second half is of another type

# What must be on for each architecture: (execution, pruned last layer, shared beginnings).
EXPECTED: dict[str, tuple[str, bool, bool]] = {
    "bert": ("packed", True, False),
    "ernie": ("packed", True, False),
    "roberta": ("packed", True, False),
    "xlm-roberta": ("packed", True, False),
    "camembert": ("packed", True, False),
    "distilbert": ("packed", True, False),
    "albert": ("packed", False, False),  # its layers are one, run several times
    "electra": ("packed", True, False),
    "deberta": ("padded", False, False),
    "modernbert": ("packed", True, False),
    "modernbert-mean": ("packed", False, False),  # a mean reads every token
    "gpt2": ("packed", True, True),
    "qwen2": ("packed", True, True),
    "qwen2-window": ("packed", True, True),
    "llama": ("packed", True, True),
    "gemma2": ("packed", True, True),
    "phi": ("packed", True, True),
    "opt": ("packed", True, True),
    "bloom": ("padded", False, False),
    "bart": ("packed", False, False),
    "xlm-roberta-xl": ("packed", True, False),
    "data2vec-text": ("packed", True, False),
    "roberta-prelayernorm": ("packed", True, False),
    "esm": ("packed", True, False),
    "roc_bert": ("packed", True, False),
}
ENCODERS = ["bert", "roberta", "distilbert", "albert", "modernbert", "modernbert-mean", "bloom"]
DECODERS = ["gpt2", "qwen2", "qwen2-window", "llama", "gemma2", "phi", "opt"]


@dataclass
class Case:
    """One architecture, loaded once, and what transformers' own forward gives for any prompt."""

    name: str
    folder: Path
    llm: LLM

    def __post_init__(self) -> None:
        self.runner: Runner = self.llm._open.engine.runner
        self.chosen = self.runner.mode
        self._forwards = {module: vars(module).get("forward") for module in self.runner.backbone.modules()}
        self._plain: Any = None
        self.expected = functools.cache(self._expected)

    def put_back(self) -> None:
        """As it was loaded, for the tests that share it."""
        self.runner.mode = self.chosen
        for module, forward in self._forwards.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward

    def sequence(self, ids: Sequence[int], types: bool = False, salt: str | None = None) -> TokenSequence:
        takes_types = self.runner.architecture.takes_token_type_ids(self.runner.backbone.config)
        marks = tuple(int(types and place >= len(ids) // 2) for place in range(len(ids))) if takes_types else None
        return self.runner.sequence_form.sequence(ids, marks, salt)

    def _expected(self, ids: tuple[int, ...], types: tuple[int, ...] | None) -> torch.Tensor:
        """`(num_labels,)`; a decoder is pooled at its end whatever the token there."""
        if self._plain is None:
            self._plain = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder).eval()
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            if self.runner.pool.__name__ == "last_pool" and hasattr(self._plain, "score"):
                logits: torch.Tensor = self._plain.score(self._plain.base_model(**inputs)[0][0, -1])
                return logits
            whole: torch.Tensor = self._plain(**inputs).logits[0]
            return whole


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def case(name: str) -> Case:
        folder = tiny.classifier(name, tmp_path_factory.mktemp(name))
        return Case(name, folder, LLM(str(folder)))

    return case


# -- what must be on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_on(cases: Any, name: str) -> None:
    described = cases(name).llm.describe()
    found = (described["execution"], described["pruned_last_layer"], described["prefix_sharing"])
    assert found == EXPECTED[name], described["why_not_packed"]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_on_is_counted(cases: Any, name: str) -> None:
    """Four lengths and a duplicate: one forward without padding where it packs, all but the pooled rows pruned."""
    execution, pruned, shared = EXPECTED[name]
    case = cases(name)
    ending = [2] if name == "bart" else []
    prompts = [[20 + n + i for i in range(n)] + ending for n in (5, 11, 3, 8)]
    prompts.append(prompts[1])
    lengths = [len(each) for each in prompts[:4]]
    case.llm.reset_prefix_cache()
    before = case.llm.counters
    case.llm.classify(prompts)
    done = case.llm.counters - before
    assert (done.num_prompts, done.num_duplicates) == (5, 1)
    assert done.num_prompt_tokens == sum(map(len, prompts))
    if execution == "packed":
        assert (done.num_forwards, done.num_tokens) == (1, sum(lengths))
    assert done.num_pruned_tokens == (sum(lengths) - 4 if pruned else 0)
    before = case.llm.counters
    outputs = case.llm.classify([[*range(20, 40), 50 + i, *ending] for i in range(9)])
    done = case.llm.counters - before
    own = 1 + len(ending)
    assert done.num_shared_tokens == sum(each.num_cached_tokens for each in outputs) == (180 if shared else 0)
    if execution == "packed":
        assert done.num_tokens == (20 + 9 * own if shared else 9 * (20 + own))
    if pruned:
        assert done.num_pruned_tokens == done.num_tokens - 9


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "modernbert", "gpt2", "qwen2", "llama", "phi", "opt"]
)
def test_projections_are_joined(cases: Any, name: str) -> None:
    backbone = cases(name).runner.backbone
    # GPT2 and ModernBERT have one projection from the start; GPT2's activation is a quicker form.
    if name == "gpt2":
        kinds = [type(module).__name__ for module in backbone.modules() if "forward" in vars(module)]
        assert kinds.count("NewGELUActivation") == 3
    elif name != "modernbert":
        assert len(list(fusion.joined(backbone))) == 3, "queries, keys and values of three layers"


# -- every mixture -----------------------------------------------------------------------------------


@st.composite
def prompts_that_begin_alike(draw: st.DrawFn) -> list[Drawn]:
    """Nested beginnings, prompts that are beginnings of others, of one token, ending in pad or eos, duplicates."""
    token = st.integers(10, 40)
    stems: list[tuple[int, ...]] = [()]
    for length in draw(st.lists(st.sampled_from([1, 7, 8, 9, 12]), min_size=2, max_size=4)):
        start = draw(token)
        stems.append((*draw(st.sampled_from(stems)), *range(start, start + length))[:44])
    made: list[Drawn] = []
    for stem in draw(st.lists(st.sampled_from(stems), min_size=1, max_size=3)):
        for _ in range(draw(st.sampled_from([1, 5, 10]))):
            tail = draw(st.lists(token, max_size=3))
            ending = draw(st.sampled_from([(), (0,), (1,), (1, 1)]))
            ids = (*stem, *tail, *ending)[: tiny.LENGTH]
            made.append((ids or (20,), draw(st.booleans())))
        made.append((stem or (30,), False))
    made += draw(st.lists(st.sampled_from(made), max_size=3))
    return draw(st.permutations(made))


MIXTURES = st.fixed_dictionaries(
    {
        "packed": st.sampled_from([True, True, True, False]),
        "pruned": st.booleans(),
        "shared": st.sampled_from([True, True, False]),
        "fused": st.booleans(),
        "native": st.booleans(),
        "max_num_batched_tokens": st.sampled_from([1, 40, 130, 4096]),
        "max_num_seqs": st.sampled_from([1, 3, 256]),
        "num_threads": st.sampled_from([1, 1, 2, 3]),
        "cache_tokens": st.sampled_from([0, 1, 9, 25, 70, 10**6]),
        "calls": st.integers(1, 3),
        "salts": st.sampled_from([(None,), ("a", "b"), (None, "a")]),
    }
)


def engine_of(case: Case, mixture: dict[str, Any]) -> Engine:
    """An engine with these optimisations, as far as the architecture has them; nothing is loaded again."""
    mode, runner = case.chosen, case.runner
    runner.mode = replace(
        mode,
        form=mode.form if mixture["packed"] or mode.whole else "padded",
        pruned=mode.pruned and mixture["pruned"],
        shared=mode.shared and mixture["shared"],
    )
    fusion.unfuse(runner.backbone)
    if mixture["fused"]:
        fusion.fuse(runner.backbone)
    attention._MOST_KEYS = MOST_KEYS if mixture["native"] else 0
    options = RuntimeConfig(
        max_num_batched_tokens=mixture["max_num_batched_tokens"],
        max_num_seqs=mixture["max_num_seqs"],
        num_threads=mixture["num_threads"],
        prefix_cache_bytes=mixture["cache_tokens"] * mode.bytes_a_token,
    )
    return make_engine(runner, options, tiny.LENGTH)


def examples(count: int) -> settings:
    return settings(max_examples=count, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", DECODERS)
@examples(8)
@given(drawn=prompts_that_begin_alike(), mixture=MIXTURES)
def test_every_mixture_of_a_decoder(cases: Any, name: str, drawn: list[Drawn], mixture: dict[str, Any]) -> None:
    check_mixture(cases(name), drawn, mixture)


@pytest.mark.parametrize("name", ENCODERS)
@examples(4)
@given(drawn=prompts_that_begin_alike(), mixture=MIXTURES)
def test_every_mixture_of_what_shares_nothing(
    cases: Any, name: str, drawn: list[Drawn], mixture: dict[str, Any]
) -> None:
    check_mixture(cases(name), drawn, mixture)


def check_mixture(case: Case, drawn: list[Drawn], mixture: dict[str, Any]) -> None:
    """The logits of each prompt alone, by a cold and a warm cache."""
    engine = engine_of(case, mixture)
    salts = itertools.cycle(mixture["salts"])
    sequences = [case.sequence(ids, types, next(salts)) for ids, types in drawn]
    try:
        for call in range(mixture["calls"]):  # the cache is cold, then warm
            part = sequences if call != 1 else sequences[: len(sequences) // 2]
            before = engine.counters.snapshot()
            answers = engine.logits(part)
            done = engine.counters.snapshot() - before
            for sequence, answer in zip(part, answers, strict=True):
                assert isinstance(answer, SequenceResult)
                expected = case.expected(sequence.token_ids, sequence.token_type_ids)
                assert float((answer.row - expected).abs().max()) < TOLERANCE, f"{len(sequence)} tokens"
                assert 0 <= answer.num_cached_tokens < len(sequence)
            assert engine.prefix_cache.num_bytes <= engine.prefix_cache.max_bytes
            check_counts(engine, part, answers, done)
    finally:
        engine.close()
        case.put_back()
        attention._MOST_KEYS = MOST_KEYS


def check_counts(engine: Engine, sequences: Sequence[TokenSequence], answers: Sequence[Any], done: Any) -> None:
    """What was computed adds up: own tokens of each distinct prompt, and those of the beginnings."""
    distinct = dict(zip(sequences, answers, strict=True))
    assert done.num_duplicates == len(sequences) - len(distinct)
    assert done.num_prompt_tokens == sum(map(len, sequences))
    assert done.num_shared_tokens == sum(answer.num_cached_tokens for answer in distinct.values())
    runner = engine.runner
    if not runner.shares or not engine.prefix_cache.max_bytes:
        assert done.num_shared_tokens == 0
    if runner.mode.form == "packed":
        own = sum(len(each) - answer.num_cached_tokens for each, answer in distinct.items())
        begun = done.num_tokens - own
        assert 0 <= begun <= done.num_shared_tokens
        assert done.num_tokens <= sum(map(len, distinct)), "sharing never computes more"
        assert done.num_pruned_tokens == (done.num_tokens - len(distinct) if runner.mode.pruned else 0)
        assert done.num_forwards <= len(distinct) + begun


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("bert", MOST_SCORES),
        ("gpt2", MOST_SCORES),
        ("qwen2", MOST_SCORES),
        ("gemma2", MOST_SCORES),
        ("gemma2", 200),
        ("modernbert", 200),
    ],
)
def test_one_row_holds_many_lengths_and_equals_each_alone(
    cases: Any, name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "MOST_SCORES", most)
    case = cases(name)
    generator = random.Random(0)
    sequences = [case.sequence([generator.randrange(10, 100) for _ in range(n)]) for n in range(1, tiny.LENGTH + 1)]
    engine = make_engine(case.runner, RuntimeConfig(max_num_batched_tokens=10**6, num_threads=1), tiny.LENGTH)
    before = engine.counters.snapshot()
    answers = engine.logits(sequences)
    assert (engine.counters.snapshot() - before).num_forwards == 1
    for sequence, answer in zip(sequences, answers, strict=True):
        assert torch.allclose(answer.row, case.expected(sequence.token_ids, sequence.token_type_ids), atol=TOLERANCE)


def test_prompts_beyond_what_packing_was_checked_for_run_alone_and_share_nothing(cases: Any) -> None:
    case = cases("qwen2")
    case.runner.mode = replace(case.chosen, checked_up_to=20)
    try:
        engine = make_engine(case.runner, RuntimeConfig(), tiny.LENGTH)
        sequences = [case.sequence([*range(20, 30), *[50 + i] * n]) for i, n in enumerate([1, 2, 3] * 4 + [15, 20])]
        sequences += [case.sequence([*range(20, 38), 60 + i]) for i in range(5)]
        for _ in range(2):
            answers = engine.logits(sequences)
            for sequence, answer in zip(sequences, answers, strict=True):
                assert torch.allclose(answer.row, case.expected(sequence.token_ids, None), atol=TOLERANCE)
                assert (answer.num_cached_tokens > 0) == (len(sequence) <= 20)
    finally:
        case.runner.mode = case.chosen


def test_embeddings_without_a_head(tmp_path: Path) -> None:
    folder = tiny.base_model("qwen2", tmp_path)
    llm = LLM(str(folder), convert="none")
    prompts = [[*range(20, 40), 50 + i] for i in range(9)] + [[60], [61, 1]]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for _ in range(2):
        outputs = llm.encode(prompts, pooling_task="embed")
        assert [each.num_cached_tokens for each in outputs] == [20] * 9 + [0, 0]
        for prompt, output in zip(prompts, outputs, strict=True):
            with torch.no_grad():
                state = model(input_ids=torch.tensor([prompt]))[0][0, -1]
            assert torch.allclose(output.outputs.data, torch.nn.functional.normalize(state, dim=-1), atol=TOLERANCE)


# -- threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "qwen2"])
def test_several_threads_classify_at_once(cases: Any, name: str) -> None:
    case = cases(name)
    llm = LLM(str(case.folder), num_threads=2, max_num_batched_tokens=64)
    before = torch.get_num_threads()

    def use(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(3):
            stem = [generator.randrange(10, 14)] * 12
            prompts = [[*stem, *[generator.randrange(10, 90) for _ in range(1 + i % 5)]] for i in range(12)]
            for prompt, output in zip(prompts, llm.classify(prompts), strict=True):
                sequence = case.sequence(prompt)
                expected = case.expected(sequence.token_ids, sequence.token_type_ids)
                assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=TOLERANCE)

    case.expected((20,), None if case.sequence([20]).token_type_ids is None else (0,))  # loads what it compares with
    with llm, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(use, seed) for seed in range(6)]:
            done.result()
    assert torch.get_num_threads() == before


def test_ctrl_c_stops_a_run_and_the_next_one_works(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases("qwen2")
    with LLM(str(case.folder), num_threads=2, max_num_batched_tokens=48) as llm:
        runner: Any = llm._open.engine.runner
        forward, ran = runner.logits, []

        def interrupted(works: Any) -> torch.Tensor:
            ran.append(len(works))
            if len(ran) == 3:
                raise KeyboardInterrupt
            return forward(works)

        prompts = [[20 + i] * 40 for i in range(30)]
        monkeypatch.setattr(runner, "logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.classify(prompts)
        assert len(ran) < 15
        monkeypatch.setattr(runner, "logits", forward)
        assert len(llm.classify(prompts)) == 30
