"""Tiny models for the benchmarks, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.models import tiny
from vllm_cls.bench.workloads import Encode


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("qwen2", tmp_path_factory.mktemp("qwen2"))


def encoder(folder: Path) -> Encode:
    """What tokenizes for `workloads`, of the tokenizer in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda texts: [
        tokenizer(each)["input_ids"] if isinstance(each, str) else tokenizer(*each)["input_ids"] for each in texts
    ]
