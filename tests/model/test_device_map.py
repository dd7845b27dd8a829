"""`device_map`: a model of which parts wait on the disk gives what it gives in memory."""

from pathlib import Path
from typing import Any

import pytest

from tests.model.test_tensor_parallel import assert_equal, logits
from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.errors import ConfigError

# Of qwen2: the embeddings and two layers of three on the disk.
PARTS = {
    "model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
    "model.layers.2": "disk", "model.norm": "cpu", "score": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2", {"device_map": "auto", "max_memory": {"cpu": "100KB"}}),
        ("qwen2", {"device_map": PARTS}),
        ("bert", {"device_map": "auto", "max_memory": {"cpu": "100KB"}}),
    ],
)
def test_parts_on_the_disk_give_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = str(tiny.classifier(name, tmp_path))
    with LLM(folder) as whole:
        wanted, described = logits(whole), whole.describe()
        assert described["device_map"] is None and described["not_optimised"] is None
    with LLM(folder, **options, offload_folder=str(tmp_path / "offload")) as spread:
        found = spread.describe()
        assert found["device_map"]["disk"] >= 2 and found["device_map"]["cpu"] >= 1
        assert "projections are not joined" in found["not_optimised"]
        assert any(each.is_meta for each in spread.model.parameters())
        assert_equal(logits(spread), wanted)
    if name == "qwen2":
        assert found["execution"] == "packed" and found["prefix_sharing"]
    assert found["max_num_batched_tokens"] == described["max_num_batched_tokens"]


def test_a_model_that_fits_runs_as_ever(tmp_path: Path) -> None:
    folder = str(tiny.classifier("qwen2", tmp_path))
    with LLM(folder) as plain, LLM(folder, device_map="auto") as placed:
        assert placed.describe() == plain.describe()
        assert logits(placed).equal(logits(plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "somewhere"}, "is no mapping and none of auto, balanced"),
        ({"device_map": {"": "cpu", "score": "disk"}}, "name each part"),
        ({"max_memory": {"cpu": "1GB"}}, "go with device_map='auto'"),
        ({"device_map": "auto", "device": "cpu"}, "does not go together with device='cpu'"),
        ({"device_map": "auto", "tensor_parallel_size": 2}, "does not go together with tensor_parallel_size"),
        ({"device_map": "auto", "quantization": "int8"}, "does not go together with quantization='int8'"),
        ({"device_map": "auto", "enable_lora": True}, "does not go together with enable_lora=True"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(str(tiny.classifier("qwen2", tmp_path)), **options)


def test_a_head_that_would_be_made_now_is_refused(tmp_path: Path) -> None:
    folder = str(tiny.causal_lm("qwen2", tmp_path))
    with pytest.raises(
        ConfigError, match="as their files are, and this one's head would be made now; `vcls convert` first"
    ):
        LLM(folder, convert="classify", hf_overrides={"classifier_from_token": ["a", "b"]}, device_map="auto")
