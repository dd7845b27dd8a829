"""Models that read videos, through transformers' own processors, held to transformers' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.video_utils import VideoMetadata

import vllm_cls
from vllm_cls import LLM, PromptError
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy
from vllm_cls.media.processor import MediaProcessor

from ..models import films, vision

MODELS = {
    "llava_onevision": films.llava_onevision, "llava_next_video": films.llava_next_video, "video_llava": films.video_llava,
    "qwen3_vl": films.qwen3_vl,
}  # fmt: skip
FILM, OTHER = vision.film(6, 40, 24, 1), vision.film(4, 32, 48, 2)
FPS = 2.0


def said(frames: Any) -> dict[str, Any]:
    return {"fps": FPS, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}


def prompt(text: str, *frames: Any) -> dict[str, Any]:
    return {"prompt": text, "multi_modal_data": {"video": [(each, said(each)) for each in frames]}}


def expected(folder: Path, processor: Any, text: str, *frames: Any) -> torch.Tensor:
    """The last token's state, as transformers' model hands it to its output layer, of what its processor gives."""
    metadata = [VideoMetadata(**said(each), duration=len(each) / FPS) for each in frames]
    options = {"do_sample_frames": False, "video_metadata": metadata, "input_data_format": "channels_last"}
    given = processor(text=[text], videos=list(frames), videos_kwargs=options, return_tensors="pt")
    return vision.last_state(folder, given)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_videos_as_transformers_does(name: str, tmp_path: Path) -> None:
    source, processor = MODELS[name](tmp_path / "lm")
    vllm_cls.convert(str(source), tmp_path / "out", head="random", num_labels=3, seed=0)
    place = films.PLACES[name]
    asked = [
        (f"What is {place} this? good", FILM),
        (f"What is {place} this? good", OTHER),
        (f"{place} or bad {place}", OTHER[:, :24], OTHER[:, 24:]),
        (f"a plot {place}", FILM),
    ]
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        outputs = llm.classify([prompt(*each) for each in asked])
        head = llm.model.get_parameter("score.weight").clone()
    wanted = torch.stack([expected(source, processor, *each) for each in asked]) @ head.T
    rows = torch.tensor([output.outputs.logits for output in outputs])
    torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=1e-4)
    assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_a_model_whose_videos_are_images_says_so(tmp_path: Path) -> None:
    """InternVL's processor writes tokens of images for the frames of a video."""
    tokens = films.internvl_files(tmp_path)
    processor = MediaProcessor(tmp_path, transformers.InternVLConfig(), tokens, "it")
    items = load_media(prompt("", FILM)["multi_modal_data"], MediaPolicy())
    with pytest.raises(PromptError, match="it reads the frames of a video as images; give them as images"):
        processor.read(items, {})


def test_a_model_whose_videos_cannot_be_read_says_why(tmp_path: Path) -> None:
    """A class that transformers does not have; its images do without."""
    films.internvl_files(tmp_path)
    (tmp_path / "video_preprocessor_config.json").write_text('{"video_processor_type": "OtherVideoProcessor"}')
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)
    processor = MediaProcessor(tmp_path, transformers.InternVLConfig(), tokens, "it")
    items = load_media(prompt("", FILM)["multi_modal_data"], MediaPolicy())
    with pytest.raises(PromptError, match="it: its videos are not read here .transformers has no OtherVideoProcessor"):
        processor.read(items, {})
    assert processor.read(load_media({"image": vision.picture(32, 32)}, MediaPolicy()), {}).inputs
