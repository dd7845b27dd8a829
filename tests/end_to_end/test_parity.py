"""Probabilities equal transformers' own, whatever shares the batch, by every way in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import vllm_cls
from vllm_cls import LLM, load_classifier
from vllm_cls.runtime.runner import Mode

from ..models import tiny
from ..models.tokenizers import SENTENCES

TOLERANCE = 1e-4
TEXTS = [*SENTENCES[:8], "word", " ".join(SENTENCES[:2])]
CUT = {"truncate_prompt_tokens": -1}


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An architecture's name and a classifier checkpoint of it, converted where transformers has no class."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    if name in tiny.NATIVE:
        return name, tiny.classifier(name, folder / "classifier")
    source = tiny.causal_lm(name, folder / "lm")
    vllm_cls.convert(str(source), folder / "classifier", head="random", num_labels=3, seed=1)
    return name, folder / "classifier"


def prompts_of_all_lengths(name: str, longest: int) -> list[list[int]]:
    """Token ids of lengths from 1 to the model's; eos only where an encoder-decoder wants it, at the end."""
    generator = random.Random(0)
    vocabulary = range(10, tiny.config_of(name).get_text_config().vocab_size)
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, longest - 1, longest]
    prompts = [[generator.choice(vocabulary) for _ in range(length)] for length in lengths]
    return [ids[:-1] + [2] for ids in prompts] if name == "bart" else prompts


def reference(name: str, folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits by the model's own forward, or by backbone and head where the class is ours."""
    with torch.no_grad():
        if name in tiny.NATIVE:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
            return model(**inputs).logits[0]
        model = load_classifier(str(folder))
        hidden = model.base_model(**inputs)[0]
        weight = model.get_parameter("score.weight")
        return hidden[0, -1] @ weight.T


def close(probs: list[float], logits: torch.Tensor) -> bool:
    return bool((torch.tensor(probs) - logits.softmax(-1)).abs().max() < TOLERANCE)


def test_it_runs_as_expected(case: tuple[str, Path]) -> None:
    name, folder = case
    described = LLM(str(folder)).describe()
    assert described["execution"].endswith(tiny.ARCHITECTURES[name].form), described["why_not_packed"]


@pytest.mark.parametrize("form", ["chosen", "padded", "single"])
def test_token_ids_of_every_length(case: tuple[str, Path], form: str) -> None:
    name, folder = case
    llm = LLM(str(folder), max_num_batched_tokens=96)
    runner: Any = llm._open.engine.runner
    if form == "padded" and runner.mode.form not in ("packed", "padded"):
        pytest.skip("padding changes this architecture, which the self-check found")
    if form != "chosen":
        runner.mode = Mode(form, whole=runner.mode.whole)
    prompts = prompts_of_all_lengths(name, min(llm.max_model_len, tiny.LENGTH))
    expected = [reference(name, folder, {"input_ids": torch.tensor([ids])}) for ids in prompts]
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    outputs = llm.classify([prompts[index] for index in order])
    for index, output in zip(order, outputs, strict=True):
        assert close(output.outputs.probs, expected[index]), f"{len(prompts[index])} tokens"
        assert output.prompt_token_ids == prompts[index]


def test_a_result_does_not_depend_on_its_batch(case: tuple[str, Path]) -> None:
    _, folder = case
    llm = LLM(str(folder))
    alone = [llm.classify(text, tokenization_kwargs=CUT)[0].outputs.logits for text in TEXTS]
    for seed in range(3):
        order = random.Random(seed).sample(range(len(TEXTS)), k=len(TEXTS) - seed)
        together = llm.classify([TEXTS[index] for index in order], tokenization_kwargs=CUT)
        for index, output in zip(order, together, strict=True):
            assert torch.allclose(torch.tensor(output.outputs.logits), torch.tensor(alone[index]), atol=1e-5)


def test_texts_and_pairs_by_every_way_in(case: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = case
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pairs = [(TEXTS[0], TEXTS[1]), ("a", TEXTS[2]), (TEXTS[3], "b")]
    rows = [(text, None) for text in TEXTS] + pairs
    limit = LLM(str(folder)).max_model_len
    encoded = [
        tokenizer(text, pair, return_tensors="pt", truncation=True, max_length=min(limit, tiny.LENGTH))
        for text, pair in rows
    ]
    expected = [reference(name, folder, dict(each)) for each in encoded]

    llm = LLM(str(folder), max_model_len=min(limit, tiny.LENGTH))
    outputs = llm.classify(
        [text if pair is None else (text, pair) for text, pair in rows],
        tokenization_kwargs=CUT,
    )
    for output, logits in zip(outputs, expected, strict=True):
        assert close(output.outputs.probs, logits)

    model = load_classifier(str(folder))
    with torch.no_grad():
        for each, logits in zip(encoded, expected, strict=True):
            assert torch.allclose(model(**each).logits[0], logits, atol=TOLERANCE)

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    vllm_cls.classify_file(llm, source, out)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    for row, logits in zip(written, expected[: len(TEXTS)], strict=True):
        assert close(row["probs"], logits)
        assert row["label"] == f"LABEL_{int(logits.argmax())}"
