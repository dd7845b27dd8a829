"""A model's own processor, reading images and videos: which tensors the model gets, which text stands for each.

transformers' class for the model says both. Its images are read by Pillow, its videos as `video_processors` has it.
"""

from __future__ import annotations

import functools
import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..compat.transformers_calls import model_errors, reason
from ..errors import ConfigError, ModelError, PromptError
from .features import MODALITIES, MediaInput, SequenceMedia, placed
from .items import Embeddings, FrameSampling, Image, MediaItem, MediaItems, Video, VideoMetadata
from .options import check_options, check_shape
from .policy import MAX_PIXELS
from .video_processors import of_transformers, sampled, video_processor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

KEPT_BYTES = 1 << 28  # of tensors made of recent images and videos


@dataclass(frozen=True)
class ReadMedia:
    """A prompt's images and videos, read.

    Args:
        inputs: in the order in which the prompt names those of a modality.
        replacements: by modality, the text that takes the place of each placeholder.
    """

    inputs: tuple[MediaInput, ...]
    replacements: Mapping[str, Sequence[str]]


class MediaProcessor:
    """Reads the media of prompts for one model.

    Args:
        folder: of the checkpoint, which holds the processor's files.
        config: of the model.
        tokenizer: of the model.
        name: what errors call the model.

    Raises:
        ModelError: the checkpoint has no processor, or none that runs here.
        ConfigError: Pillow is missing.
    """

    def __init__(
        self, folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, name: str
    ) -> None:
        self.name = name
        self._config = config
        check_installed()  # before transformers names another way to install it
        with model_errors(f"{name}: its processor of images cannot be read", advice=_ADVICE):
            self._processor: Any = _own_processor(folder, config, tokenizer)
        self._kept: OrderedDict[Any, tuple[MediaInput, str]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget what was made of earlier images and videos."""
        with self._lock:
            self._kept.clear()
            self._num_bytes = 0

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it reads: `image`, `video`."""
        return tuple(each for each in MODALITIES if hasattr(self._processor, f"{each}_token"))

    def place(self, modality: str) -> str:
        """The text that stands for one image or video in a prompt: what the chat template writes for it, or its token alone."""
        token = str(getattr(self._processor, f"{modality}_token"))
        tokenizer = self._processor.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            return token

        def chat(*parts: str) -> str:
            content = [{"type": part} if part == modality else {"type": "text", "text": part} for part in parts]
            return str(tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False))

        before, _, behind = chat("\x01", "\x02").partition("\x01\x02")
        written = chat("\x01", modality, "\x02")
        found = written.partition("\x01")[2].rpartition("\x02")[0]
        return found if token in found and before and behind else token

    # -- images and videos → tensors -------------------------------------------------------------------

    def sampling(self, **asked: Any) -> FrameSampling | None:
        """Which frames of a video are taken, where the model or the prompt says so; None leaves it to the loader.

        Args:
            asked: the prompt's `fps` or `num_frames`.
        """
        videos = getattr(self._processor, "video_processor", None)
        if isinstance(videos, _Missing | None) or not (asked or videos.do_sample_frames):
            return None
        return functools.partial(sampled, videos, **asked)

    def read(self, items: MediaItems, kwargs: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> ReadMedia:
        """Read a prompt's media.

        Args:
            kwargs: the prompt's `mm_processor_kwargs`.
            max_pixels: that an image or a frame may have once it is resized.

        Raises:
            PromptError: the processor refuses them.
        """
        check_options(self._processor, kwargs, max_pixels)
        inputs: list[MediaInput] = []
        replacements: dict[str, list[str]] = {}
        for modality, several in items.items():
            if modality not in MODALITIES or not hasattr(self._processor, f"{modality}_token"):
                raise PromptError(f"{self.name} reads no {modality}s.")
            texts = replacements.setdefault(modality, [])
            for each in several:
                self._check_shape(modality, each, kwargs, max_pixels)
                for one, text in self._read(modality, each, kwargs):
                    inputs.append(one)
                    texts.append(text)
        return ReadMedia(tuple(inputs), replacements)

    def _read(self, modality: str, item: MediaItem, kwargs: Mapping[str, Any]) -> Sequence[tuple[MediaInput, str]]:
        if isinstance(item, Embeddings):
            return self._given(modality, item)
        key = (modality, item.content_hash, json.dumps(kwargs, sort_keys=True, default=repr))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return [self._kept[key]]
        try:
            read = self._processed(modality, item, kwargs, " ".join(key[1:]))
        except PromptError:
            raise
        except Exception as error:  # of transformers, at options and sizes that it was not written for
            raise PromptError(f"the model's processor refuses this {modality}: {reason(error)}") from error
        with self._lock:
            if key not in self._kept:
                self._kept[key] = read
                self._num_bytes += read[0].num_bytes
            while self._num_bytes > KEPT_BYTES:
                self._num_bytes -= self._kept.popitem(last=False)[1][0].num_bytes
        return [read]

    def _check_shape(self, modality: str, item: MediaItem, kwargs: Mapping[str, Any], max_pixels: int) -> None:
        if isinstance(item, Embeddings):
            return
        height, width = item.frames.shape[1:3] if isinstance(item, Video) else (item.pixels.height, item.pixels.width)
        check_shape(getattr(self._processor, f"{modality}_processor", None), kwargs, width, height, max_pixels)

    def _processed(
        self, modality: str, item: Image | Video, kwargs: Mapping[str, Any], key: str
    ) -> tuple[MediaInput, str]:
        processor = self._processor
        known = processor._merge_kwargs(tokenizer_init_kwargs={}, **kwargs)
        if isinstance(item, Image):
            data, (text,) = processor._process_images(
                [item.pixels], **{**known["images_kwargs"], "return_tensors": "pt"}
            )
        else:
            if isinstance(processor.video_processor, _Missing):
                raise PromptError(f"{self.name}: its videos are not read here ({processor.video_processor.reason}).")
            asked = {**known["videos_kwargs"], **_OF_FRAMES, "video_metadata": [of_transformers(item.metadata)]}
            data, (text,) = processor._process_videos([item.frames], **asked)
        tensors = {
            name: value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
            for name, value in data.items()
            if name != "video_metadata" and name not in processor.unused_input_names
        }
        count = self._num_tokens(modality, text)
        if not count:  # InternVL and SmolVLM put the tokens of images in its place
            raise PromptError(f"{self.name} reads the frames of a {modality} as images; give them as images.")
        return MediaInput(modality, key, tensors, count, told=bool(kwargs)), text

    def _given(self, modality: str, item: Embeddings) -> list[tuple[MediaInput, str]]:
        """Embeddings, one input an image."""
        token = getattr(self._processor, f"{modality}_token")
        reader: Any = getattr(self._processor, f"{modality}_processor", None)
        self._check_embeddings(modality, item, reader)
        if item.grid_thw is None:
            made = MediaInput(modality, item.content_hash, {}, len(item.data), features=item.data)
            return [(made, token * len(item.data))]
        counts = [int(each) // reader.merge_size**2 for each in item.grid_thw.prod(-1)]
        if sum(counts) != len(item.data):
            raise PromptError(
                f"{modality}_embeds has {len(item.data)} rows, and its grid_thw speaks of {sum(counts)}; give a row a token."
            )
        return [
            (
                MediaInput(
                    modality,
                    f"{item.content_hash} {index}",
                    {f"{modality}_grid_thw": item.grid_thw[index : index + 1]},
                    counts[index],
                    features=part,
                ),
                token * counts[index],
            )
            for index, part in enumerate(item.data.split(counts))
        ]

    def _check_embeddings(self, modality: str, item: Embeddings, reader: Any) -> None:
        """Raise `PromptError` for embeddings of another model: of another width, or with a grid that is not this one's."""
        if not self._writes_tokens_alone(modality):
            raise PromptError(
                f"{self.name} writes more than their tokens for {modality}s; give these, not {modality}_embeds."
            )
        width, own = item.data.shape[1], self._config.get_text_config().hidden_size
        if width != own:
            raise PromptError(f"{modality}_embeds has rows of {width} numbers, and this model reads rows of {own}.")
        grid = f"{modality}_grid_thw"
        needed = grid in getattr(reader, "model_input_names", ())
        if item.grid_thw is None:
            if needed:
                raise PromptError(
                    f"{modality}_embeds: this model needs {grid} with them; give {{'{modality}_embeds': …, '{grid}': …}}."
                )
        elif not needed:
            raise PromptError(f"{modality}_embeds: this model reads no {grid}; leave it out.")
        elif (item.grid_thw[:, 1:] % reader.merge_size).any():
            raise PromptError(
                f"{grid} {item.grid_thw.tolist()}: rows and columns of patches are multiples of {reader.merge_size}."
            )

    def _writes_tokens_alone(self, modality: str) -> bool:
        """Whether nothing but its tokens stands for an image or a video, so that their number says what is written."""
        from PIL import Image as PILImage

        blank = np.zeros((2, 64, 64, 3), np.uint8)
        item = (
            Image(PILImage.fromarray(blank[0]), "")
            if modality == "image"
            else Video(blank, VideoMetadata(2, 1.0, 2.0, (0, 1)), "")
        )
        (made, text), *_ = self._read(modality, item, {})
        return text == str(getattr(self._processor, f"{modality}_token")) * made.num_tokens

    def _num_tokens(self, modality: str, text: str) -> int:
        ids = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._types(ids).count(MODALITIES[modality])

    # -- their places in a prompt ----------------------------------------------------------------------

    def has_places(self, text: str) -> bool:
        """Whether a text has a place for an image or a video."""
        return any(getattr(self._processor, f"{each}_token") in text for each in self.modalities)

    def expanded(self, text: str, media: ReadMedia) -> str:
        """A prompt's text, each placeholder replaced.

        Raises:
            PromptError: there are more or fewer placeholders than media.
        """
        for modality in MODALITIES:
            placeholder = getattr(self._processor, f"{modality}_token", None)
            given = len(media.replacements.get(modality, ()))
            found = text.count(placeholder) if placeholder else 0
            if found != given:
                raise PromptError(
                    f"the prompt has {found} places for {modality}s ({placeholder}), and {given} of them were given; write "
                    "one for each, or give chat messages."
                )
        texts = [list(media.replacements.get(modality, ())) for modality in MODALITIES]
        (made,), _ = self._processor.get_text_with_replacements([text], *texts)
        return str(made)

    def expanded_ids(self, ids: Sequence[int], media: ReadMedia) -> list[int]:
        """As `expanded`, of token ids."""
        text_of = {self._token_id(modality): iter(texts) for modality, texts in media.replacements.items()}
        made: list[int] = []
        for each in ids:
            text = next(text_of[each], None) if each in text_of else None
            if each in text_of and text is None:
                raise PromptError("the prompt has more places for images or videos than were given; give one for each.")
            made += [each] if text is None else self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if any(next(texts, None) is not None for texts in text_of.values()):
            raise PromptError("the prompt has fewer places for images or videos than were given; write one for each.")
        return made

    def in_sequence(self, ids: Sequence[int], media: ReadMedia) -> SequenceMedia:
        """Where a prompt's media are among its token ids.

        Raises:
            PromptError: the ids have lost some of their tokens.
        """
        types = self._types(ids)
        text_types: Sequence[int] = ()
        if "token_type_ids" in self._processor.model_input_names:  # of Gemma 3 the same under another name
            text_types = types if self._processor.return_mm_token_type_ids else [0] * len(ids)
        try:
            return placed(media.inputs, ids, types, text_types)
        except ValueError as error:
            raise PromptError(f"the prompt's images do not fit in it ({error}); shorten its text.") from error

    def _types(self, ids: Sequence[int]) -> list[int]:
        """Of each token, the number of the modality that it stands for; 0 of text."""
        from transformers import ProcessorMixin

        (types,) = ProcessorMixin.create_mm_token_type_ids(self._processor, [list(ids)])  # some want more in their own
        return list(types)

    def _token_id(self, modality: str) -> int:
        return int(getattr(self._processor, f"{modality}_token_id"))


_ADVICE = (
    "A checkpoint of a model for images needs the files preprocessor_config.json or processor_config.json of the model "
    "that it was made from."
)


def _own_processor(folder: Path, config: PreTrainedConfig, tokenizer: Any) -> Any:
    """transformers' processor of a checkpoint, its images read by Pillow."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    if tokenizer is None:
        raise ModelError("it has no tokenizer")
    settings, _ = transformers.ProcessorMixin.get_processor_dict(folder) if _has_processor(folder) else ({}, None)
    name = settings.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(config.model_type)
    found = getattr(transformers, str(name), None)
    if found is None:
        raise ModelError(f"transformers has no processor for {config.model_type}")
    kind: Any = type(found.__name__, (found,), {"check_argument_for_proper_class": _any_class})
    kind.__module__ = found.__module__
    parts: dict[str, Any] = {}
    for part in found.get_attributes():
        if part == "tokenizer":
            parts[part] = tokenizer
        elif part == "image_processor":
            parts[part] = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        elif part == "video_processor":
            try:
                parts[part] = video_processor(folder, settings, config.model_type)
            except ImportError as error:  # images may do without
                parts[part] = _Missing(str(error))
        else:
            parts[part] = None
    own = set(inspect.signature(found.__init__).parameters) - {"self"}
    return kind(**parts, **{name: value for name, value in settings.items() if name in own - set(parts)})


@dataclass(frozen=True)
class _Missing:
    """In the place of what reads videos."""

    reason: str


_OF_FRAMES = {
    "do_sample_frames": False, "input_data_format": "channels_last", "return_metadata": True, "return_tensors": "pt",
}  # fmt: skip
"""What a processor of videos is told of frames that are taken already."""


def _any_class(self: Any, argument_name: str, argument: Any) -> None:
    """transformers would take its own classes alone."""


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


def check_installed() -> None:
    """Raise `ConfigError` without Pillow, which reads images."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ConfigError("images and videos need the extra vision: pip install 'vllm-cls[vision]'.") from error
