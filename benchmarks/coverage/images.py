"""One model for images from transformers to a classifier: built small, converted, run with and without images."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto

import vllm_cls
from vllm_cls import LLM
from vllm_cls.architecture import decoder_start
from vllm_cls.errors import ModelError
from vllm_cls.media.features import MediaInput, placed
from vllm_cls.model.prompt_processor import refuse_without_features
from vllm_cls.registry import registry
from vllm_cls.runtime.batch import TokenSequence

from .case import TOLERANCE, _error, _line, randomize
from .small_configs import FIRST_TOKEN, VOCABULARY, small_config
from .small_images import IMAGES, NO_IMAGES, PARTS

MAPPING = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


@dataclass
class ImageRow:
    """What became of one model type.

    Args:
        status: "exact"; "refused" (by name, in our words); "fails" (ours is wrong, or refuses what it should not); "cannot"
            (transformers cannot build it so small, or run it).
        why: of a status that is not "exact".
        form: how prompts with images run: "packed" (with texts), "padded", "single", or "pixels" (one at a time, towers in it).
        shares: whether prompts go on from the keys and values of an image.
        error: largest difference of logits from transformers' own states and the head.
    """

    model_type: str
    status: str = "cannot"
    why: str = ""
    text_form: str = ""
    form: str = ""
    pooling: str = ""
    shares: bool = False
    error: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ImagePrompt:
    """Token ids, and the model's arguments for the images in them."""

    ids: list[int]
    types: list[int]
    images: list[dict[str, torch.Tensor]]
    counts: list[int]


