"""Labels of several tokens: exact against transformers' log softmax over the whole sequences, and computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models import tiny, tokenizers
from vllm_cls import LLM, ConfigError, ModelError, convert, load_classifier

TEXTS = ["The film was good", "a boring end", "What are the best practices for secure coding in Python?"]
SEQUENCES = {
    "negative": [" very bad", " boring"],
    "positive": [" quite good"],
    "neutral": [" very good"],
    "short": [" good"],
}
TEMPLATE = "Review: {text}\nSentiment:"


def expected_logits(folder: Path, prompt: str, **config: Any) -> list[float]:
    """Log-probabilities of the labels' texts by the language model's own forward over each whole sequence."""
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    start = len(tokenizer(prompt).input_ids)
    labels = []
    for texts in SEQUENCES.values():
        each = []
        for text in texts:
            ids = tokenizer(prompt + text, return_tensors="pt").input_ids
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].float().log_softmax(-1)
            each.append(sum(logs[place - 1, ids[0, place]] for place in range(start, ids.shape[1])))
        labels.append(float(torch.logsumexp(torch.stack(each), 0)))  # type: ignore[arg-type]
    return labels


# packed and shared; a soft cap; tied embeddings; an LM head with a bias; a scale; padded, which cannot share
@pytest.mark.parametrize(
    ("name", "values", "shares"),
    [
        ("qwen2", {}, True),
        ("gemma2", {"final_logit_softcapping": 2.0}, True),
        ("llama", {"tie_word_embeddings": True}, True),
        ("phi", {}, True),
        ("gpt2", {}, True),
        ("bloom", {}, False),
        ("mamba", {}, False),
    ],
)
def test_a_labels_logit_is_the_log_probability_of_its_text(
    tmp_path: Path, name: str, values: dict[str, Any], shares: bool
) -> None:
    source = tiny.causal_lm(name, tmp_path / "source", **values)
    report = convert(str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES, prompt_template=TEMPLATE)
    assert report.format == "vcls" and report.labels == list(SEQUENCES)
    prompts = [TEMPLATE.format(text=text) for text in TEXTS[:2]]
    with LLM(str(tmp_path / "out")) as llm:
        assert llm.describe()["prefix_sharing"] is shares
        outputs = llm.classify(TEXTS[:2])
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = expected_logits(source, prompt)
        assert output.outputs.logits == pytest.approx(expected, abs=1e-4)
        assert output.outputs.probs == pytest.approx(torch.tensor(expected).softmax(0).tolist(), abs=1e-4)
    model: Any = load_classifier(str(tmp_path / "out"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(1)
    for side in ("left", "right"):
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
        with torch.no_grad():
            logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        assert logits.tolist() == [pytest.approx(each.outputs.logits, abs=1e-4) for each in outputs]


@pytest.mark.parametrize(("name", "values"), [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 3.0})])
def test_what_scales_an_lm_heads_logits_is_kept(tmp_path: Path, name: str, values: dict[str, float]) -> None:
    tokenizer = tokenizers.byte_level()
    shape = {**tiny.ARCHITECTURES["llama"].config, "vocab_size": len(tokenizer), **values}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **shape))
    source = tiny.save(tiny.randomize(model), tokenizer, tmp_path / "source")
    convert(str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES, prompt_template=TEMPLATE)
    with LLM(str(tmp_path / "out")) as llm:
        for text in TEXTS[:2]:
            (output,) = llm.classify(text)
            assert output.outputs.logits == pytest.approx(expected_logits(source, TEMPLATE.format(text=text)), abs=1e-4)


def test_thousands_of_labels(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    words = ["very", "quite", "good", "bad", "boring", "film", "end", "coding", "best", "secure", "what", "practices"]
    texts = [f" {one} {two} {three}" for one in words for two in words for three in words]
    label_tokens = {text.strip(): text for text in texts}
    report = convert(str(source), tmp_path / "out", head="sequence", label_tokens=label_tokens)
    assert len(report.labels) == len(words) ** 3
    with LLM(str(tmp_path / "out")) as llm, LLM(str(tmp_path / "out"), prefix_cache_bytes=50_000) as small:
        outputs = [each.classify(TEXTS[:2]) for each in (llm, small)]
        assert llm.counters.num_tokens == small.counters.num_tokens  # in parts, and nothing twice
    for one, other in zip(*outputs, strict=True):
        assert other.outputs.logits == pytest.approx(one.outputs.logits, abs=1e-4)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    start = len(tokenizer(TEXTS[0]).input_ids)
    for place in (0, 700, len(texts) - 1):
        ids = tokenizer(TEXTS[0] + texts[place], return_tensors="pt").input_ids
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        expected = sum(float(logs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))
        assert outputs[0][0].outputs.logits[place] == pytest.approx(expected, abs=1e-3)


def test_prompt_and_texts_are_computed_once(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    convert(str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES)
    with LLM(str(tmp_path / "out")) as llm:
        before = llm.counters
        (output,) = llm.classify(TEXTS[2])
        computed = llm.counters.num_tokens - before.num_tokens
        texts = {" very good", " very bad", " quite good", " boring", " good"}
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
        ids = [tuple(tokenizer(text).input_ids) for text in texts]
        beginnings = {each[:count] for each in ids for count in range(1, len(each))}
        assert computed == len(output.prompt_token_ids) + len(beginnings)
        assert computed < len(output.prompt_token_ids) + sum(map(len, ids))
    with LLM(str(tmp_path / "out"), enable_prefix_caching=False) as plain:
        before = plain.counters
        (again,) = plain.classify(TEXTS[2])
        assert plain.counters.num_tokens - before.num_tokens > 5 * len(output.prompt_token_ids)
        assert again.outputs.logits == pytest.approx(output.outputs.logits, abs=1e-4)


def test_many_prompts_with_a_common_beginning(tmp_path: Path) -> None:
    source = tiny.causal_lm("llama", tmp_path / "source")
    template = "What are the best practices: {text}. Is it"
    convert(str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES, prompt_template=template)
    texts = [f"{word} {number}" for number in range(8) for word in ("a", "the film")]
    with LLM(str(tmp_path / "out")) as llm:
        together = llm.classify([*texts, texts[0]])
        assert llm.counters.num_shared_tokens > 100 and llm.counters.num_duplicates == 1
        llm.reset_prefix_cache()
        for text, output in zip(texts, together, strict=False):
            assert llm.classify(text)[0].outputs.logits == pytest.approx(output.outputs.logits, abs=1e-4)
    # a cache that holds one prompt at a time
    with LLM(str(tmp_path / "out"), prefix_cache_bytes=20_000) as small:
        for output, again in zip(together, small.classify(texts), strict=False):
            assert again.outputs.logits == pytest.approx(output.outputs.logits, abs=1e-4)


def test_only_what_is_needed_is_written(tmp_path: Path) -> None:
    own = tiny.causal_lm("qwen2", tmp_path / "own")
    tied = tiny.causal_lm("llama", tmp_path / "tied", tie_word_embeddings=True)
    convert(str(own), tmp_path / "a", head="sequence", label_tokens=SEQUENCES, dtype="bfloat16")
    convert(str(tied), tmp_path / "b", head="sequence", label_tokens=SEQUENCES)
    written, source = load_file(tmp_path / "a" / "model.safetensors"), load_file(own / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], source["lm_head.weight"].bfloat16())
    assert len(written) == len(source)
    assert not any("lm_head" in name for name in load_file(tmp_path / "b" / "model.safetensors"))


def test_room_for_the_texts_is_kept(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    convert(str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES)
    with LLM(str(tmp_path / "out")) as llm:
        assert llm.max_model_len == tiny.LENGTH - 6
        (output,) = llm.classify("The film " * 40, tokenization_kwargs={"truncate_prompt_tokens": -1})
        assert len(output.prompt_token_ids) == llm.max_model_len


def test_sequences_are_calibrated_too(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    convert(str(source), tmp_path / "plain", head="sequence", label_tokens=SEQUENCES)
    rows = [{"text": f"{text} {n}", "label": list(SEQUENCES)[n % 4]} for n in range(20) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = convert(
        str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES, calibrate=str(tmp_path / "rows.jsonl")
    )
    told = report.report["calibration"]
    assert told["kept"]
    with LLM(str(tmp_path / "plain")) as plain, LLM(str(tmp_path / "out")) as calibrated:
        before, after = plain.classify(TEXTS[0])[0].outputs, calibrated.classify(TEXTS[0])[0].outputs
    shift = told.get("bias", [0.0] * 4)
    expected = [one / told["temperature"] + other for one, other in zip(before.logits, shift, strict=True)]
    assert after.logits == pytest.approx(expected, abs=1e-4)


def test_texts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = str(tiny.causal_lm("qwen2", tmp_path / "source"))
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="two labels at least"):
        convert(source, out, head="sequence", label_tokens="a= good")
    with pytest.raises(ConfigError, match="'a' and 'b' have a text with the same tokens"):
        convert(source, out, head="sequence", label_tokens="a= very good,b= very good")
    with pytest.raises(ConfigError, match="one text begins another"):
        convert(source, out, head="sequence", label_tokens="a= very| very good,b= bad")
    with pytest.raises(ModelError, match="melts into the end of the prompt"):
        convert(source, out, head="sequence", label_tokens="a=ing,b= bad", prompt_template="{text} bor")
    with pytest.raises(ModelError, match="--head sequence"):  # what a head of tokens suggests
        convert(source, out, head="tokens", label_tokens="a= very good,b= bad")
    with pytest.raises(ConfigError, match="last token"):
        convert(source, out, head="sequence", label_tokens="a= very good,b= bad", pooling="mean")
    with pytest.raises(ConfigError, match="label 'b' takes .* no more than 48"):
        convert(source, out, head="sequence", label_tokens={"a": " very good", "b": " bad" * 50})
    base = str(tiny.base_model("qwen2", tmp_path / "base"))
    with pytest.raises(ModelError, match="no LM head"):
        convert(base, out, head="sequence", label_tokens="a= very good,b= bad")


def test_without_sharing_prompts_still_share_batches(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    convert(str(source), tmp_path / "out", head="sequence", label_tokens=SEQUENCES, prompt_template=TEMPLATE)
    with LLM(str(tmp_path / "out"), enable_prefix_caching=False, max_num_batched_tokens=10**6) as llm:
        before = llm.counters
        llm.classify(TEXTS[:2] * 3 + ["one more"])
        assert (llm.counters - before).num_forwards == 1


@pytest.mark.parametrize("differs", [False, True])
def test_an_output_layer_beside_the_embeddings_that_it_should_be_tied_to(differs: bool, tmp_path: Path) -> None:
    """transformers ties them only where both are equal, whatever the config says."""
    folder = tiny.causal_lm("qwen2", tmp_path / "lm", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    weight = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = torch.randn_like(weight) if differs else weight.clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    texts = ",".join(f"{label}={'|'.join(each)}" for label, each in SEQUENCES.items())
    options: dict[str, Any] = {"head": "sequence", "label_tokens": texts, "prompt_template": TEMPLATE}
    convert(str(folder), tmp_path / "out", **options)
    convert(str(folder), tmp_path / "random", head="random", labels=["a", "b"], head_name="x", prompt_template=TEMPLATE)
    convert(str(tmp_path / "random"), tmp_path / "named", head_name="words", **options)
    wanted = expected_logits(folder, TEMPLATE.format(text="good"))
    with LLM(str(tmp_path / "out")) as llm, LLM(str(tmp_path / "named")) as named:
        assert llm.classify("good")[0].outputs.logits == pytest.approx(wanted, abs=1e-4)
        assert named.classify("good")[0].heads["words"].logits == pytest.approx(wanted, abs=1e-4)
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is differs
