"""The model that a server serves, under the names that clients know."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..async_llm import AsyncLLM
from ..errors import ConfigError, ModelError
from ..llm import LLM
from ..params import LoRARequest
from .errors import RequestError
from .observability.metrics import ServerMetrics
from .settings import ServerSettings

_MEDIA_THREADS = 4  # as many items are decoded at once, which bounds their memory


@dataclass(frozen=True)
class ServedModel:
    """One model with its adapters.

    Args:
        llm: runs it.
        settings: of the server.
        source: the model as it was given to `LLM`; accepted as a name, but not listed.
        names: of the model itself; the first is the one in answers.
        adapters: LoRA adapters by the names that clients may give as `model`.
        created: in seconds since 1970.
    """

    llm: AsyncLLM
    settings: ServerSettings
    source: str
    names: tuple[str, ...]
    adapters: Mapping[str, LoRARequest] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def from_llm(cls, llm: AsyncLLM | LLM, settings: ServerSettings) -> ServedModel:
        """A loaded model as the settings want it served; its adapters are read now.

        Raises:
            ConfigError: adapters are not enabled.
            ModelError: an adapter cannot be read, or does not fit the model.
        """
        served = AsyncLLM(llm, telemetry=ServerMetrics()) if isinstance(llm, LLM) else llm
        adapters = {
            name: LoRARequest(name, number, path)
            for number, (name, path) in enumerate(settings.lora_modules.items(), start=1)
        }
        for adapter in adapters.values():
            served.llm.labels_of(adapter)
        source = str(served.llm.describe()["model"])
        own = Path(source).resolve().name if Path(source).exists() else source
        return cls(served, settings, source, settings.served_model_names or (own,), adapters)

    def adapter(self, name: str | None) -> LoRARequest | None:
        """What the `model` of a request means: an adapter, or None for the model itself.

        Raises:
            RequestError: it is no name of anything here.
        """
        if not name or name in (*self.names, self.source):
            return None
        if name not in self.adapters:
            known = ", ".join((*self.names, *self.adapters))
            raise RequestError(f"The model {name[:100]!r} does not exist. Known: {known}.", "model", 404)
        return self.adapters[name]

    def name_of(self, adapter: LoRARequest | None) -> str:
        """What answers call it."""
        return self.names[0] if adapter is None else adapter.lora_name

    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            RequestError: it has none.
        """
        tokenizer = self.llm.llm.get_tokenizer()
        if tokenizer is None:
            raise RequestError("This model has no tokenizer; give token ids.")
        return tokenizer

    @functools.cached_property
    def max_model_len(self) -> int:
        """The longest prompt, in tokens."""
        return self.llm.llm.max_model_len

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model reads beside texts: `image`, `video`.

        Raises:
            RequestError: its processor of images cannot be opened.
        """
        media = self.llm.llm.media
        try:
            return () if media is None else media.modalities
        except (ModelError, ConfigError) as error:
            raise RequestError(f"Images and videos are not read here: {error}", "messages") from error

    @functools.cached_property
    def media_threads(self) -> ThreadPoolExecutor:
        """Where images and videos of requests are fetched and decoded."""
        return ThreadPoolExecutor(_MEDIA_THREADS, thread_name_prefix="vllm_cls_media")

    @property
    def classifies(self) -> bool:
        """Whether it gives probabilities of labels for a text."""
        return "classify" in self.llm.llm.supported_tasks

    @property
    def chats(self) -> bool:
        """Whether it reads conversations: there is a template for them, or clients may bring one."""
        tokenizer = self.llm.llm.get_tokenizer()
        return self.settings.trust_request_chat_template or bool(getattr(tokenizer, "chat_template", None))

    @property
    def scores(self) -> bool:
        """Whether there is one label, of the model, of one of its heads or of an adapter: a score."""
        llm = self.llm.llm
        heads = [each.id2label for each in llm.heads.values()] or [llm.labels_of(None)]
        return self.classifies and 1 in map(len, [*heads, *map(llm.labels_of, self.adapters.values())])
