"""`vcls serve`."""

from __future__ import annotations

from typing import Any

import click

from .options import Names, State, pass_state, running_options, say, speak
from .server_options import guard_options, guard_settings

EPILOG = """\b
Examples:
  vcls serve my-classifier
  vcls serve my-classifier --port 9000 --served-model-name sentiment
  curl http://127.0.0.1:8000/classify -H 'Content-Type: application/json' -d '{"input": "What a film!"}'
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", type=int, default=8000, show_default=True)
@click.option("--served-model-name", type=Names(), default=(), metavar="NAME", help="What clients call the model.")
@guard_options
@running_options
@pass_state
def serve(state: State, /, model: str, host: str, port: int, served_model_name: Any, **options: Any) -> int:
    """Answer vLLM's classification API over HTTP.

    MODEL is a folder, a hub id or a .gguf file.
    """
    speak(state)
    from vllm_cls.async_llm import AsyncLLM
    from vllm_cls.server import ServerSettings, create_app, lifecycle, logs
    from vllm_cls.server.metrics import Metrics

    logs.configure(options.pop("log_format"), options.pop("log_level"))
    settings = ServerSettings(served_model_names=tuple(served_model_name), **guard_settings(host, options))
    listener = lifecycle.listen(host, port)
    llm = AsyncLLM(model, telemetry=Metrics(), **options)
    app = create_app(llm, settings)
    if not state.quiet:
        say(f"serving {model} at {lifecycle.address(listener)}")
    try:
        return lifecycle.run(app, settings, listener, lambda: llm.is_alive)
    finally:
        llm.close()
