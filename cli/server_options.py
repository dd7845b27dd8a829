"""The options of `vcls serve` for access and limits: each is a field of `ServerSettings`, whose default it shows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_cls.server.settings import ServerSettings

from .options import with_options

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS: dict[str, tuple[Any, str]] = {
    "request_timeout": (click.FloatRange(min=0, min_open=True), "Seconds until a request is given up, with 504."),
    "shutdown_timeout": (click.FloatRange(min=1), "Seconds from SIGTERM until the process ends."),
    "header_timeout": (click.FloatRange(min=0, min_open=True), "Seconds for a request's headers to come."),
    "body_timeout": (click.FloatRange(min=0, min_open=True), "Seconds for a request's body to come."),
    "write_timeout": (click.FloatRange(min=0, min_open=True), "Seconds for a client to take what is written to it."),
    "keep_alive_timeout": (click.IntRange(min=0), "Seconds that a connection may idle between requests."),
    "max_connections": (click.IntRange(min=1), "At a time; one more is answered 503."),
    "max_header_bytes": (click.IntRange(min=256), "Of a request's path and headers."),
    "max_headers": (click.IntRange(min=1), "Of a request."),
    "max_body_bytes": (click.IntRange(min=1), "Of a request."),
    "max_buffered_bytes": (click.IntRange(min=1), "Of the bodies of all requests together."),
    "max_json_depth": (click.IntRange(min=1), "Levels that a request's JSON may nest."),
    "max_inputs": (click.IntRange(min=1), "Prompts, pairs or documents of a request."),
    "max_request_tokens": (
        click.IntRange(min=1),
        "Of a request's prompts together; more is refused before any of it runs.",
    ),
}
GUARDS = ("api_key", "api_key_file", "metrics_key_file", "allowed_host", "allowed_origin", *_SETTINGS, "log_format", "log_level",
          "otlp_traces_endpoint")  # fmt: skip
"""The names of the options of `guard_options`."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_TLS = [
    click.option("--ssl-certfile", type=_FILE, help="Serve HTTPS with this certificate, PEM; see --ssl-keyfile."),
    click.option("--ssl-keyfile", type=_FILE, help="Its private key, PEM, without a passphrase."),
    click.option("--ssl-ca-certs", type=_FILE, help="Who issues certificates of clients, PEM."),
    click.option(
        "--ssl-cert-reqs", type=click.IntRange(0, 2), default=0, show_default=True,
        help="Certificates of clients: 0 asks for none, 1 checks those that come, 2 requires one.",
    ),
]  # fmt: skip
TLS = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs")
"""The names of the options of `tls_options`, in the order of the arguments of `transport.tls.server_context`."""

_DEFAULTS = {each.name: each.default for each in dataclasses.fields(ServerSettings)}

_GUARDS = [
    click.option(
        "--api-key", multiple=True, metavar="KEY",
        help="Asked of clients; may be repeated. Others of this machine can see it: better is --api-key-file or VCLS_API_KEY.",
    ),
    click.option("--api-key-file", type=_FILE, help="One key a line."),
    click.option(
        "--metrics-key-file", type=_FILE,
        help="Keys that open /metrics and /load alone. With several API keys, these alone show there what tells of texts.",
    ),
    click.option(
        "--allowed-host", multiple=True, metavar="NAME",
        help="Answer to this name in the Host header; may be repeated. On loopback: localhost; else every name.",
    ),
    click.option(
        "--allowed-origin", multiple=True, metavar="ORIGIN",
        help="Web pages of this origin may use the server (CORS); may be repeated.",
    ),
    *(
        click.option(f"--{name.replace('_', '-')}", type=kind, default=_DEFAULTS[name], show_default=True, help=text)
        for name, (kind, text) in _SETTINGS.items()
    ),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True),
    click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True,
        help="info logs a line for each request.",
    ),
    click.option("--otlp-traces-endpoint", metavar="URL", help="Send OpenTelemetry traces there (OTLP over HTTP)."),
]  # fmt: skip


def tls_options(function: F) -> F:
    """The certificate, and what is asked of clients."""
    return with_options(function, _TLS)


def guard_options(function: F) -> F:
    """The options for access, limits of requests, and logs."""
    return with_options(function, _GUARDS)


def guard_settings(host: str, options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `guard_options`, all but the log's, out of `options`, as arguments of `ServerSettings`."""
    from vllm_cls.errors import ConfigError
    from vllm_cls.server.middleware.auth import collect_keys, keys_in, names_for

    keys = collect_keys(options.pop("api_key"), options.pop("api_key_file"), os.environ)
    metrics_file = options.pop("metrics_key_file")
    if metrics_file is not None and not keys:
        raise ConfigError("--metrics-key-file is for a server with API keys; give --api-key-file too.")
    names = tuple(options.pop("allowed_host"))
    return {
        "api_keys": keys,
        "metrics_keys": () if metrics_file is None else keys_in(metrics_file, "--metrics-key-file"),
        "allowed_hosts": (*names_for(host), *names),
        "cors_origins": tuple(options.pop("allowed_origin")),
        "otlp_traces_endpoint": options.pop("otlp_traces_endpoint"),
        **{name: options.pop(name) for name in _SETTINGS},
    }
