"""`vcls serve`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import click

from ..grouped import GroupedCommand
from ..options import (
    MEDIA,
    NameListParam,
    ParamType,
    State,
    Template,
    configure_output,
    media_options,
    pass_state,
    running_options,
    say,
)
from ..server_options import GUARDS, TLS, guard_options, guard_settings, tls_options

EPILOG = """\b
Examples:
  vcls serve my-classifier
  vcls serve my-classifier --port 9000 --served-model-name sentiment --api-key-file keys.txt
  vcls serve my-base --lora-modules books=adapters/books --lora-modules films=adapters/films
  vcls serve my-reranker --max-inputs 200 --request-timeout 10
  vcls serve my-classifier --ssl-certfile cert.pem --ssl-keyfile key.pem
  vcls serve my-classifier --engine ray --num-replicas 4

\b
  curl http://127.0.0.1:8000/classify -H 'Content-Type: application/json' -d '{"input": "What a film!"}'

\b
Routes: /classify /pooling /score /rerank /tokenize /detokenize /invocations /v1/models /health /ready /metrics
/version /load /openapi.json /docs. Exit codes: 0 told to stop, and everything in flight answered; 1 failed.
"""

_SERVED = (
    "host",
    "port",
    "uds",
    "engine",
    "num_replicas",
    "ray_address",
    "root_path",
    *TLS,
    "served_model_name",
    "threshold",
    "safe_label",
    "trust_request_chat_template",
)
_QUEUE = ("max_num_seqs", "max_queued_requests", "max_queued_tokens")
_MEDIA = (*MEDIA, "trust_request_mm_kwargs")
_ADAPTERS = ("lora_modules", "max_loras", "max_lora_rank")
_GROUPS = {"Server": _SERVED, "Guards": GUARDS, "Images and videos": _MEDIA, "Queue": _QUEUE, "Adapters": _ADAPTERS}


class TemplateOrFile(Template):
    """A template, or the name of a file that holds one (vLLM's way)."""

    name = "TEMPLATE|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if "{" not in str(value) and Path(value).is_file():
            return Path(value).read_text(encoding="utf-8")
        return str(super().convert(value, param, ctx))


class NamedPathParam(ParamType):
    """NAME=PATH."""

    name = "NAME=PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, path = value.partition("=")
        if not equals or not name.strip() or not path.strip():
            self.fail(f"{value!r} is not NAME=PATH.", param, ctx)
        return name.strip(), path.strip()


def distinct(ctx: click.Context, param: click.Parameter, value: Sequence[tuple[str, str]]) -> dict[str, str]:
    for name, _ in value:
        if [each for each, _ in value].count(name) > 1:
            raise click.BadParameter(f"{name!r} twice; give each adapter a name of its own.", ctx, param)
    return dict(value)


def _on_ray(model: str, settings: Any, **options: Any) -> AbstractContextManager[None]:
    from vllm_cls.distributed.serving import serve_on_ray
    from vllm_cls.server import open_app

    return serve_on_ray(model, functools.partial(open_app, settings=settings), **options)


@click.command(cls=GroupedCommand, groups=_GROUPS, epilog=EPILOG)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--uds", type=click.Path(path_type=Path), help="Listen on this Unix socket instead.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray serves replicas on a Ray cluster, by Ray Serve.",
)
@click.option("--num-replicas", type=click.IntRange(1), metavar="N", help="On the cluster; else 1.")
@click.option("--ray-address", metavar="ADDR", help="Of the cluster; else RAY_ADDRESS, else one of this machine.")
@click.option("--root-path", default="", metavar="PATH", help="What a proxy in front takes off the paths.")
@tls_options
@click.option(
    "--served-model-name", type=NameListParam(), default=(), metavar="A,B,…", help="What clients call the model."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="From this probability a model of one label gives it (else never), and /v1/moderations flags a text (else 0.5).",
)
@click.option(
    "--safe-label",
    metavar="LABEL",
    help="That of harmless texts, for /v1/moderations; else one named safe, benign, ok …",
)
@click.option(
    "--trust-request-chat-template", is_flag=True, help="Render chat templates of requests, in a process of their own."
)
@media_options
@click.option(
    "--trust-request-mm-kwargs", is_flag=True, help="Take mm_processor_kwargs and media_io_kwargs from requests."
)
@guard_options
@click.option("--max-num-seqs", type=click.IntRange(1), default=256, show_default=True, help="Prompts in one batch.")
@click.option(
    "--max-queued-requests",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="In flight; one more is answered 429.",
)
@click.option("--max-queued-tokens", type=click.IntRange(1), help="That wait; once so many do, 429. Else by the model.")
@click.option(
    "--lora-modules",
    type=NamedPathParam(),
    multiple=True,
    callback=distinct,
    help="A LoRA adapter that clients may name as model; may be repeated.",
)
@click.option("--max-loras", type=click.IntRange(1), help="Adapters held in memory; else all of them.")
@click.option("--max-lora-rank", type=click.IntRange(1), help="Of an adapter; else any.")
@click.option("--chat-template", type=TemplateOrFile(), help="Jinja for conversations, and for pairs.")
@click.option(
    "--score-template", type=Template(), metavar="TEXT", help="How pairs are written; see `vcls score --help`."
)
@click.option("--no-template", is_flag=True, help="Leave out the prompt template that the model stores.")
@running_options
@pass_state
def serve(
    state: State,
    /,
    model: str,
    host: str,
    port: int,
    uds: Path | None,
    lora_modules: Any,
    max_loras: int | None,
    engine: str,
    num_replicas: int | None,
    ray_address: str | None,
    **options: Any,
) -> int:
    """Answer vLLM's classification API over HTTP.

    MODEL is a folder, a hub id or a .gguf file. /ready answers 503 until it is loaded. SIGTERM stops: what is in flight
    is answered first.
    """
    configure_output(state)
    from vllm_cls.server import ServerSettings
    from vllm_cls.server.observability import logs
    from vllm_cls.server.observability.metrics import ServerMetrics
    from vllm_cls.server.transport import lifecycle, listening, starting, tls

    logs.configure(options.pop("log_format"), options.pop("log_level"))
    settings = ServerSettings(
        served_model_names=tuple(options.pop("served_model_name")),
        lora_modules=lora_modules,
        threshold=options.pop("threshold"),
        safe_label=options.pop("safe_label"),
        trust_request_chat_template=options.pop("trust_request_chat_template"),
        root_path=options.pop("root_path"),
        **{name: options.pop(name) for name in _MEDIA},
        **guard_settings(host, options),
    )
    options["use_template"] = not options.pop("no_template")
    certificate = {name: options.pop(name) for name in TLS}
    context = tls.server_context(*certificate.values())
    if lora_modules:
        options |= {"enable_lora": True, "max_loras": max_loras or len(lora_modules)}
    tell = (lambda text: None) if state.quiet else say
    if engine == "ray":
        if uds or certificate.pop("ssl_cert_reqs"):
            raise click.UsageError("--uds and --ssl-cert-reqs: Ray Serve has neither; leave them out.")
        cluster = {"num_replicas": num_replicas or 1, "address": ray_address, "host": host, "port": port}
        cluster["root_path"] = settings.root_path
        with starting.ended_by_sigterm(), _on_ray(model, settings, **cluster, **certificate, **options):
            tell(f"serving {model} at {'https' if context else 'http'}://{host}:{port}{settings.root_path}")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        return 0
    if num_replicas or ray_address:
        raise click.UsageError("--num-replicas and --ray-address are for a Ray cluster; give --engine ray too.")
    metrics = ServerMetrics()
    listener = listening.listen_at(uds) if uds else listening.listen(host, port)
    with starting.ended_by_sigterm(), listener, ExitStack() as opened:
        place = str(uds) if uds else listening.address(listener, "https" if context else "http")
        tell(f"loading {model}: {place.partition('//')[2] or place} answers 503 until it is ready")
        meanwhile = starting.loading_app(settings.names_of(model)[0], settings, metrics)
        with starting.answering(meanwhile, settings, listener, context):
            from vllm_cls.async_llm import AsyncLLM  # takes seconds
            from vllm_cls.server import create_app

            llm = opened.enter_context(closing(AsyncLLM(model, telemetry=metrics, **options)))
            app = create_app(llm, settings)
        tell(f"serving {model} at {place}")
        return lifecycle.run(app, settings, listener, lambda: llm.is_alive, context)
