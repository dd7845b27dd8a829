"""What a server is told: its names, its limits, whom it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `create_app`.

    Args:
        served_model_names: what clients may call the model; the first is the one in answers. Empty takes `model_name`.
        lora_modules: name → folder of LoRA adapters that clients may name as `model`.
        threshold: from which probability a model of one label names it; None never does.
        trust_request_chat_template: take `chat_template` and `chat_template_kwargs` from requests.
        request_timeout: seconds until a request is given up with 504; None waits.
    """

    served_model_names: tuple[str, ...] = ()
    lora_modules: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    trust_request_chat_template: bool = False
    request_timeout: float | None = None
