"""Checkpoints of several files: opened, converted, shown; damaged or strange ones refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import vllm_cls
from vllm_cls import LLM, ModelError
from vllm_cls.checkpoint.files import Checkpoint

from ..models import tiny

INDEX = "model.safetensors.index.json"
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A classifier in several files."""
    source = tiny.classifier("qwen2", tmp_path / "whole")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for file in source.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def logits(folder: Path) -> torch.Tensor:
    with LLM(str(folder)) as llm:
        return torch.tensor([output.outputs.logits for output in llm.classify(PROMPTS)])


def test_shards_are_one_model(sharded: Path) -> None:
    wanted = logits(sharded.parent / "whole")
    torch.testing.assert_close(logits(sharded), wanted, atol=1e-6, rtol=0)
    vllm_cls.convert(str(sharded), sharded.parent / "out")
    torch.testing.assert_close(logits(sharded.parent / "out"), wanted, atol=1e-6, rtol=0)
    vllm_cls.convert(str(sharded), sharded.parent / "smaller", max_shard_size="10KB")
    assert len(list((sharded.parent / "smaller").glob("*.safetensors"))) > 3
    torch.testing.assert_close(logits(sharded.parent / "smaller"), wanted, atol=1e-6, rtol=0)
    with LLM(str(sharded)) as llm:
        assert llm.describe()["bytes"] == sum(each.numel() * 4 for each in llm.model.parameters())


def test_shards_may_be_links(sharded: Path, tmp_path: Path) -> None:
    """As in the hub's cache."""
    (tmp_path / "blobs").mkdir()
    for number, shard in enumerate(sorted(sharded.glob("*.safetensors"))):
        shard.rename(tmp_path / "blobs" / str(number))
        shard.symlink_to(tmp_path / "blobs" / str(number))
    torch.testing.assert_close(logits(sharded), logits(sharded.parent / "whole"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("use", [LLM, lambda path: vllm_cls.convert(path, f"{path}-out")])
def test_a_missing_or_damaged_shard_is_named(sharded: Path, use: Any) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    content = lost.read_bytes()
    lost.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=lost.name):
        use(str(sharded))
    lost.unlink()
    with pytest.raises(ModelError, match=f"{lost.name}, which is not in"):
        use(str(sharded))


@pytest.mark.parametrize(
    "name", ["../whole/model.safetensors", "/etc/passwd", "..\\whole", "sub/model.safetensors", ".."]
)
def test_an_index_that_points_elsewhere_is_refused(sharded: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["score.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="points elsewhere"):
        LLM(str(sharded))
    (sharded / INDEX).rename(sharded / "pytorch_model.bin.index.json")
    for shard in sharded.glob("*.safetensors"):
        shard.rename(shard.with_suffix(".bin"))
    with pytest.raises(ModelError, match="points elsewhere"):
        LLM(str(sharded), allow_pickle=True)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(ModelError, match=r"is not JSON|no weight_map"):
        LLM(str(sharded))


def test_one_file_goes_before_an_index_as_in_transformers(sharded: Path) -> None:
    shutil.copy(sharded.parent / "whole" / "model.safetensors", sharded)
    assert [path.name for path in Checkpoint(sharded).shards] == ["model.safetensors"]
    for shard in sharded.glob("model-*.safetensors"):
        shard.unlink()
    torch.testing.assert_close(logits(sharded), logits(sharded.parent / "whole"), atol=1e-6, rtol=0)
