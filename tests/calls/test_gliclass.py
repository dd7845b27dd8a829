"""GLiClass's checkpoints give the numbers of its own library (gliclass 0.1.21), which is not installed here.

They were taken from its pipeline, one text at a time, on these checkpoints.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models import tiny
from tests.server.served import served
from vllm_cls import LLM, AsyncLLM, Client, ConfigError, ModelError, PromptError, classify_file, convert
from vllm_cls.client import RejectedError
from vllm_cls.plugins.gliclass_model import GLiClassConfig, GLiClassForSequenceClassification

TEXTS = ["The film was good and the music was great.", "yes no true false"]
LABELS = ["music", "a boring end", "plot"]
MARKERS = ["<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bert", {"prompt_first": True}),
    "text first": ("electra", {"scorer_type": "weighted-dot", "embed_class_token": False}),
    "averages": (
        "deberta-v2",
        {
            "scorer_type": "mlp",
            "class_token_pooling": "average",
            "pooling_strategy": "avg",
            "normalize_features": True,
            "prompt_first": True,
        },
    ),
    "text apart": (
        "modernbert",
        {"scorer_type": "hopfield", "pooling_strategy": "max", "extract_text_features": True, "prompt_first": True},
    ),
    "attention": (
        "bert",
        {"scorer_type": "cross-attn", "pooling_strategy": "pass", "extract_text_features": True, "prompt_first": True},
    ),
    "recurrent": ("bert", {"use_lstm": True, "extract_text_features": True, "prompt_first": True}),
}
EXPECTED = {
    "plain": [[-2.14995, -3.59332, -3.65278], [-0.4129, -0.93854, -1.31266]],
    "text first": [[2.86874, 2.05164, 3.63312], [3.07838, 2.53623, 2.88715]],
    "averages": [[1.58717, 1.17346, 1.12998], [1.27648, 1.08941, 1.21764]],
    "text apart": [[5.39251, 4.09565, -0.73879], [-0.65943, 2.82463, 2.91951]],
    "attention": [[0.45342, 0.5789, 0.52139], [0.37218, 0.51724, 0.45489]],
    "recurrent": [[0.77688, 0.48247, 0.38559], [0.61784, 0.3784, 0.39849]],
}
"""Logits of each text's labels."""


def checkpoint(case: str, folder: Path, **values: Any) -> Path:
    """In the library's layout; each weight is drawn by its name."""
    backbone, settings = CASES[case]
    tokens = tiny.ARCHITECTURES[backbone].tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": MARKERS})
    label, separator, example = tokens.convert_tokens_to_ids(MARKERS)
    encoder = tiny.config_of(backbone, max_position_embeddings=64).to_dict() | {"vocab_size": len(tokens)}
    content = {
        "model_type": "GLiClass",
        "architectures": ["GLiClassModel"],
        "architecture_type": "uni-encoder",
        "encoder_config": encoder,
        "encoder_model_name": "somewhere/else",
        "class_token_index": label,
        "text_token_index": separator,
        "example_token_index": example,
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "scorer_num_heads": 4,
        "scorer_mlp_hidden_size": 24,
        "problem_type": "multi_label_classification",
        **settings,
        **values,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    config = GLiClassConfig(**{name: value for name, value in content.items() if name != "model_type"})
    weights = {}
    for name, tensor in GLiClassForSequenceClassification(config).state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weights[name] = torch.randn(tensor.shape, generator=generator) * (0.2 if tensor.ndim > 1 else 0.1)
        weights[name] += float(name.endswith(("norm.weight", "LayerNorm.weight", "logit_scale")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokens.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(checkpoint("plain", tmp_path_factory.mktemp("gliclass") / "plain"))) as opened:
        yield opened


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_library(case: str, tmp_path: Path) -> None:
    with LLM(str(checkpoint(case, tmp_path / "model"))) as llm:
        several = llm.classify(TEXTS, candidate_labels=LABELS, multi_label=True)
        one = llm.classify(TEXTS, candidate_labels=LABELS)
    for output, single, expected in zip(several, one, EXPECTED[case], strict=True):
        logits = torch.tensor(expected)
        assert output.outputs.logits == pytest.approx(expected, abs=1e-4)
        assert output.outputs.probs == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)
        assert single.outputs.probs == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        assert single.outputs.label == LABELS[int(logits.argmax())]


def test_a_text_with_markers_has_no_labels(llm: LLM) -> None:
    (found,) = llm.classify("yes<<LABEL>>no<<SEP>>", candidate_labels=LABELS, multi_label=True)
    assert len(found.outputs.probs) == len(LABELS)
    model: Any = llm._open.classifier.model
    label, separator = model.config.class_token_index, model.config.text_token_index
    ids = [2, label, 7, label, 8, separator, 9, label, 9]
    assert model.reads(ids, 2)[1:] == [range(1, 2), range(3, 4)]
    try:
        model.config.prompt_first = False
        assert model.reads(ids, 2)[1:] == [range(3, 4), range(7, 8)]
    finally:
        model.config.prompt_first = True
    with pytest.raises(ConfigError, match="candidate_labels: 'a<<SEP>>' holds a marker"):
        llm.classify(TEXTS, candidate_labels=["a<<SEP>>"])


def test_async(llm: LLM) -> None:
    async def both() -> Any:
        async with AsyncLLM(llm) as shared:
            return await shared.classify(TEXTS, candidate_labels=LABELS)

    expected = [each.outputs.probs for each in llm.classify(TEXTS, candidate_labels=LABELS)]
    assert [each.outputs.probs for each in asyncio.run(both())] == [pytest.approx(each, abs=1e-6) for each in expected]


def test_files_and_http(llm: LLM, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    classify_file(llm, rows, out, candidate_labels=LABELS, multi_label=True)
    expected = [pytest.approx(torch.tensor(row).sigmoid().tolist(), abs=1e-5) for row in EXPECTED["plain"]]
    assert [json.loads(line)["probs"] for line in out.read_text().splitlines()] == expected
    with served(llm) as url, Client(url) as client:
        found = client.classify(TEXTS, candidate_labels=LABELS, multi_label=True)
        assert [each.probs for each in found] == expected
        with pytest.raises(RejectedError, match="name some with candidate_labels"):
            client.classify(TEXTS)


def test_errors(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a head that reads what a request asks, and takes no other"):
        convert(llm._open.options.model, str(tmp_path / "out"), head="random", num_labels=2)
    with pytest.raises(ConfigError, match="no labels of its own; name some with candidate_labels"):
        llm.classify(TEXTS)
    with pytest.raises(ConfigError, match="hypothesis_template: this model reads labels as they are"):
        llm.classify(TEXTS, candidate_labels=LABELS, hypothesis_template="It is {}.")
    with pytest.raises(PromptError, match="^prompt 1: This model's maximum context length"):
        llm.classify([TEXTS[0], "long " * 99], candidate_labels=LABELS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture_type": "bi-encoder"}, "a GLiClass model of the kind 'bi-encoder'"),
        ({"squeeze_layers": True}, "a GLiClass model with squeeze_layers=True"),
        ({"scorer_type": "decoder-kv"}, "a GLiClass model with 'decoder-kv'; known are simple, weighted-dot"),
        ({"encoder_config": {"model_type": "t5"}}, "a GLiClass model on t5; it runs here on bert"),
    ],
)
def test_other_kinds_are_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = checkpoint("plain", tmp_path / "model") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ModelError, match=message):
        LLM(str(file.parent))
