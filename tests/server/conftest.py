"""Tiny models behind the app, asked in process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from starlette.testclient import TestClient

import vllm_cls
from tests.models import tiny, vision
from vllm_cls import LLM
from vllm_cls.server import ServerSettings, create_app

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
LABELS = {0: "bad", 1: "good", 2: "so-so"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def llm(folders: Path) -> Iterator[LLM]:
    """An encoder of three labels, which takes adapters."""
    values: dict[str, Any] = {"id2label": LABELS, "max_position_embeddings": 256}
    with LLM(str(tiny.classifier("bert", folders / "film-critic", **values)), device="cpu", enable_lora=True) as llm:
        yield llm


@pytest.fixture(scope="session")
def ranker(folders: Path) -> Iterator[LLM]:
    """A cross-encoder of one label."""
    folder = tiny.classifier("bert", folders / "ranker", num_labels=1, max_position_embeddings=256)
    with LLM(str(folder), device="cpu") as llm:
        yield llm


@pytest.fixture(scope="session")
def chatty(folders: Path) -> Iterator[LLM]:
    """A decoder with a chat template."""
    folder = tiny.classifier("llama", folders / "chatty", max_position_embeddings=8192)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    with LLM(str(folder), device="cpu") as llm:
        yield llm


@pytest.fixture(scope="session")
def tagger(folders: Path) -> Iterator[LLM]:
    """A token classifier."""
    with LLM(str(tiny.token_classifier("bert", folders / "tagger")), device="cpu") as llm:
        yield llm


@pytest.fixture(scope="session")
def seeing(folders: Path) -> Path:
    """A decoder that reads images and videos."""
    vllm_cls.convert(
        str(vision.qwen2_5_vl(folders / "seeing-base")),
        folders / "seeing",
        head="random",
        labels=[*LABELS.values()],
        seed=0,
    )
    return folders / "seeing"


@pytest.fixture(scope="session")
def sees(seeing: Path) -> Iterator[LLM]:
    with LLM(str(seeing), dtype="float32", device="cpu") as llm:
        yield llm


def client_of(llm: LLM, **settings: Any) -> TestClient:
    return TestClient(create_app(llm, ServerSettings(**settings)))


@pytest.fixture(scope="session")
def client(llm: LLM) -> Iterator[TestClient]:
    with client_of(llm, max_inputs=64) as client:
        yield client


@pytest.fixture(scope="session")
def scorer(ranker: LLM) -> Iterator[TestClient]:
    with client_of(ranker, max_inputs=64) as client:
        yield client


@pytest.fixture(scope="session")
def talker(chatty: LLM) -> Iterator[TestClient]:
    with client_of(chatty) as client:
        yield client
