"""The settings of a server: names, limits, access."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `create_app`.

    Args:
        served_model_names: what clients may call the model; the first is the one in answers. Empty takes `model_name`.
        lora_modules: name → folder of LoRA adapters that clients may name as `model`.
        threshold: from which probability a model of one label names it, and a text is flagged; None never does, and flags from 0.5.
        safe_label: the label of harmless texts, for /v1/moderations; None knows "safe", "benign", "neutral" and such.
        trust_request_chat_template: take `chat_template` and `chat_template_kwargs` from requests.
        trust_request_mm_kwargs: take `mm_processor_kwargs` and `media_io_kwargs` from requests.
        allowed_media_domains: hosts from which images and videos of requests are fetched; none fetches nothing.
        allowed_local_media_path: the folder under which `file:` URLs of requests are read; "" reads none.
        limit_mm_per_prompt: the most images and videos of a conversation, by modality, as in vLLM.
        api_keys: any of them opens every route but the open ones; none leaves all open.
        metrics_keys: each opens /metrics and /load alone, and sees there the metrics about the texts of all keys; with several
            `api_keys`, these do not.
        allowed_hosts: names to answer to in the Host header, without ports; none answers to all.
        cors_origins: web pages of these origins may use the server; "*" is all.
        root_path: the path prefix that a reverse proxy removes.
        request_timeout: seconds until a request is given up with 504; None waits.
        shutdown_timeout: seconds from SIGTERM until the process ends.
        header_timeout: seconds in which a request's headers must be whole.
        body_timeout: seconds in which a request's body must be whole.
        write_timeout: seconds in which a client must take what is written to it.
        keep_alive_timeout: seconds that a connection may idle between requests.
        max_connections: at a time.
        max_header_bytes: of a request's target and headers.
        max_headers: of a request.
        max_body_bytes: of a request.
        max_buffered_bytes: of the bodies of all requests together.
        max_json_depth: levels that a body may nest.
        max_inputs: prompts of a request, pairs and documents too.
        max_request_tokens: of the prompts of a request together.
        otlp_traces_endpoint: where traces go, a full address for OTLP over HTTP; None makes none.
    """

    served_model_names: tuple[str, ...] = ()
    lora_modules: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    safe_label: str | None = None
    trust_request_chat_template: bool = False
    trust_request_mm_kwargs: bool = False
    allowed_media_domains: tuple[str, ...] = ()
    allowed_local_media_path: str = ""
    limit_mm_per_prompt: Mapping[str, Any] = field(default_factory=dict)
    root_path: str = ""
    api_keys: tuple[str, ...] = ()
    metrics_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    request_timeout: float | None = 120.0
    shutdown_timeout: float = 30.0
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    keep_alive_timeout: int = 30
    max_connections: int = 1024
    max_header_bytes: int = 16 << 10
    max_headers: int = 100
    max_body_bytes: int = 8 << 20
    max_buffered_bytes: int = 256 << 20
    max_json_depth: int = 32
    max_inputs: int = 2048
    max_request_tokens: int = 1 << 20
    otlp_traces_endpoint: str | None = None

    def names_of(self, model: str) -> tuple[str, ...]:
        """What clients may call the model: of a folder no path, but its name."""
        own = Path(model).resolve().name if Path(model).exists() else model
        return self.served_model_names or (own,)
