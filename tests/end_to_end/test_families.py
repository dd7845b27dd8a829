"""What is peculiar to a family stays right: positions, windows, soft caps, experts, states, ends of a text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import vllm_cls
from benchmarks.coverage.case import randomize, transformers_logits
from benchmarks.coverage.small_configs import small_config
from vllm_cls import LLM, PromptError

PAD, EOS = 1, 2
DECODERS = """
    gemma gemma2 gemma3_text opt bloom mpt falcon gpt_neox phi mixtral qwen2_moe mamba jamba recurrent_gemma
""".split()
# Values that change what a model computes, and others under which it would not.
PECULIAR: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma2-softcap": ("gemma2", {"attn_logit_softcapping": 0.05}, {"attn_logit_softcapping": 1e4}),
    "gemma2-window": ("gemma2", {"sliding_window": 3}, {"sliding_window": 64}),
    "gemma3-window": ("gemma3_text", {"sliding_window": 3}, {"sliding_window": 64}),
    "mistral-window": ("mistral", {"sliding_window": 3}, {"sliding_window": None}),
    "falcon-alibi": ("falcon", {"alibi": True}, {"alibi": False}),
    "gemma3-bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}, {}),
    "llama-bidirectional": ("llama", {"is_causal": False}, {}),
    "qwen2-bidirectional": ("qwen2", {"is_causal": False}, {}),
    "modernbert-mean": ("modernbert", {"classifier_pooling": "mean"}, {"classifier_pooling": "cls"}),
    "eurobert-mean": ("eurobert", {"classifier_pooling": "mean"}, {"classifier_pooling": "bos"}),
}


def texts(lengths: tuple[int, ...] = (1, 2, 3, 5, 9, 17, 33, 40), *, ending: int | None = None) -> list[list[int]]:
    """Token ids of these lengths, none special but perhaps the last."""
    generator = random.Random(0)
    made = [[generator.randrange(16, 160) for _ in range(length)] for length in lengths]
    return [[*ids[:-1], ending] for ids in made] if ending is not None else made


def logits(llm: LLM, prompts: list[list[int]]) -> torch.Tensor:
    return torch.tensor([output.outputs.logits for output in llm.classify(prompts, use_tqdm=False)])


def native(name: str, folder: Path, values: dict[str, Any]) -> PreTrainedModel:
    """transformers' own classifier, saved; its weights do not depend on `values`."""
    config = small_config(name, pad_token_id=PAD, eos_token_id=EOS, **values)
    config.num_labels = 3
    model = randomize(transformers.AutoModelForSequenceClassification.from_config(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, LLM]:
    """A language model, and the classifier that it becomes."""
    folder = tmp_path_factory.mktemp(request.param)
    config = small_config(request.param, pad_token_id=PAD, eos_token_id=EOS)
    model = randomize(transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder / "lm")
    vllm_cls.convert(str(folder / "lm"), folder / "out", head="random", num_labels=3, seed=0)
    return model, LLM(str(folder / "out"), dtype="float32", max_num_batched_tokens=96)


def last_token_logits(model: PreTrainedModel, llm: LLM, prompts: list[list[int]]) -> torch.Tensor:
    """The head's weights on the language model's own states, a prompt at a time."""
    with torch.no_grad():
        states = [model.base_model(input_ids=torch.tensor([ids]))[0][0, -1] for ids in prompts]
        return torch.stack(states) @ llm.model.get_parameter("score.weight").T


@pytest.mark.parametrize("ending", [None, EOS], ids=["word", "eos"])
def test_a_decoder_pools_the_last_token_as_given(decoder: tuple[PreTrainedModel, LLM], ending: int | None) -> None:
    model, llm = decoder
    prompts = texts(ending=ending)
    assert torch.allclose(logits(llm, prompts), last_token_logits(model, llm, prompts), atol=1e-4)


@torch.no_grad()
def test_a_decoder_whose_text_ends_in_pad_gives_what_transformers_gives(decoder: tuple[PreTrainedModel, LLM]) -> None:
    """There is no tokenizer here, for which the conversion would have chosen a pad token that ends no text."""
    _, llm = decoder
    model = transformers.AutoModelForSequenceClassification.from_pretrained(llm.model.name_or_path).eval()
    prompts = texts(ending=PAD)
    expected = torch.cat([model(torch.tensor([ids])).logits for ids in prompts])
    assert torch.allclose(logits(llm, prompts), expected, atol=1e-4)


def test_a_decoders_result_does_not_depend_on_its_batch(decoder: tuple[PreTrainedModel, LLM]) -> None:
    _, llm = decoder
    prompts = texts()
    alone = torch.cat([logits(llm, [ids]) for ids in prompts])
    for seed in range(3):
        order = random.Random(seed).sample(range(len(prompts)), len(prompts) - seed)
        assert torch.allclose(logits(llm, [prompts[index] for index in order]), alone[order], atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_the_experts_of_a_token_do_not_depend_on_its_batch(name: str, tmp_path: Path) -> None:
    """Many texts for the same experts: none is dropped or sent elsewhere, as an expert of bounded room would."""
    native(name, tmp_path, {})
    llm = LLM(str(tmp_path), dtype="float32", max_num_batched_tokens=4096)
    assert llm.describe()["execution"] == "packed"
    one, others = texts((7,))[0], [[20 + i % 3] * 30 for i in range(60)]
    alone = logits(llm, [one])
    crowded = logits(llm, [*others, one, *reversed(others)])[len(others)]
    assert torch.allclose(crowded, alone[0], atol=1e-5)
    assert torch.allclose(alone, transformers_logits(tmp_path, [one]), atol=1e-4)


@pytest.mark.parametrize("case", list(PECULIAR))
def test_what_is_peculiar_to_a_family(case: str, tmp_path: Path) -> None:
    name, values, without = PECULIAR[case]
    model, plain = native(name, tmp_path / "model", values), native(name, tmp_path / "plain", without)
    prompts = texts()
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in prompts])
        otherwise = torch.cat([plain(input_ids=torch.tensor([ids])).logits for ids in prompts])
    assert (expected - otherwise).abs().max() > 1e-2, "it shows in the logits"
    assert torch.allclose(logits(LLM(str(tmp_path / "model"), dtype="float32"), prompts), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text"])
def test_a_bidirectional_decoder_shares_no_beginnings(name: str, tmp_path: Path) -> None:
    values = {"use_bidirectional_attention": True} if name == "gemma3_text" else {"is_causal": False}
    native(name, tmp_path, values)
    with LLM(str(tmp_path), dtype="float32", pooler_config={"pooling_type": "CLS"}) as llm:
        first, second = logits(llm, [[20, 21, 22], [20, 21, 23]])
        assert not torch.allclose(first, second, atol=1e-3), "the first token sees the last one"
        assert not llm.describe()["prefix_sharing"]


@pytest.mark.parametrize(("name", "form"), [("bart", "packed"), ("t5", "padded"), ("mbart", "packed")])
def test_texts_with_different_numbers_of_end_tokens_share_a_call(name: str, form: str, tmp_path: Path) -> None:
    native(name, tmp_path, {})
    prompts = texts(ending=EOS)
    prompts = [*prompts, [20, EOS, 21, EOS, 22, EOS], [EOS, EOS], [*prompts[-1][:20], EOS, *prompts[-1][20:]]]
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert llm.describe()["execution"] == form, llm.describe()["why_not_packed"]
        assert torch.allclose(logits(llm, prompts), transformers_logits(tmp_path, prompts), atol=1e-4)
        with pytest.raises(PromptError, match="end-of-text|<eos>"):
            llm.classify([[20, 21, 22]])


def test_mbart_classifies_at_the_end_token_before_its_language(tmp_path: Path) -> None:
    native("mbart", tmp_path, {})
    prompts = [[*ids, 9] for ids in texts(ending=EOS)]
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert torch.allclose(logits(llm, prompts), transformers_logits(tmp_path, prompts), atol=1e-4)
