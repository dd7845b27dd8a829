"""Images and videos of prompts, read by the model's processor. Nothing for them is imported before the first one comes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .prompts import Prompt

if TYPE_CHECKING:
    from ..media.items import FrameSampling
    from ..media.policy import MediaPolicy
    from ..media.processor import MediaProcessor, ReadMedia

_SAMPLING = ("fps", "num_frames")


@dataclass(frozen=True, eq=False)
class MediaReader:
    """Reads what prompts hold beside their texts.

    Args:
        open: makes the model's processor.
        policy: options of `MediaPolicy`: what may be read, from where, and how much.
        kwargs: what the processor is told, where a prompt's `mm_processor_kwargs` do not say it.
    """

    open: Callable[[], MediaProcessor]
    policy: dict[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy:
            self._policy  # noqa: B018  # what is wrong with it is told when the model is loaded

    @functools.cached_property
    def processor(self) -> MediaProcessor:
        """The model's processor."""
        return self.open()

    @functools.cached_property
    def _policy(self) -> MediaPolicy:
        from ..media.policy import MediaPolicy

        return MediaPolicy(**self.policy)

    def clear(self) -> None:
        """Forget what was made of earlier images and videos."""
        if "processor" in vars(self):
            self.processor.clear()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model reads: `image`, `video`."""
        return self.processor.modalities

    def place(self, modality: str) -> str:
        """The text that stands for one image or video in a prompt."""
        return self.processor.place(modality)

    def sampling(self, kwargs: Mapping[str, Any]) -> FrameSampling:
        """Which frames of a video are taken: as a prompt's `mm_processor_kwargs` say, or as the model does, or 32."""
        from ..media.sampling import UniformFrames

        said = {**self.kwargs, **kwargs}
        asked = {name: said[name] for name in _SAMPLING if said.get(name) is not None}
        return self.processor.sampling(**asked) or UniformFrames()

    def read(self, prompt: Prompt) -> Prompt:
        """A prompt with its media read; of an empty list there are none, and the prompt must have no places for them.

        Raises:
            PromptError: they cannot be read, are not allowed, or are not for this model.
            ModelError: the model has no processor for them.
        """
        from ..media.load import load_media

        kwargs = {**self.kwargs, **prompt.mm_processor_kwargs}
        items = load_media(prompt.multi_modal_data, self._policy, self.sampling(kwargs))
        if not items and None in prompt.multi_modal_data.values():
            raise PromptError("multi_modal_data holds nothing; leave it out, or give images or videos.")
        rest = {name: value for name, value in kwargs.items() if name not in _SAMPLING}
        return replace(prompt, media=self.processor.read(items, rest, self._policy.max_pixels))

    def image(self, value: Any) -> Any:
        """An image of PIL, of what a prompt may have as one.

        Raises:
            PromptError: it cannot be read, or is not allowed.
        """
        from ..media.items import Image
        from ..media.load import load_media

        (item,) = load_media({"image": [value]}, self._policy)["image"]
        if not isinstance(item, Image):
            raise PromptError("embeddings are no image; give pixels.", "multi_modal_data")
        return item.pixels

    def with_images(self, ids: Sequence[int], images: Sequence[Any]) -> tuple[list[int], ReadMedia | None]:
        """Token ids of a prompt, its images' tokens in their places, and what was read of these; None without any.

        Raises:
            PromptError: there are more or fewer places, or as for `read`.
        """
        if not images:
            return list(ids), None
        read = self.read(Prompt(multi_modal_data={"image": list(images)})).media
        assert read is not None
        return self.processor.expanded_ids(ids, read), read
