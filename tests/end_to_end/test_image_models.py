"""Models for images beside Qwen's, through transformers' own processors, held to transformers' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import vllm_cls
from vllm_cls import LLM, PromptError
from vllm_cls.runtime.layers.quantization import Int8Linear

from ..models import vision

MODELS = {"llava": vision.llava, "gemma3": vision.gemma3, "idefics3": vision.idefics3}
PLACES = {"llava": "<image>", "gemma3": "<start_of_image>", "idefics3": "<image>"}


def prompts(place: str) -> list[Any]:
    one, wide, other = vision.picture(40, 40, 1), vision.picture(64, 20, 2), vision.picture(30, 50, 3)
    return [
        {"prompt": f"What is {place} this? good", "multi_modal_data": {"image": one}},
        "The film was good and the music was great.",
        {"prompt": f"What is {place} this? good", "multi_modal_data": {"image": other}},
        {"prompt": f"{place} and {place} are the best practices", "multi_modal_data": {"image": [wide, one]}},
        {"prompt": f"What is {place} this? bad", "multi_modal_data": {"image": one}},
        {"prompt": f"Review: a terrible plot {place}", "multi_modal_data": {"image": wide}},
    ]


def expected(folder: Path, processor: Any, prompt: Any) -> torch.Tensor:
    """The last token's state, as transformers' model hands it to its output layer, of what its processor gives."""
    text, images = (
        (prompt, None) if isinstance(prompt, str) else (prompt["prompt"], prompt["multi_modal_data"]["image"])
    )
    if images is not None and not isinstance(images, list):
        images = [images]
    nested = [images] if images and type(processor).__name__ == "Idefics3Processor" else images
    given = processor(images=nested, text=[text], return_tensors="pt")
    return vision.last_state(folder, given)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_images_as_transformers_does(name: str, tmp_path: Path) -> None:
    source, processor = MODELS[name](tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "out", head="random", num_labels=3, seed=0)
    asked = prompts(PLACES[name])
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        outputs = llm.classify(asked)
        again = [llm.classify(prompt)[0] for prompt in asked]
        form = llm._open.engine.runner.media_form
        head = llm.model.get_parameter("score.weight").clone()
    wanted = torch.stack([expected(source, processor, prompt) for prompt in asked]) @ head.T
    assert form == "packed"
    for found in (outputs, again):
        rows = torch.tensor([output.outputs.logits for output in found])
        torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=1e-4)


def test_the_first_prompt_may_have_images_of_different_numbers_of_tiles(tmp_path: Path) -> None:
    """Idefics3 cuts a large image into more tiles: the model's own forward takes both, filled up with zeros."""
    source, processor = vision.idefics3(tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "out", head="random", num_labels=3, seed=0)
    pictures = [vision.picture(64, 20, 2), vision.picture(30, 50, 3)]
    prompt = {"prompt": "a <image> and <image> good", "multi_modal_data": {"image": pictures}}
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        (output,) = llm.classify(prompt)
        head = llm.model.get_parameter("score.weight").clone()
    wanted = expected(source, processor, prompt) @ head.T
    torch.testing.assert_close(torch.tensor(output.outputs.logits), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_equal_pixels_or_are_refused(name: str, tmp_path: Path) -> None:
    """Gemma 3 and Idefics3 write more for an image than its tokens, of which embeddings say nothing."""
    source, processor = MODELS[name](tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "out", head="random", num_labels=3, seed=0)
    text, picture = f"What is {PLACES[name]} this?", vision.picture(40, 40, 1)
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval().model
    with torch.no_grad():
        given = processor.image_processor(picture, return_tensors="pt")
        rows = model.get_image_features(pixel_values=given["pixel_values"]).pooler_output
    rows = (rows if isinstance(rows, torch.Tensor) else torch.stack(list(rows))).flatten(0, 1)
    embedded = {"prompt": text, "multi_modal_data": {"image_embeds": rows}}
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        (pixels,) = llm.classify({"prompt": text, "multi_modal_data": {"image": picture}})
        if name != "llava":
            with pytest.raises(
                PromptError, match="writes more than their tokens for images; give these, not image_embeds"
            ):
                llm.classify(embedded)
            return
        (output,) = llm.classify(embedded)
        torch.testing.assert_close(output.outputs.logits, pixels.outputs.logits, atol=1e-5, rtol=0)
        embedded["multi_modal_data"] = {"image_embeds": {"image_embeds": rows, "image_grid_thw": [[1, 4, 4]]}}
        with pytest.raises(PromptError, match="this model reads no image_grid_thw; leave it out"):
            llm.classify(embedded)


def test_int8_leaves_towers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image was looked at when its products were rounded: what a tower gives stays as in float32."""
    monkeypatch.setitem(vision._TOWER, "hidden_size", 64)
    source, _ = vision.llava(tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "out", head="random", num_labels=3, seed=0)
    prompt = {"prompt": "What is <image> this?", "multi_modal_data": {"image": vision.picture(40, 40, 1)}}
    given = []
    for quantization in (None, "int8"):
        with LLM(str(tmp_path / "out"), dtype="float32", quantization=quantization) as llm:
            (output,) = llm.classify(prompt)
            towers = llm._open.engine.runner.towers
            (encoded,) = towers._recent.values()
            given.append((encoded.fields["pooler_output"], output.outputs.logits))
            rounded = [name for name, each in towers.model.named_modules() if _is_int8(each)]
    assert rounded and all(name.startswith("language_model.") for name in rounded)
    assert torch.equal(torch.stack(list(given[0][0])), torch.stack(list(given[1][0])))
    torch.testing.assert_close(given[0][1], given[1][1], atol=0.05, rtol=0.05)


def _is_int8(module: torch.nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), Int8Linear)
