"""Prompts with images run in parts, so that the pixels of a long list are never in memory together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vllm_cls
from tests.models import vision
from vllm_cls import LLM, PromptError
from vllm_cls.calls import tasks
from vllm_cls.media import processor
from vllm_cls.media.features import MediaInput

IMAGES = 12


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("parts")
    vllm_cls.convert(str(vision.qwen2_5_vl(folder / "lm")), folder / "out", head="random", num_labels=3, seed=0)
    with LLM(str(folder / "out"), dtype="float32", max_num_batched_tokens=64) as llm:
        yield llm


def prompts(folder: Path) -> list[Any]:
    """Each reads an image of its own from a file, and there are texts between them."""
    made: list[Any] = []
    for number in range(IMAGES):
        path = folder / f"{number}.png"
        vision.picture(24, 24, number).save(path)
        made.append({"prompt": f"{vision.IMAGE} good", "multi_modal_data": {"image": str(path)}})
        made.append(f"the film was good {number}")
    return made


@pytest.fixture
def most_alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """The most images that were alive together, as their processor made them; it keeps none itself."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def counted(*arguments: Any, **options: Any) -> MediaInput:
        nonlocal most
        made = MediaInput(*arguments, **options)
        alive.add(made)
        most = max(most, len(alive))
        return made

    monkeypatch.setattr(processor, "MediaInput", counted)
    monkeypatch.setattr(processor, "KEPT_BYTES", 0)
    yield lambda: most


@pytest.mark.parametrize("way", ["classify", "classify_iter", "encode"])
def test_pixels_are_let_go(
    way: str, llm: LLM, tmp_path: Path, most_alive: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(tmp_path)
    wanted = [llm.classify(each)[0].outputs.probs for each in asked]
    an_image = 6 * 6 * 3 * 2 * 4 * 4 * 4  # bytes of 24 × 24 pixels, twice, as float32
    monkeypatch.setattr(tasks, "BYTES_AT_ONCE", 3 * an_image)
    llm.reset_mm_cache()
    if way == "encode":
        found = [each.outputs.data.tolist() for each in llm.encode(asked, pooling_task="classify")]
    else:
        found = [each.outputs.probs for each in getattr(llm, way)(asked)]
    assert found == [pytest.approx(each, abs=1e-5) for each in wanted]
    assert most_alive() <= 2 * 3, "those that run, and the next ones"


def test_a_bad_prompt_is_named_by_its_place_among_all(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BYTES_AT_ONCE", 1)
    asked = prompts(tmp_path)
    asked[9] = ""
    with pytest.raises(PromptError, match="^prompt 9: "):
        llm.classify(asked)
