"""Several heads on one backbone: each as if it were converted alone, all from one forward."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vllm_cls import (
    LLM,
    ConfigError,
    LoRARequest,
    ModelError,
    PoolingParams,
    classify_file,
    convert,
    load_classifier,
)

from ..model.test_lora import train
from ..models import tiny

TEXTS = ["The film was good", "a boring end", "What are the best practices for secure coding in Python?"]
TEMPLATE = "Review: {text}\nSentiment:"
OF_TOKENS: dict[str, dict[str, Any]] = {
    "sentiment": {"head": "tokens", "label_tokens": "neg= bad| boring,pos= good", "prompt_template": TEMPLATE},
    "verdict": {"head": "two-way", "label_tokens": "no= bad,yes= good", "prompt_template": TEMPLATE},
    "topic": {
        "head": "random",
        "labels": ["film", "code", "end"],
        "problem_type": "multi_label_classification",
        "prompt_template": TEMPLATE,
    },
}
SEQUENCES = {
    "head": "sequence",
    "label_tokens": "bad= very bad,fine= quite good,good= good",
    "prompt_template": TEMPLATE,
}


def together(source: Path, folder: Path, heads: Mapping[str, dict[str, Any]]) -> Path:
    """One model with all heads, each added by a conversion of its own; and each one alone, under its name."""
    model = source
    for name, options in heads.items():
        convert(str(source), folder / name, **options)
        report = convert(str(model), folder / f"with-{name}", head_name=name, **options)
        assert report.format == "vcls" and report.heads[-1] == name
        model = folder / f"with-{name}"
    return model


def assert_as_alone(model: Path, folder: Path, names: list[str], tolerance: float = 1e-5) -> None:
    with LLM(str(model)) as llm:
        outputs = llm.classify(TEXTS)
        assert list(llm.heads) == names
    for name in names:
        with LLM(str(folder / name)) as alone:
            for one, output in zip(alone.classify(TEXTS), outputs, strict=True):
                found = output.heads[name]
                assert found.logits == pytest.approx(one.outputs.logits, abs=tolerance)
                assert found.probs == pytest.approx(one.outputs.probs, abs=tolerance)
                assert (found.label, found.id2label) == (one.outputs.label, one.outputs.id2label)
    assert all(output.outputs == output.heads[names[0]] for output in outputs)


# an LM head of its own, tied, with a bias, with a soft cap; run padded
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("qwen2", {}),
        ("gpt2", {}),
        ("phi", {}),
        ("gemma2", {"final_logit_softcapping": 2.0, "tie_word_embeddings": True}),
        ("mamba", {}),
    ],
)
def test_each_head_is_as_if_it_were_alone(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    heads = {**OF_TOKENS, "words": SEQUENCES}
    model = together(tiny.causal_lm(name, tmp_path / "source", **values), tmp_path, heads)
    assert_as_alone(model, tmp_path, list(heads))


def test_a_text_runs_once(tmp_path: Path) -> None:
    model = together(tiny.causal_lm("qwen2", tmp_path / "source"), tmp_path, OF_TOKENS)
    with LLM(str(model)) as llm, LLM(str(tmp_path / "sentiment")) as alone:
        for each in (llm, alone):
            each.classify(TEXTS)
        assert llm.counters.num_forwards == alone.counters.num_forwards
        assert llm.counters.num_tokens == alone.counters.num_tokens


def labelled(folder: Path) -> str:
    rows = [{"text": f"{text} {n}", "label": "xyz"[n % 3]} for n in range(12) for text in TEXTS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


# a pooler in the backbone (BERT; ALBERT's is a bare layer); layers beside it; a mean; none but the last
@pytest.mark.parametrize("name", ["bert", "albert", "roberta", "distilbert", "modernbert", "gpt2"])
def test_a_trained_head_is_kept_and_others_are_fitted_beside_it(tmp_path: Path, name: str) -> None:
    heads = {
        "own": {"head": "existing"},
        "fitted": {"head": "fit", "train": labelled(tmp_path)},
        "drawn": {"head": "random", "num_labels": 2, "seed": 3},
    }
    model = together(tiny.classifier(name, tmp_path / "source", problem_type="regression"), tmp_path, heads)
    # a head that is linear in the state stands behind a tanh when it is alone
    assert_as_alone(model, tmp_path, list(heads), tolerance=1e-4 if name in ("bert", "roberta") else 1e-5)


def test_heads_of_a_base_model_with_their_own_pooling(tmp_path: Path) -> None:
    weights = {"weight": torch.randn(2, 32), "bias": torch.randn(2)}
    save_file(weights, tmp_path / "head.safetensors")
    heads = {
        "fitted": {"head": "fit", "train": labelled(tmp_path), "pooling": "mean"},
        "given": {"head": "file", "head_weights": str(tmp_path / "head.safetensors"), "pooling": "mean"},
    }
    model = together(tiny.base_model("qwen2", tmp_path / "source"), tmp_path, heads)
    assert_as_alone(model, tmp_path, list(heads))
    # without being asked, a further head is made for the pooling that there is
    report = convert(str(model), tmp_path / "more", head="fit", train=labelled(tmp_path), head_name="more")
    assert report.pooling == "MEAN"


def test_a_further_head_is_calibrated_alone(tmp_path: Path) -> None:
    calibrated = {**OF_TOKENS["sentiment"], "calibrate": str(tmp_path / "rows.jsonl"), "label_tokens": "x= bad,y= good"}
    rows = [{"text": f"{text} {n}", "label": "xy"[n % 2]} for n in range(12) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    heads = {"sentiment": OF_TOKENS["sentiment"], "calibrated": calibrated}
    model = together(tiny.causal_lm("llama", tmp_path / "source"), tmp_path, heads)
    assert_as_alone(model, tmp_path, list(heads))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    return together(tiny.causal_lm("qwen2", folder / "source"), folder, {**OF_TOKENS, "words": SEQUENCES})


def test_a_request_chooses_a_head(model: Path) -> None:
    with LLM(str(model)) as llm:
        (output,) = llm.classify(TEXTS[0], pooling_params=PoolingParams(head_name="topic"))
        assert output.outputs == output.heads["topic"]
        (encoded,) = llm.encode(TEXTS[0], PoolingParams(head_name="topic"), pooling_task="classify")
        assert encoded.outputs.data.tolist() == pytest.approx(output.outputs.probs, abs=1e-6)
        assert llm.encode(TEXTS[0], pooling_task="classify")[0].outputs.data.shape == (2,)
        asked = PoolingParams(head_name="verdict")
        (rewarded,) = llm.reward(TEXTS[0], pooling_params=asked)
        assert rewarded.outputs.data.tolist() == pytest.approx(output.heads["verdict"].logits, abs=1e-6)
        (scored,) = llm.score("The film", "good", pooling_params=asked, chat_template="{{ query }}: {{ document }}")
        assert 0 < scored.outputs.score < 1
        with pytest.raises(ConfigError, match="num_labels"):
            llm.score("The film", "good", chat_template="{{ query }}: {{ document }}")
        assert llm.num_labels == 2 and llm.head("verdict").id2label == {0: "yes"}
        before = llm.counters.num_forwards
        unknown = PoolingParams(head_name="topics")
        for refused in (
            lambda: llm.classify(TEXTS, pooling_params=unknown),
            lambda: llm.encode(TEXTS, unknown, pooling_task="classify"),
            lambda: llm.classify_iter(TEXTS, head_name="topics"),
        ):
            with pytest.raises(ConfigError, match=r"'topics' is unknown; .*sentiment, verdict.*topic"):
                refused()
        assert llm.counters.num_forwards == before


def test_a_model_of_one_head_has_no_names(model: Path) -> None:
    with LLM(str(model.parent / "sentiment")) as llm:
        (output,) = llm.classify(TEXTS[0])
        assert (output.heads, llm.heads, llm.describe()["heads"]) == ({}, {}, None)
        with pytest.raises(ConfigError, match="has no name"):
            llm.classify(TEXTS[0], pooling_params=PoolingParams(head_name="sentiment"))


def test_rows_of_files_have_columns_for_every_head(model: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "topic_probs": "mine"} for text in TEXTS]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with LLM(str(model)) as llm:
        outputs = llm.classify(TEXTS)
        classify_file(llm, tmp_path / "in.jsonl", tmp_path / "out.jsonl", scores=True)
        classify_file(llm, tmp_path / "in.jsonl", tmp_path / "out.csv", keep_fields="none", head_name="topic")
        classify_file(llm, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, output in zip(written, outputs, strict=True):
        assert (row["label"], row["probs"]) == (output.outputs.label, output.outputs.probs)
        assert row["topic_labels"] == [name for name, prob in output.heads["topic"].scores.items() if prob >= 0.5]
        assert row["words_scores"] == output.heads["words"].scores
        assert (row["verdict_label"], row["input_topic_probs"]) == (None, "mine")
    with (tmp_path / "out.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:4] == ["labels", "probs", "sentiment_label", "sentiment_score"]
    assert [float(row["sentiment_score"]) for row in table] == [max(each.outputs.probs) for each in outputs]
    columns = pq.read_table(tmp_path / "out.parquet")
    assert columns["words_score"].to_pylist() == [max(each.heads["words"].probs) for each in outputs]
    assert str(columns.schema.field("topic_labels").type) == "list<element: string>"


def test_transformers_runs_the_first_head_and_names_the_others(model: Path) -> None:
    loaded: Any = load_classifier(str(model))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    prompts = [TEMPLATE.format(text=text) for text in TEXTS]
    with LLM(str(model)) as llm:
        outputs = llm.classify(TEXTS)
    for side in ("left", "right"):
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
        with torch.no_grad():
            logits = loaded(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            by_head = loaded.logits_by_head(inputs.input_ids, inputs.attention_mask)
        assert torch.allclose(logits, by_head["sentiment"], atol=1e-5)
        for name, found in by_head.items():
            expected = [each.heads[name].logits for each in outputs]
            assert found.tolist() == [pytest.approx(each, abs=1e-4) for each in expected]


def test_a_copy_keeps_the_heads_and_the_lm_head(model: Path, tmp_path: Path) -> None:
    convert(str(model), tmp_path / "copy", dtype="bfloat16")
    written = load_file(tmp_path / "copy" / "model.safetensors")
    assert written["lm_head.weight"].dtype == torch.bfloat16
    assert {name for name in written if name.startswith("heads.")} == {
        "heads.0.score.weight",
        "heads.1.score.weight",
        "heads.2.score.weight",
    }
    convert(str(tmp_path / "copy"), tmp_path / "more", head_name="more", **OF_TOKENS["sentiment"])
    with LLM(str(tmp_path / "more"), dtype="float32") as llm:
        (output,) = llm.classify(TEXTS[0])
        assert output.heads["more"].logits == pytest.approx(output.outputs.logits, abs=0.02)


def test_plain_transformers_never_takes_it_for_its_own(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    assert config["model_type"] == "vcls"
    assert "source" not in json.dumps(config["backbone_config"])  # no path of this machine
    card = (model / "README.md").read_text()
    assert all(f"`{name}`" in card for name in (*OF_TOKENS, "words"))


def test_what_cannot_be_is_refused(model: Path, tmp_path: Path) -> None:
    again = OF_TOKENS["sentiment"]
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="has a head of that name"):
        convert(str(model), out, head_name="topic", **again)
    with pytest.raises(ConfigError, match="prompt template"):
        convert(str(model), out, head_name="new", **{**again, "prompt_template": "{text} is"})
    with pytest.raises(ConfigError, match=r"pooling: .* 'LAST', not 'MEAN'"):
        convert(str(model), out, head_name="new", head="fit", train=labelled(tmp_path), pooling="mean")
    with pytest.raises(ConfigError, match="--head-name"):
        convert(str(model), out, **again)
    with pytest.raises(ConfigError, match="letters"):
        convert(str(model), out, head_name="a.b", **again)
    with pytest.raises(ModelError, match="without a classification head"):
        convert(str(model), out, head_name="new")
    with pytest.raises(ConfigError, match="token classifier"):
        tagger = tiny.token_classifier("bert", tmp_path / "tagger")
        convert(str(tagger), out, head_name="new")
    with pytest.raises(ModelError, match="BartForSequenceClassification"):
        convert(str(tiny.classifier("bart", tmp_path / "bart")), out, head_name="new")
    with pytest.raises(ConfigError, match="names"):
        LLM(str(model.parent / "with-sentiment"), enable_lora=True)
    adapter = train(tiny.causal_lm("qwen2", tmp_path / "lm"), tmp_path / "adapter", ["q_proj"], 2, seed=1)
    with pytest.raises(ConfigError, match="take no adapter"):
        LLM(str(model.parent / "with-sentiment"), lora=str(adapter))
    assert LoRARequest and not out.exists()


def test_a_head_without_a_name_can_get_one(tmp_path: Path) -> None:
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    convert(str(source), tmp_path / "biased", head="fit", train=labelled(tmp_path), bias=True)
    with pytest.raises(ModelError, match="--head existing --head-name"):
        convert(str(tmp_path / "biased"), tmp_path / "no", head="random", num_labels=2, head_name="b")
    convert(str(tmp_path / "biased"), tmp_path / "named", head="existing", head_name="a")
    with LLM(str(tmp_path / "biased")) as before, LLM(str(tmp_path / "named")) as after:
        (one,), (other,) = before.classify(TEXTS[0]), after.classify(TEXTS[0])
        assert other.heads["a"].logits == pytest.approx(one.outputs.logits, abs=1e-6)
    convert(str(source), tmp_path / "words", **SEQUENCES)
    convert(str(tmp_path / "words"), tmp_path / "named-words", head_name="words")
    convert(str(tmp_path / "named-words"), tmp_path / "both", head_name="sentiment", **OF_TOKENS["sentiment"])
    with LLM(str(tmp_path / "words")) as before, LLM(str(tmp_path / "both")) as after:
        (one,), (other,) = before.classify(TEXTS[0]), after.classify(TEXTS[0])
        assert other.outputs.logits == pytest.approx(one.outputs.logits, abs=1e-5)
    native = tiny.classifier("qwen2", tmp_path / "native")
    report = convert(str(native), tmp_path / "other", head="random", num_labels=2, head_name="b")
    assert any("is not kept" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("heads", "extra"),
    [
        (("sentiment", "topic"), "heads.1.score.bias"),
        (("sentiment", "topic"), "heads.2.score.weight"),
        ((), "score.weight"),  # beside a head of label texts
        ((), "combine.weight"),
    ],
)
def test_more_of_heads_than_the_config_says(heads: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    """Left out, it would change a head, or lose one."""
    source = tiny.causal_lm("qwen2", tmp_path / "source")
    if heads:
        folder = together(source, tmp_path, {name: OF_TOKENS[name] for name in heads})
    else:
        convert(str(source), folder := tmp_path / "sequence", **SEQUENCES)
    LLM(str(folder)).close()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, extra: torch.ones(3, 32)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"says of no head that it has {extra}"):
        LLM(str(folder))
    with pytest.raises(ModelError, match=rf"says of no head that it has {extra}"):
        convert(str(folder), tmp_path / "again")