def model_types() -> list[str]:
    return sorted(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def run_case(model_type: str, folder: Path) -> ImageRow:
    """Try one model type.

    Args:
        folder: where the model and its conversion are written.
    """
    row = ImageRow(model_type)
    try:
        torch.manual_seed(0)
        config = small_config(model_type, **PARTS.get(model_type, {}))
        _fit_parts(config)
        model = randomize(MAPPING[type(config)](config))
        prompts = image_prompts(model)
        expected = torch.stack([last_state(model, each) for each in prompts])
        if not bool(torch.isfinite(expected).all()):
            raise ValueError("its states are not finite")
        if float((expected[0] - expected[1]).abs().max()) < 1e-4:
            raise ValueError("its states do not depend on the image")
        model.save_pretrained(folder / "source")
    except Exception as error:  # every class refuses in its own way
        row.why = _line(error)
        refusal = refused(model_type)
        if refusal is not None:
            row.status, row.why = "refused", refusal
        return row
    try:
        _compare(row, prompts, expected, folder)
    except Exception as error:
        row.status, row.why = "fails", _line(error)
    return row


def refused(model_type: str) -> str | None:
    """With which words such a model is refused, when it is converted, opened or gets an image; None where it is not."""
    config_class = CONFIG_MAPPING[model_type]
    if model_type in NO_IMAGES:
        return NO_IMAGES[model_type]
    try:
        architecture = registry().find(model_type)
        architecture.classifier_class(config_class)
        refuse_without_features(architecture, small_config(model_type, **PARTS.get(model_type, {})), model_type)
    except ModelError as error:
        return str(error).removeprefix(f"{model_type}: ")
    return None


def _compare(row: ImageRow, prompts: list[ImagePrompt], expected: torch.Tensor, folder: Path) -> None:
    report = vllm_cls.convert(str(folder / "source"), folder / "out", head="random", num_labels=3, seed=0)
    row.pooling = report.pooling
    with LLM(str(folder / "out"), dtype="float32", num_threads=1) as llm:
        engine: Any = llm._open.engine
        wanted = expected @ llm.model.get_parameter("score.weight").detach().float().T
        sequences = [sequence_of(engine.runner, each) for each in prompts]
        results = engine.logits(sequences)
        failed = [each for each in results if isinstance(each, Exception)]
        row.text_form, row.form, row.shares = (
            engine.runner.mode.form,
            engine.runner.media_form,
            engine.runner.shares_media,
        )
        if failed:
            raise failed[0]
        row.error = _error(torch.stack([each.row for each in results]), wanted)
    row.status = "exact" if row.error <= TOLERANCE else "fails"
    row.why = "" if row.status == "exact" else f"logits differ by {row.error:.1e}"


def last_state(model: PreTrainedModel, prompt: ImagePrompt) -> torch.Tensor:
    """The last token's state `(hidden,)` of transformers' model below its output layer, which some scale in between."""
    seen: list[torch.Tensor] = []
    if model.base_model is not model:
        hook = model.base_model.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    else:
        output_layer: Any = model.get_output_embeddings()
        hook = output_layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    given: dict[str, Any] = {
        "input_ids": torch.tensor([prompt.ids]),
        "attention_mask": torch.ones(1, len(prompt.ids), dtype=torch.long),
    }
    names = {*inspect.signature(model.forward).parameters, *inspect.signature(model.base_model.forward).parameters}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in names:
            given[name] = torch.tensor([prompt.types])
    given |= _of_all(prompt.images)
    start = decoder_start(model.config)
    if start is not None:
        given["decoder_input_ids"] = torch.tensor([[start, *prompt.ids[:-1]]])
    try:
        with torch.no_grad():
            model(**given, use_cache=False)
    finally:
        hook.remove()
    return seen[-1][0, -1]


def _of_all(images: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The arguments of several images, as the processors of transformers make them."""
    made = {name: torch.cat([each[name] for each in images]) for name in (images[0] if images else ())}
    if "target_sizes" in made:  # MiniCPM-V: patches side by side
        made["pixel_values"] = torch.cat([each["pixel_values"] for each in images], dim=-1)
    if "image_token_pooling" in made:  # Molmo 2: places among all patches
        patches = images[0]["pixel_values"].shape[:2].numel()
        made["image_token_pooling"] = torch.cat(
            [each["image_token_pooling"] + index * patches for index, each in enumerate(images)]
        )
    return made


def image_prompts(model: PreTrainedModel) -> list[ImagePrompt]:
    """Two prompts of the same tokens and other images, one of two images, one that ends with one, and a text."""
    config = model.config
    named = [getattr(config, name, None) for name in ("image_token_id", "image_token_index", "image_patch_id")]
    token = next((each for each in named if each is not None), None)
    if not isinstance(token, int) or not 0 <= token < VOCABULARY:
        raise ValueError(f"its image token is {token}")
    first, count = image_input(model, 0)
    images = [first, *(same_kind(first, seed) for seed in (1, 2))]
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [each for each in (rng.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(length + 9)) if each != token][
            :length
        ]

    begin, end = text(5), text(6)

    def prompt(*parts: Any) -> ImagePrompt:
        ids = [each for part in parts for each in (part if isinstance(part, list) else [token] * count)]
        mine = [part for part in parts if not isinstance(part, list)]
        return ImagePrompt(ids, [int(each == token) for each in ids], mine, [count] * len(mine))

    return [
        prompt(begin, images[0], end), prompt(begin, images[1], end), prompt(begin, images[0], text(9)),
        prompt(text(3), images[2], text(4), images[0], text(2)), prompt(text(4), images[1]), prompt(text(11)),
    ]  # fmt: skip


def image_input(model: PreTrainedModel, seed: int) -> tuple[dict[str, torch.Tensor], int]:
    """Arguments of one image that the model takes, and how many tokens it becomes."""
    why = ""
    read: Any = getattr(model.base_model, "get_image_features", None) or model.get_image_features
    names = inspect.signature(read).parameters
    crafted = IMAGES.get(model.config.model_type)
    candidates = _candidates(model, seed, "image_grid_thw" in names) if crafted is None else [_made(crafted, seed)]
    for given in candidates:
        given = {name: value for name, value in given.items() if name in names or crafted}
        try:
            with torch.no_grad():
                output = read(**given, return_dict=True)
            return given, _num_tokens(output)
        except Exception as error:
            why += f"{_line(error)}; "
    raise ValueError(f"it takes no image: {why[-200:]}")


def _num_tokens(output: Any) -> int:
    """How many tokens a tower's output has, in the field that the model's forward reads."""
    found = output.get("pooler_output")
    if found is None:
        found = output.get("last_hidden_state")
    if found is None:  # only layers that go on beside the text's (Granite 4 Vision), each with its number
        found = output["deepstack_features"][0][1]
    parts = found if isinstance(found, (list, tuple)) else [found]
    return sum(each.numel() // each.shape[-1] for each in parts)


def _made(crafted: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value, generator=generator) * 2 - 1 if isinstance(value, tuple) else torch.tensor(value)
        for name, value in crafted.items()
    }


def _candidates(model: PreTrainedModel, seed: int, flat: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Arguments that models take for an image, in the shapes that are usual.

    Args:
        flat: patches of all images one behind the other, and a grid that says how they lie.
    """
    config: Any = model.config
    vision = _vision_of(config)
    patch = _first(getattr(vision, "patch_size", None)) or _first(getattr(config, "patch_size", None)) or 8
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", None) or 2
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    generator = torch.Generator().manual_seed(seed)

    def random_values(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    side = 2 * merge
    count, grid = side * side, torch.tensor([[1, side, side]])
    for shape in _flat_shapes(vision, count, channels, patch) if flat else ():
        yield {
            "pixel_values": random_values(*shape),
            "image_grid_thw": grid,
            "image_merge_sizes": torch.tensor([merge]),
        }
    for depth in (1, 2):
        yield {
            "pixel_values": random_values(1, count, channels * depth * patch * patch),
            "spatial_shapes": torch.tensor([[side, side]]), "pixel_attention_mask": torch.ones(1, count, dtype=torch.long),
            "image_position_ids": torch.cartesian_prod(torch.arange(side), torch.arange(side))[None],
        }  # fmt: skip
    high = _first(getattr(getattr(config, "high_res_vision_config", None), "image_size", None)) or 64
    sizes = [_first(getattr(vision, "image_size", None)), 32, 64, 16]
    for size in dict.fromkeys(each for each in sizes if each):
        for shape in ((1,), (1, 1), (1, 2), (1, 3), (1, 5)):
            values = random_values(*shape, channels, size, size)
            beside = {
                "high_res_pixel_values": random_values(1, channels, high, high),
                "pixel_attention_mask": torch.ones(*shape, size, size, dtype=torch.long),
            }
            yield {"pixel_values": values, **beside}
            yield {"pixel_values": values, "image_sizes": torch.tensor([[size, size]]), **beside}


def _flat_shapes(vision: Any, count: int, channels: int, patch: int) -> Iterator[tuple[int, ...]]:
    for depth in dict.fromkeys((getattr(vision, "temporal_patch_size", 1), 1, 2)):
        yield count, channels * depth * patch * patch
    yield count, channels, patch, patch


def _first(value: Any) -> int | None:
    """The first number of what may be a number or a sequence of them."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, int) else None


def _fit_parts(config: Any) -> None:
    """What the sizes' names do not tell: how many tokens an image has, which layers are read, how wide features are."""
    text = config.get_text_config()
    vision: Any = _vision_of(config)
    size = getattr(vision, "image_size", None)
    if hasattr(config, "mm_tokens_per_image"):
        config.mm_tokens_per_image = 4
    if isinstance(getattr(vision, "window_size", None), int):
        vision.window_size = max(vision.window_size, 4 * (_first(vision.patch_size) or 8))
    if hasattr(config, "image_grid_pinpoints") and isinstance(size, int):
        config.image_grid_pinpoints = [[size, size], [size, 2 * size]]
    if hasattr(config, "vision_feature_layers"):
        config.vision_feature_layers = [-1, -2]
    if hasattr(config, "projector_patch_to_query_dict"):
        config.projector_patch_to_query_dict = {16: 4}
    for part in (config, vision):
        if isinstance(getattr(part, "projection_dim", None), int):
            part.projection_dim = text.hidden_size
    rope = getattr(text, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("mrope_section") and sum(rope["mrope_section"]) > _HALF_HEAD:
        rope["mrope_section"] = [2, 3, 3]
    if config.model_type == "ernie4_5_vl_moe":  # height and width take turns
        rope["mrope_section"] = [3, 3, 2]
    own = vars(text)  # what differs from layer to layer is not read of the config itself
    if own.get("num_key_value_heads", 0) > own.get("num_attention_heads", 0):
        text.num_key_value_heads = 2
    if config.model_type == "step3p7":
        text.sliding_window = 8
    for number, name in enumerate(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")):
        if config.model_type.endswith("_thinker") and not hasattr(config, name):
            setattr(config, name, 5 + number)


_HALF_HEAD = 8


def _vision_of(config: Any) -> Any:
    found = [getattr(config, name) for name in config.sub_configs if name.startswith("vision")]
    return next((each for each in found if each is not None), config)


def same_kind(image: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Another image of the same size."""
    values = image["pixel_values"]
    other = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return {**image, "pixel_values": other}


def sequence_of(runner: Any, prompt: ImagePrompt) -> TokenSequence:
    """What our engine runs for a prompt."""
    made = runner.sequence_form.sequence(prompt.ids, None)
    if not prompt.images:
        return made
    inputs = [
        MediaInput("image", str(float(each["pixel_values"].double().sum())), each, count)
        for each, count in zip(prompt.images, prompt.counts, strict=True)
    ]
    return dataclasses.replace(made, media=placed(inputs, prompt.ids, prompt.types, prompt.types))
