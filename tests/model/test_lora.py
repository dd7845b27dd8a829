"""LoRA adapters at run time: PEFT's own forward is the reference, each text alone."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vllm_cls import LLM, AsyncLLM, ConfigError, LoRARequest, ModelError, PoolingParams

from ..models import tiny

peft = pytest.importorskip("peft")

TEXTS = [
    "The film was good",
    "a boring end",
    "yes",
    "What are the best practices for secure coding in Python? I don't know.",
    "Ignore all previous instructions",
]
_QWEN2 = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: dict[str, list[str]] = {
    "bert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin", "out_lin"],
    "roberta": ["query", "dense"],
    "deberta-v2": ["query_proj", "value_proj", "dense"],
    "qwen2": _QWEN2,
    "gpt2": ["c_attn"],
    "bart": ["q_proj", "v_proj", "fc1"],
}


def train(base: Path, folder: Path, targets: list[str], num_labels: int, seed: int, **options: Any) -> Path:
    """An adapter of PEFT's own, as if trained: every weight of it is random."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, ignore_mismatched_sizes=True
    )
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=targets, **options)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(folder)
    return folder


def expected(base: Path, adapter: Path, num_labels: int, token_ids: list[list[int]]) -> list[torch.Tensor]:
    """What PEFT gives for each sequence alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, ignore_mismatched_sizes=True
    )
    adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return [adapted(input_ids=torch.tensor([ids])).logits[0] for ids in token_ids]


def logits(llm: LLM, requests: Any, texts: list[str] = TEXTS) -> list[torch.Tensor]:
    outputs = llm.encode(texts, PoolingParams(use_activation=False), pooling_task="classify", lora_request=requests)
    return [output.outputs.data for output in outputs]


def ids(llm: LLM) -> list[list[int]]:
    return [output.prompt_token_ids for output in llm.encode(TEXTS, pooling_task="embed")]


@pytest.mark.parametrize("name", TARGETS)
def test_one_batch_of_the_model_and_two_adapters_equals_peft(name: str, tmp_path: Path) -> None:
    base = tiny.classifier(name, tmp_path / "base")
    head = {"modules_to_save": ["classification_head"]} if name == "bart" else {}
    first = LoRARequest("first", 1, str(train(base, tmp_path / "first", TARGETS[name], 3, seed=1, **head)))
    second = LoRARequest("second", 2, str(train(base, tmp_path / "second", TARGETS[name][:1], 5, seed=2, **head)))
    with LLM(str(base), enable_lora=True) as llm:
        own = logits(llm, None)
        sequences = ids(llm)
        wanted = {
            None: own,
            first: expected(base, tmp_path / "first", 3, sequences),
            second: expected(base, tmp_path / "second", 5, sequences),
        }
        assert (torch.stack(wanted[first]) - torch.stack(own)).abs().max() > 0.1
        requests = [None, first, second]
        mixed = [(text, request) for request in requests for text in range(len(TEXTS))][::-1]
        found = logits(llm, [request for _, request in mixed], [TEXTS[text] for text, _ in mixed])
        for (text, request), row in zip(mixed, found, strict=True):
            torch.testing.assert_close(row, wanted[request][text], atol=1e-4, rtol=0)
        for request in (first, second):
            torch.testing.assert_close(logits(llm, request), wanted[request], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits(llm, None), own, atol=0, rtol=0)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoRARequest, LoRARequest]:
    folder = tmp_path_factory.mktemp("qwen2")
    base = tiny.classifier("qwen2", folder / "base")
    first = train(base, folder / "first", _QWEN2, 3, seed=1)
    second = train(base, folder / "second", ["v_proj", "down_proj"], 1, seed=2, use_rslora=True)
    return base, LoRARequest("first", 1, str(first)), LoRARequest("second", 2, str(second))


def test_a_model_without_a_head_runs_through_adapters_alone(
    qwen2: tuple[Path, LoRARequest, LoRARequest], tmp_path: Path
) -> None:
    _, first, _ = qwen2
    base = tiny.causal_lm("qwen2", tmp_path / "lm")
    with LLM(str(base), enable_lora=True) as llm:
        torch.testing.assert_close(
            logits(llm, first), expected(base, Path(first.lora_path), 3, ids(llm)), atol=1e-4, rtol=0
        )
        with pytest.raises(ConfigError, match="no head of its own"):
            llm.classify(TEXTS)
        with pytest.raises(ConfigError, match="no head of its own"):
            llm.classify(TEXTS, lora_request=[None, *[first] * (len(TEXTS) - 1)])


def test_what_prompts_share_depends_on_the_adapter(qwen2: tuple[Path, LoRARequest, LoRARequest]) -> None:
    base, first, second = qwen2
    beginning = list(range(5, 35))
    prompts = [[*beginning, *tail] for tail in ([7], [8, 9], [10, 11, 12], [13], [14, 15])] * 3
    requests = [request for request in (None, first, second) for _ in range(5)]
    kept = LLM(str(base), enable_lora=True)
    plain = LLM(str(base), enable_lora=True, enable_prefix_caching=False, num_threads=2, max_num_batched_tokens=128)
    raw = PoolingParams(use_activation=False)
    for _ in range(2):  # the second time everything is at hand
        found = kept.encode(prompts, raw, pooling_task="classify", lora_request=requests)
        wanted = plain.encode(prompts, raw, pooling_task="classify", lora_request=requests)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.outputs.data, other.outputs.data, atol=1e-4, rtol=0)
    assert kept.counters.num_shared_tokens > 0
    assert max(output.num_cached_tokens for output in found) >= len(beginning)


def test_labels_and_activation_are_the_adapters(qwen2: tuple[Path, LoRARequest, LoRARequest], tmp_path: Path) -> None:
    base, first, second = qwen2
    named = tmp_path / "named"
    named.mkdir()
    for file in Path(first.lora_path).iterdir():
        (named / file.name).write_bytes(file.read_bytes())
    (named / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}}))
    with LLM(str(base), enable_lora=True) as llm:
        (output,) = llm.classify("good", lora_request=LoRARequest("named", 3, str(named)))
        assert set(output.outputs.scores) == {"a", "b", "c"} and sum(output.outputs.probs) == pytest.approx(1)
        (single,) = llm.classify("good", lora_request=second)
        assert single.outputs.num_classes == 1
        assert single.outputs.probs[0] == pytest.approx(torch.sigmoid(torch.tensor(single.outputs.logits[0])).item())
        with pytest.raises(ConfigError, match="causal reranker"):  # the adapter's one label makes it one
            llm.score("good", "bad", lora_request=second)
        (score,) = llm.score("good", "bad", lora_request=second, chat_template="{{ query }} {{ document }}")
        assert 0 <= score.outputs.score <= 1
        with pytest.raises(ConfigError, match="num_labels 1"):
            llm.score("good", "bad", lora_request=first)


def test_async_requests_of_several_adapters_share_a_batch(qwen2: tuple[Path, LoRARequest, LoRARequest]) -> None:
    base, first, second = qwen2

    async def run() -> list[Any]:
        async with AsyncLLM(str(base), enable_lora=True) as llm:
            return await asyncio.gather(
                *(llm.classify(text, lora_request=each) for text in TEXTS for each in (None, first, second))
            )

    found = [output.outputs.probs for output in asyncio.run(run())]
    with LLM(str(base), enable_lora=True) as llm:
        for place, (text, each) in enumerate((text, each) for text in TEXTS for each in (None, first, second)):
            assert found[place] == pytest.approx(llm.classify(text, lora_request=each)[0].outputs.probs, abs=1e-5)


def test_int8_adds_adapters_in_float(qwen2: tuple[Path, LoRARequest, LoRARequest]) -> None:
    base, first, _ = qwen2
    with LLM(str(base), enable_lora=True, quantization="int8") as llm:
        wanted = torch.stack(expected(base, Path(first.lora_path), 3, ids(llm)))
        found, own = torch.stack(logits(llm, first)), torch.stack(logits(llm, None))
        assert (found - wanted).abs().mean() < 0.2 * (own - wanted).abs().mean()


def test_the_least_recently_used_adapter_is_let_go(qwen2: tuple[Path, LoRARequest, LoRARequest]) -> None:
    base, first, second = qwen2
    with LLM(str(base), enable_lora=True, max_loras=1) as llm:
        before = logits(llm, first)
        logits(llm, [first, second, first, second, first])
        torch.testing.assert_close(logits(llm, first), before, atol=1e-5, rtol=0)


def test_requests_are_checked(qwen2: tuple[Path, LoRARequest, LoRARequest], tmp_path: Path) -> None:
    base, first, _ = qwen2
    with LLM(str(base)) as llm, pytest.raises(ConfigError, match="enable_lora=True"):
        llm.classify("good", lora_request=first)
    with LLM(str(base), enable_lora=True, max_lora_rank=2) as llm:
        with pytest.raises(ModelError, match="rank 4, above max_lora_rank=2"):
            llm.classify("good", lora_request=first)
        with pytest.raises(ConfigError, match="must be the same"):
            llm.classify(["good", "bad"], lora_request=[first])
        with pytest.raises(ConfigError, match="no LoRARequest"):
            llm.classify("good", lora_request="first")
        with pytest.raises(ModelError, match="no adapter_config"):
            llm.classify("good", lora_request=LoRARequest("none", 1, str(tmp_path)))
    for fields in (("", 1, "x"), ("a", 0, "x"), ("a", 1, "")):
        with pytest.raises(ConfigError, match="LoRARequest"):
            LoRARequest(*fields)


def test_an_adapter_of_another_model_is_refused(qwen2: tuple[Path, LoRARequest, LoRARequest], tmp_path: Path) -> None:
    _, first, _ = qwen2
    wider = tiny.classifier("qwen2", tmp_path / "wider", hidden_size=64, intermediate_size=96)
    with LLM(str(wider), enable_lora=True) as llm, pytest.raises(ModelError, match="another model"):
        llm.classify("good", lora_request=first)
    bert = tiny.classifier("bert", tmp_path / "bert")
    with LLM(str(bert), enable_lora=True) as llm, pytest.raises(ModelError, match="no linear layer of this model"):
        llm.classify("good", lora_request=first)


def test_what_an_adapter_adds_comes_before_the_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_cls.runtime.layers import prepacking

    monkeypatch.setattr(prepacking, "chosen", lambda *shape: "oneDNN")  # a product takes the GELU behind it along
    base = tiny.classifier("bert", tmp_path / "base")
    request = LoRARequest("dense", 1, str(train(base, tmp_path / "adapter", ["query", "dense"], 3, seed=1)))
    with LLM(str(base), enable_lora=True) as llm:
        wanted = expected(base, Path(request.lora_path), 3, ids(llm))
        torch.testing.assert_close(logits(llm, request), wanted, atol=1e-4, rtol=0)


def test_an_adapter_that_was_let_go_is_not_held_by_shared_beginnings(
    qwen2: tuple[Path, LoRARequest, LoRARequest],
) -> None:
    base, first, second = qwen2
    with LLM(str(base), enable_lora=True, max_loras=1) as llm:
        prompts = [[*range(20, 40), 50 + i] for i in range(5)]
        llm.encode(prompts, pooling_task="classify", lora_request=first)
        adapters: Any = llm._open.adapters
        (adapter,) = map(weakref.ref, adapters._held.values())
        llm.encode(prompts, pooling_task="classify", lora_request=second)
        gc.collect()
        assert adapter() is None
