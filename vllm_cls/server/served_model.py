"""The model that a server serves, under the names that clients know."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..async_llm import AsyncLLM
from ..llm import LLM
from ..params import LoRARequest
from .errors import RequestError
from .settings import ServerSettings


@dataclass(frozen=True)
class ServedModel:
    """One model with its adapters.

    Args:
        llm: runs it.
        settings: of the server.
        names: of the model itself; the first is the one in answers.
        adapters: LoRA adapters by the names that clients may give as `model`.
        created: in seconds since 1970.
    """

    llm: AsyncLLM
    settings: ServerSettings
    names: tuple[str, ...]
    adapters: Mapping[str, LoRARequest] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, llm: AsyncLLM | LLM, settings: ServerSettings) -> ServedModel:
        """A loaded model as the settings want it served."""
        served = AsyncLLM(llm) if isinstance(llm, LLM) else llm  # type: ignore[arg-type]
        adapters = {
            name: LoRARequest(name, number, path)
            for number, (name, path) in enumerate(settings.lora_modules.items(), start=1)
        }
        names = settings.served_model_names or (str(served.llm.describe()["model"]),)
        return cls(served, settings, names, adapters)

    def adapter(self, name: str | None) -> LoRARequest | None:
        """What the `model` of a request means: an adapter, or None for the model itself.

        Raises:
            RequestError: it is no name of anything here.
        """
        if not name or name in self.names:
            return None
        if name not in self.adapters:
            known = ", ".join((*self.names, *self.adapters))
            raise RequestError(f"The model {name!r} does not exist. Known: {known}.", "model", 404)
        return self.adapters[name]

    def name_of(self, adapter: LoRARequest | None) -> str:
        """What answers call it."""
        return self.names[0] if adapter is None else adapter.lora_name
