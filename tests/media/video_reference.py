"""What transformers' video processors give of a film with torchvision itself: kept in video_reference.json.

python -m tests.media.video_reference        where torchvision is installed
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

FILE = Path(__file__).with_suffix(".json")
PROCESSORS = {
    "CohereCompassVideoProcessor": "cohere_compass", "Gemma4VideoProcessor": "gemma4", "Glm4vVideoProcessor": "glm4v",
    "InternVLVideoProcessor": "internvl", "LlavaNextVideoVideoProcessor": "llava_next_video",
    "LlavaOnevisionVideoProcessor": "llava_onevision", "Qwen2VLVideoProcessor": "qwen2_vl",
    "Qwen3VLVideoProcessor": "qwen3_vl", "SmolVLMVideoProcessor": "smolvlm", "VideoLlama3VideoProcessor": "video_llama_3",
    "VideoLlavaVideoProcessor": "video_llava",
}  # fmt: skip
FRAMES, HEIGHT, WIDTH = 5, 60, 90


def film() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


def described(processor: Any) -> dict[str, Any]:
    """Of each tensor that a processor makes of the film: its shape, its mean, and some of its values."""
    metadata = VideoMetadata(FRAMES, fps=2.0, duration=FRAMES / 2, frames_indices=list(range(FRAMES)))
    made = processor(
        [film()], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt",
        input_data_format="channels_last",
    )  # fmt: skip
    tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    return {
        name: {
            "shape": list(value.shape),
            "mean": round(float(value.double().mean()), 6),
            "values": [round(float(each), 5) for each in value.flatten()[:: max(1, value.numel() // 8)][:8]],
        }
        for name, value in tensors.items()
    }


def main() -> None:
    import torchvision

    found = {}
    for name, model_type in PROCESSORS.items():
        module = importlib.import_module(f"transformers.models.{model_type}.video_processing_{model_type}")
        found[name] = described(getattr(module, name)())
    FILE.write_text(json.dumps({"torchvision": torchvision.__version__, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
