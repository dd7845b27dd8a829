"""A head that transformers trained was trained on the last token that is not pad, also where a text ends in pad tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vllm_cls import LLM, convert
from vllm_cls.pooler.activations import softmax_or_sigmoid

from ..model.test_lora import TARGETS, expected, train
from ..models import tiny

TEXTS = ["The film was good", "a boring end", "yes", "The film was good and the music was great"]
PAD = 0  # the end-of-text token, which these tokenizers could put behind each text


def with_pad(folder: Path, pad: int | None = PAD) -> Path:
    """The same model, padded with its end-of-text token."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": pad}))
    return folder


def prompts(folder: Path) -> list[list[int]]:
    """Texts behind which are no, one or two pad tokens; and nothing but pad tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text).input_ids + [PAD] * count for text in TEXTS for count in (0, 1, 2)] + [[PAD, PAD]]


@torch.no_grad()
def of_transformers(folder: Path) -> list[list[float]]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return [model(torch.tensor([ids])).logits[0].tolist() for ids in prompts(folder)]


def ours(folder: Path, **options: Any) -> list[list[float]]:
    """All in one batch, then each alone; both are the same."""
    given = [{"prompt_token_ids": ids} for ids in prompts(folder)]
    with LLM(str(folder), **options) as llm:
        together = [output.outputs.logits for output in llm.classify(given)]
        for prompt, logits in zip(given, together, strict=True):
            (alone,) = llm.classify(prompt)
            assert alone.outputs.logits == pytest.approx(logits, abs=1e-5)
            assert alone.prompt_token_ids == prompt["prompt_token_ids"]
        return together


# packed and shared; padded; a class whose last token is the last one, whatever it is
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "llama", "opt", "bloom", "xlnet"])
def test_logits_are_transformers_own(name: str, tmp_path: Path) -> None:
    folder = with_pad(tiny.classifier(name, tmp_path / "model"))
    wanted = of_transformers(folder)
    torch.testing.assert_close(torch.tensor(ours(folder)), torch.tensor(wanted), atol=1e-4, rtol=0)


def test_shared_beginnings_do_not_reach_beyond_the_pooled_token(tmp_path: Path) -> None:
    """What one prompt ends with, another goes on from."""
    folder = with_pad(tiny.classifier("qwen2", tmp_path / "model"))
    stem = list(range(10, 40))
    given = [stem, [*stem, PAD], [*stem, PAD, PAD], [*stem, PAD, 7], [*stem, PAD, PAD, 8]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = torch.cat([model(torch.tensor([ids])).logits for ids in given])
    with LLM(str(folder)) as llm:
        for _ in range(2):  # the second time from the cache
            found = [each.outputs.logits for each in llm.classify([{"prompt_token_ids": ids} for ids in given])]
            torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-4, rtol=0)


def test_every_token_is_labelled_where_that_is_asked(tmp_path: Path) -> None:
    folder = with_pad(tiny.classifier("qwen2", tmp_path / "model"))
    given = prompts(folder)
    with LLM(str(folder)) as llm:
        outputs = llm.encode([{"prompt_token_ids": ids} for ids in given], pooling_task="token_classify")
    assert [len(output.outputs.data) for output in outputs] == [len(ids) for ids in given]


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_conversion_keeps_the_pad_token_that_a_head_was_trained_with(name: str, tmp_path: Path) -> None:
    folder = with_pad(tiny.classifier(name, tmp_path / "model"))
    wanted = torch.tensor(of_transformers(folder))
    report = convert(str(folder), tmp_path / "out")
    assert not report.warnings
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == PAD
    torch.testing.assert_close(torch.tensor(of_transformers(tmp_path / "out")), wanted)
    torch.testing.assert_close(torch.tensor(ours(tmp_path / "out")), wanted, atol=1e-4, rtol=0)


def test_calibration_measures_the_same_states(tmp_path: Path) -> None:
    """The temperature and biases of `out` turn transformers' own logits of the source into ours."""
    folder = with_pad(tiny.classifier("qwen2", tmp_path / "model"))
    words = "The film was good bad boring end yes no music great plot acting".split()
    rows = [{"text": f"{a} {b}<|endoftext|>", "label": f"LABEL_{(len(a) + len(b)) % 3}"} for a in words for b in words]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = convert(str(folder), tmp_path / "out", calibrate=str(tmp_path / "rows.jsonl")).report["calibration"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(row["text"], return_tensors="pt")).logits for row in rows])
    gold = torch.tensor([int(row["label"][-1]) for row in rows])
    probs = softmax_or_sigmoid(logits)
    assert report["log_loss_before"] == pytest.approx(float(-probs[range(len(gold)), gold].log().mean()), abs=1e-4)


def test_a_head_that_is_made_reads_the_last_token_as_given(tmp_path: Path) -> None:
    """As in vLLM; and the conversion's pad token is none that ends a prompt."""
    folder = with_pad(tiny.causal_lm("qwen2", tmp_path / "model"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(word).input_ids[0] for word in (" bad", " good")]
    with torch.no_grad():
        wanted = torch.stack([model(torch.tensor([ids])).logits[0, -1, rows] for ids in prompts(folder)])
    overrides = {"classifier_from_token": [" bad", " good"]}
    found = torch.tensor(ours(folder, convert="classify", hf_overrides=overrides))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    convert(str(folder), tmp_path / "out", head="tokens", label_tokens="b= bad,g= good")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["pad_token_id"] != PAD
    torch.testing.assert_close(torch.tensor(ours(tmp_path / "out")), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(of_transformers(tmp_path / "out")), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("at_run_time", [False, True])
def test_an_adapters_head_was_trained_with_the_pad_token_too(at_run_time: bool, tmp_path: Path) -> None:
    from vllm_cls import LoRARequest

    folder = with_pad(tiny.causal_lm("qwen2", tmp_path / "model"))
    adapter = train(folder, tmp_path / "adapter", TARGETS["qwen2"], 3, seed=1)
    given = prompts(folder)
    wanted = torch.stack(expected(folder, adapter, 3, given))
    options: dict[str, Any] = {"enable_lora": True} if at_run_time else {"lora": str(adapter)}
    request = LoRARequest("a", 1, str(adapter)) if at_run_time else None
    with LLM(str(folder), **options) as llm:
        outputs = llm.classify([{"prompt_token_ids": ids} for ids in given], lora_request=request)
    found = torch.tensor([output.outputs.logits for output in outputs])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_float32_head_behind_a_backbone_of_bfloat16(name: str, tmp_path: Path) -> None:
    """The model's own forward, which is tried with a pad token behind a text, knows one dtype."""
    folder = with_pad(tiny.classifier(name, tmp_path / "model"))
    wanted = torch.tensor(of_transformers(folder))
    with LLM(str(folder), dtype="bfloat16") as llm:
        found = torch.tensor([llm.classify({"prompt_token_ids": ids})[0].outputs.logits for ids in prompts(folder)])
    torch.testing.assert_close(found, wanted, atol=0.03 * float(wanted.abs().max()), rtol=0)
