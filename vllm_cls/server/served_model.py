"""The model that a server serves, under the names that clients know."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..async_llm import AsyncLLM
from ..errors import ConfigError, ModelError
from ..llm import LLM
from ..params import LoRARequest
from .errors import RequestError
from .observability.metrics import ServerMetrics
from .settings import ServerSettings

_MEDIA_THREADS = 4  # as many items are decoded at once, which bounds their memory


class Named(NamedTuple):
    """The model itself, or with an adapter.

    Args:
        name: in answers.
    """

    name: str
    adapter: LoRARequest | None


class _NamedModels(dict[str | None, Named]):
    """By the names that clients may give; `shown` are those that an error tells of."""

    shown: Sequence[str] = ()

    def __missing__(self, name: str) -> Named:
        known = ", ".join(self.shown)
        raise RequestError(f"The model {name[:100]!r} does not exist. Known: {known}.", "model", 404)


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
        return cls(served, settings, source, settings.names_of(source), adapters)

    @functools.cached_property
    def by_name(self) -> Mapping[str | None, Named]:
        """What the `model` of a request means; any other name raises `RequestError`."""
        found = _NamedModels({name: Named(name, adapter) for name, adapter in self.adapters.items()})
        found.shown = (*self.names, *self.adapters)
        found.update(dict.fromkeys((None, "", self.source, *self.names), Named(self.names[0], None)))
        return found

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

    @functools.cached_property
    def why_not_moderated(self) -> str | None:
        """Why no text can be judged, by the model or with an adapter; None where some can.

        Raises:
            ConfigError: the settings name a label of harmless texts that there is not.
        """
        label, failed = self.settings.safe_label, list[ConfigError]()
        for adapter in (None, *self.adapters.values()):
            try:
                self.llm.llm.check_moderates(label, adapter)
            except ConfigError as error:
                failed.append(error)
        if len(failed) <= len(self.adapters):
            return None
        if label is not None:
            raise failed[0]
        return str(failed[0])

    @property
    def takes_candidates(self) -> bool:
        """Whether it classifies texts by labels of a request."""
        try:
            self.llm.llm.classify_iter((), candidate_labels=("a label",))  # asks, and runs nothing
        except ConfigError:
            return False
        return True

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
