"""Heads equal what they are made of; conversions open with plain transformers and here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vllm_cls import LLM, ConfigError, ModelError, convert

from ..models import tiny

TEMPLATE = "Review: {text}\nSentiment:"
TEXTS = ["The film was good", "a boring end", "What are the best practices for secure coding in Python?"]
LMS = ["gpt2", "qwen2", "llama", "gemma2", "phi", "qwen2_5_vl", "mamba", "opt", "bloom"]


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny.causal_lm(name, tmp_path_factory.mktemp(name)) for name in LMS}


def next_token_logits(folder: Path, prompt: str, scale_free: bool = False) -> torch.Tensor:
    config = transformers.AutoConfig.from_pretrained(folder)
    name = config.architectures[0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1]


@pytest.mark.parametrize("name", LMS)
def test_label_tokens_are_next_token_logits(lms: dict[str, Path], name: str, tmp_path: Path) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(lms[name])
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("Ġbad", "Ġboring", "Ġgood")]
    report = convert(
        str(lms[name]),
        tmp_path / "tokens",
        head="tokens",
        label_tokens="neg= bad| boring,pos= good",
        prompt_template=TEMPLATE,
    )
    assert report.labels == ["neg", "pos"]
    convert(
        str(lms[name]), tmp_path / "two", head="two-way", label_tokens="neg= bad,pos= good", prompt_template=TEMPLATE
    )
    tokens, two = LLM(str(tmp_path / "tokens")), LLM(str(tmp_path / "two"))
    for text in TEXTS:
        logits = next_token_logits(lms[name], TEMPLATE.format(text=text))[ids]
        expected = torch.stack([logits[:2].mean(), logits[2]])
        assert tokens.classify(text)[0].outputs.logits == pytest.approx(expected.tolist(), abs=1e-4)
        (output,) = two.classify(text)
        assert output.outputs.probs == pytest.approx([float(logits[[0, 2]].softmax(-1)[1])], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "values"), [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 3.0}), ("gptj", {})]
)
def test_scales_and_biases_behind_the_lm_head(tmp_path: Path, name: str, values: dict[str, float]) -> None:
    sizes = dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=48) if name == "gptj" else tiny._DECODER
    tokenizer = tiny._tokenizer("qwen2")
    config = transformers.AutoConfig.for_model(
        name,
        **{**sizes, **values, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1},
    )
    source = tiny.save(
        tiny.randomize(transformers.AutoModelForCausalLM.from_config(config)), tokenizer, tmp_path / "lm"
    )
    convert(str(source), tmp_path / "out", head="tokens", label_tokens="neg= bad,pos= good")
    ids = tokenizer.convert_tokens_to_ids(["Ġbad", "Ġgood"])
    for text in TEXTS:
        expected = next_token_logits(source, text)[ids]
        assert LLM(str(tmp_path / "out")).classify(text)[0].outputs.logits == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_masked_lm_is_refused(tmp_path: Path) -> None:
    model = tiny.randomize(transformers.BertLMHeadModel(tiny.config_of("bert", is_decoder=True)))
    source = tiny.save(model, tiny._tokenizer("gpt2"), tmp_path / "lm")
    with pytest.raises(ModelError, match="--head fit"):
        convert(str(source), tmp_path / "out", head="tokens", label_tokens="a= good,b= bad", pooling="last")


@pytest.mark.parametrize("method", ["from_2_way_softmax", "no_post_processing", "original_qwen3_reranker"])
def test_conversion_at_load_time_as_vllm_does_it(lms: dict[str, Path], method: str) -> None:
    overrides: dict[str, Any] = {"classifier_from_token": ["Ġbad", "Ġgood"], "method": method}
    if method == "original_qwen3_reranker":
        overrides = {
            "architectures": ["Qwen2ForSequenceClassification"],
            "classifier_from_token": ["Ġbad", "Ġgood"],
            "is_original_qwen3_reranker": True,
        }
    llm = LLM(str(lms["qwen2"]), convert="classify", hf_overrides=overrides)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(lms["qwen2"])
    ids = tokenizer.convert_tokens_to_ids(["Ġbad", "Ġgood"])
    for text in TEXTS:
        expected = next_token_logits(lms["qwen2"], text)[ids].softmax(-1).tolist()
        wanted = expected if method == "no_post_processing" else expected[1:]
        assert llm.classify(text)[0].outputs.probs == pytest.approx(wanted, abs=1e-5)


def test_an_unknown_classifier_token_never_becomes_unk(lms: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="'not a token'.*not one token"):
        LLM(str(lms["qwen2"]), convert="classify", hf_overrides={"classifier_from_token": ["Ġgood", "not a token"]})
    with pytest.raises(ConfigError, match="method='from_3_way'"):
        LLM(
            str(lms["qwen2"]), convert="classify", hf_overrides={"classifier_from_token": ["a"], "method": "from_3_way"}
        )


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama", "bert", "ernie"])
@pytest.mark.parametrize("base", [True, False], ids=["base", "lm"])
def test_a_conversion_opens_with_plain_transformers(tmp_path: Path, name: str, base: bool) -> None:
    make = tiny.base_model if base else tiny.causal_lm
    values = {} if base or name not in ("bert", "ernie") else {"is_decoder": False}
    source = make(name, tmp_path / "source", **values)
    if base or name not in ("bert", "ernie"):
        report = convert(str(source), tmp_path / "out", head="random", labels=["a", "b", "c"], seed=2)
    else:
        save_file({"weight": torch.randn(3, 32)}, tmp_path / "head.safetensors")
        report = convert(
            str(source), tmp_path / "out", head="file", head_weights=str(tmp_path / "head.safetensors"), num_labels=3
        )
    assert report.format == "transformers"
    code = (
        "import json, sys, torch, transformers\n"
        "folder, texts = sys.argv[1], json.loads(sys.argv[2])\n"
        "model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)\n"
        "assert not any(info.values()), info\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(folder)\n"
        "with torch.no_grad():\n"
        "    print(json.dumps([model.eval()(**tokenizer(t, return_tensors='pt')).logits[0].tolist() for t in texts]))\n"
        "assert 'vllm_cls' not in sys.modules\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=True,
    )
    for output, logits in zip(LLM(str(tmp_path / "out")).classify(TEXTS), json.loads(answer.stdout), strict=True):
        assert output.outputs.logits == pytest.approx(logits, abs=1e-4)


@pytest.mark.parametrize("pooling", ["CLS", "LAST", "MEAN"])
@pytest.mark.parametrize("name", ["bert", "qwen2", "distilbert"])
def test_a_file_head_on_any_pooling_equals_backbone_and_matrix(tmp_path: Path, name: str, pooling: str) -> None:
    source = tiny.base_model(name, tmp_path / "source")
    weight, bias = torch.randn(2, 32), torch.randn(2)
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    convert(
        str(source),
        tmp_path / "out",
        head="file",
        head_weights=str(tmp_path / "head.safetensors"),
        num_labels=2,
        pooling=pooling,
    )
    backbone = transformers.AutoModel.from_pretrained(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    for text, output in zip(TEXTS, LLM(str(tmp_path / "out")).classify(TEXTS), strict=True):
        with torch.no_grad():
            hidden = backbone(**tokenizer(text, return_tensors="pt"))[0][0]
        state = {"CLS": hidden[0], "LAST": hidden[-1], "MEAN": hidden.mean(0)}[pooling]
        assert output.outputs.logits == pytest.approx((weight @ state + bias).tolist(), abs=1e-3)


def train_file(folder: Path, **columns: Any) -> Path:
    rows = [
        {"text": f"number {i}: {word}", "label": label}
        for i in range(24)
        for word, label in (("a good film", "pos"), ("a boring end", "neg"))
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({**row, **columns}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bert", {}, "transformers"),
        ("ernie", {}, "transformers"),
        ("roberta", {}, "transformers"),
        ("distilbert", {}, "vcls"),
        ("deberta-v2", {}, "vcls"),
        ("xlnet", {}, "transformers"),
        ("bert", {"pooling": "mean"}, "vcls"),
        ("qwen2", {}, "transformers"),
        ("qwen2", {"bias": True}, "vcls"),
        ("mamba", {}, "vcls"),
    ],
)
def test_fit(tmp_path: Path, name: str, options: dict[str, Any], expected: str) -> None:
    source = tiny.base_model(name, tmp_path / "source")
    train = train_file(tmp_path)
    report = convert(str(source), tmp_path / "out", head="fit", train=str(train), labels=["neg", "pos"], **options)
    assert report.format == expected
    assert report.report["accuracy"] > 0.9 > report.report["majority"]
    llm = LLM(str(tmp_path / "out"))
    assert [output.outputs.label for output in llm.classify(["number 3: a good film", "number 9: a boring end"])] == [
        "pos",
        "neg",
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "train.jsonl" in card and "accuracy" in card.lower()


def test_fit_with_rows_that_cannot_be_used(tmp_path: Path) -> None:
    source = tiny.base_model("bert", tmp_path / "source")
    train = train_file(tmp_path)
    train.write_text(train.read_text() + '{"text": null, "label": "pos"}\n{"text": "x"}\nnot json\n')
    report = convert(str(source), tmp_path / "out", head="fit", train=str(train))
    assert any("3 rows" in warning for warning in report.warnings)
    train.write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="no usable row"):
        convert(str(source), tmp_path / "other", head="fit", train=str(train))
    with pytest.raises(ConfigError, match="'pos', which --labels"):
        convert(str(source), tmp_path / "other", head="fit", train=str(train_file(tmp_path)), labels=["neg", "other"])


def test_fit_regression_and_multi_label(tmp_path: Path) -> None:
    source = tiny.base_model("bert", tmp_path / "source")
    rows = [{"text": f"{'good ' * (i % 5)}film", "label": float(i % 5)} for i in range(40)]
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = convert(str(source), tmp_path / "reg", head="fit", train=str(path), problem_type="regression")
    assert report.report["mse"] < report.report["baseline_mse"] / 4
    values = [
        output.outputs.probs[0] for output in LLM(str(tmp_path / "reg")).classify(["film", "good good good good film"])
    ]
    assert values == pytest.approx([0.0, 4.0], abs=1.0)
    several = [
        {"text": text, "label": labels} for text, labels in (("good film", ["a"]), ("bad music", ["b", "c"]))
    ] * 12
    path.write_text("".join(json.dumps(row) + "\n" for row in several))
    convert(str(source), tmp_path / "multi", head="fit", train=str(path), problem_type="multi_label_classification")
    (output,) = LLM(str(tmp_path / "multi")).classify("bad music")
    assert {label for label, p in output.outputs.scores.items() if p > 0.5} == {"b", "c"}


def test_the_stored_template_is_used_and_can_be_left_out(lms: dict[str, Path], tmp_path: Path) -> None:
    convert(str(lms["qwen2"]), tmp_path / "out", head="random", num_labels=2, prompt_template="{title}: {text}!")
    llm = LLM(str(tmp_path / "out"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    (output,) = llm.classify({"prompt": "good", "fields": {"title": "Film"}})
    assert tokenizer.decode(output.prompt_token_ids) == "Film: good!"
    (output,) = LLM(str(tmp_path / "out"), use_template=False).classify("good")
    assert tokenizer.decode(output.prompt_token_ids) == "good"
    with pytest.raises(Exception, match="needs {title}"):
        llm.classify("good")


def test_chat_template(lms: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        convert(str(lms["qwen2"]), tmp_path / "none", head="random", num_labels=2, chat_template_prompt=True)
    folder = tiny.causal_lm("llama", tmp_path / "lm")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    convert(str(folder), tmp_path / "out", head="tokens", label_tokens="n= bad,p= good", chat_template_prompt=True)
    llm = LLM(str(tmp_path / "out"))
    (text,), (chat,) = llm.classify("film"), llm.chat([{"role": "user", "content": "film"}])
    assert tokenizer.decode(text.prompt_token_ids) == "<user>film\n<a>"
    assert text.outputs == chat.outputs
    messages = [{"role": "user", "content": "film"}]
    (plain,) = llm.classify({"messages": messages, "chat_template_kwargs": {"add_generation_prompt": False}})
    assert tokenizer.decode(plain.prompt_token_ids) == "<user>film\n"


def test_a_converted_checkpoint_converts_again(lms: dict[str, Path], tmp_path: Path) -> None:
    for name in ("qwen2", "gemma2", "mamba"):
        first, second = tmp_path / f"{name}1", tmp_path / f"{name}2"
        convert(str(lms[name]), first, head="tokens", label_tokens="n= bad,p= good", prompt_template=TEMPLATE)
        report = convert(str(first), second)
        assert report.head == "existing"
        before, after = LLM(str(first)).classify(TEXTS), LLM(str(second)).classify(TEXTS)
        assert [each.outputs.logits for each in before] == [each.outputs.logits for each in after]


def test_logit_bias_is_part_of_the_head(lms: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"head": "tokens", "label_tokens": "n= bad,p= good"}
    convert(str(lms["qwen2"]), tmp_path / "plain", **options)
    report = convert(str(lms["qwen2"]), tmp_path / "biased", logit_bias=1.5, **options)
    assert report.format == "vcls"
    plain, biased = (LLM(str(tmp_path / name)).classify("good")[0].outputs.logits for name in ("plain", "biased"))
    assert biased == pytest.approx([value - 1.5 for value in plain], abs=1e-5)


def test_dry_run_writes_nothing(lms: dict[str, Path], tmp_path: Path) -> None:
    report = convert(str(lms["qwen2"]), tmp_path / "out", head="random", num_labels=2, dry_run=True)
    assert report.dry_run and "model.safetensors" in report.files
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "a"]}, "different"),
        ({"labels": ["a", "b"], "num_labels": 3}, "contradicts"),
        ({"num_labels": 0}, "at least 1"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, "one label"),
        ({"num_labels": 2, "problem_type": "guess"}, "unknown"),
        ({"num_labels": 2, "pooling": "first"}, "cls, last or mean"),
        ({"num_labels": 2, "prompt_template": "no field"}, "no field"),
        ({"num_labels": 2, "prompt_template": "{text.x}"}, "plain field name"),
        ({"num_labels": 2, "max_shard_size": "big"}, "max-shard-size"),
        ({}, "--labels or --num-labels"),
    ],
)
def test_options_that_cannot_be(lms: dict[str, Path], tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(str(lms["qwen2"]), tmp_path / "out", head="random", **options)
    assert not (tmp_path / "out").exists()


def test_weights_are_the_sources_own(lms: dict[str, Path], tmp_path: Path) -> None:
    convert(str(lms["qwen2"]), tmp_path / "out", head="random", num_labels=2)
    source, written = load_file(lms["qwen2"] / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    kept = {name for name in source if name in written}
    assert kept == set(source) - {"lm_head.weight"}
    assert all(torch.equal(source[name], written[name]) for name in kept)
    assert set(written) - kept == {"score.weight"}


def test_bare_prompts_of_label_tokens_are_told_of(lms: dict[str, Path], tmp_path: Path) -> None:
    def warned(**options: Any) -> list[str]:
        options = {"label_tokens": "no= bad,yes= good", "overwrite": True, **options}
        return [each for each in convert(str(lms["qwen2"]), tmp_path / "out", **options).warnings if "template" in each]

    (told,) = warned(head="tokens")
    assert "--prompt-template" in told and "--score-template" not in told
    (told,) = warned(head="two-way")
    assert "pairs are refused until --score-template" in told
    assert warned(head="sequence")
    assert warned(head="two-way", score_template="{{ query }} {{ document }}") == []
    assert warned(head="tokens", prompt_template=TEMPLATE) == []


def test_files_that_need_no_change_are_linked(tmp_path: Path) -> None:
    source = tiny.classifier("qwen2", tmp_path / "source")
    convert(str(source), tmp_path / "out", link=True)
    inode = (source / "model.safetensors").stat().st_ino
    assert inode in [path.stat().st_ino for path in (tmp_path / "out").glob("*.safetensors")]


def test_the_share_of_rows_held_out(tmp_path: Path) -> None:
    source = tiny.base_model("bert", tmp_path / "source")
    rows = [{"text": f"{text} {n}", "label": "xy"[n % 2]} for n in range(10) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for share, held_out in ((0.4, 12), (0.0, None)):
        report = convert(
            str(source), tmp_path / f"{share}", head="fit", train=str(tmp_path / "rows.jsonl"), validation_split=share
        )
        assert (report.report["rows"], report.report.get("held_out_rows")) == (30, held_out)
