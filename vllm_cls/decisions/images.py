"""Images of a request, which `assets` name: transformers places them in the prompt, and the model's own reader reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

MEDIA = "media"
"""What was read of a prompt's images, among its inputs."""


class ImageReader(Protocol):
    """Reads images for a model (`inputs.media_reader.MediaReader`)."""

    def image(self, value: Any) -> Any:
        """An image of PIL, of what a prompt may have as one; raises `PromptError`."""

    def with_images(self, ids: Sequence[int], images: Sequence[Any]) -> tuple[list[int], Any]:
        """Token ids with the images' tokens in their places, and what was read of them; raises `PromptError`."""


class TemplateWithImages:
    """What transformers' `prepare_inputs` takes for a model's processor: its chat template, with images.

    Args:
        tokenizer: of the model, with the marks.
        reader: of images.
    """

    def __init__(self, tokenizer: Any, reader: ImageReader) -> None:
        self.tokenizer, self.image_processor = tokenizer, reader
        self.chat_template = tokenizer.chat_template

    def apply_chat_template(
        self, conversation: Any, *, processor_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The inputs of one prompt: its images are parts of the conversation, or given beside it and placed by the template."""
        import torch

        images: list[Any] = []
        plain, options = _without_images(conversation, images), _without_images(kwargs, [])
        inputs = self.tokenizer.apply_chat_template(plain, **options)
        ids = self._with_special_tokens(inputs["input_ids"][0].tolist())
        ids, read = self.image_processor.with_images(ids, (processor_kwargs or {}).get("images") or images)
        return {"input_ids": torch.tensor([ids]), MEDIA: read}

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        """A processor, unlike a tokenizer, adds special tokens to a rendered prompt that does not begin with one."""
        tokenizer = self.tokenizer
        if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]:
            return ids
        around, inner = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
        start = next(index for index in range(len(around)) if around[index : index + len(inner)] == inner)
        return [*around[:start], *ids, *around[start + len(inner) :]]


def _without_images(value: Any, found: list[Any]) -> Any:
    """A value of a template whose parts say where images are and hold none; they are added to `found`, in their order."""
    if isinstance(value, Mapping):
        if value.get("type") == "image" and "image" in value:
            found.append(value["image"])
            return {"type": "image"}
        return {key: _without_images(each, found) for key, each in value.items()}
    return [_without_images(each, found) for each in value] if isinstance(value, list) else value
