"""Images and videos of prompts, read by the model's processor. Nothing for them is imported before the first one comes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .prompts import Prompt

if TYPE_CHECKING:
    from ..media.policy import MediaPolicy
    from ..media.processor import MediaProcessor


@dataclass(frozen=True, eq=False)
class MediaReader:
    """Reads what prompts hold beside their texts.

    Args:
        open: makes the model's processor.
        policy: options of `MediaPolicy`: what may be read, from where, and how much.
    """

    open: Callable[[], MediaProcessor]
    policy: dict[str, Any] = field(default_factory=dict)

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

    def read(self, prompt: Prompt) -> Prompt:
        """A prompt with its media read.

        Raises:
            PromptError: they cannot be read, are not allowed, or are not for this model.
            ModelError: the model has no processor for them.
        """
        from ..media.load import load_media

        kwargs = prompt.mm_processor_kwargs
        sampling = {name: kwargs[name] for name in ("fps", "num_frames") if kwargs.get(name) is not None}
        sample = self.processor.sampling(**sampling)
        sampled = () if sample is None else (sample,)
        items = load_media(prompt.multi_modal_data, self._policy, *sampled)
        if not items:
            raise PromptError("multi_modal_data holds nothing; leave it out, or give images or videos.")
        rest = {name: value for name, value in kwargs.items() if name not in sampling}
        return replace(prompt, media=self.processor.read(items, rest))
