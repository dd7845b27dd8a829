"""`vcls run-batch`."""

from __future__ import annotations

from typing import Any

import click

from ..job import run_of_a_job, show_report
from ..options import MEDIA, NameListParam, State, configure_output, media_options, pass_state, running_options
from ..progress import progress
from .serve import NamedPathParam, distinct

EPILOG = """\b
Examples:
  vcls run-batch my-classifier -i requests.jsonl -o answers.jsonl
  vcls run-batch my-reranker -i 'requests/*.jsonl.gz' -o answers.jsonl.gz --max-errors 100

\b
A line of the input, as in OpenAI's batches; url is any route of `vcls serve`, a plugin's too:
  {"custom_id": "a", "method": "POST", "url": "/classify", "body": {"input": "What a film!"}}

\b
A line of the output, in the same order:
  {"id": …, "custom_id": "a", "response": {"status_code": 200, "request_id": …, "body": {…}}, "error": null}
A request that is refused has its status and the error as body; a line that is no request has error, and no response.

\b
With -o, a job that ended early goes on with the same command; other inputs, options or models are refused.

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some requests failed, 130 interrupted.
"""


@click.command("run-batch", epilog=EPILOG)
@click.argument("model")
@click.option(
    "-i", "--input-file", "inputs", multiple=True, required=True, metavar="FILE",
    help="JSON lines, also .gz or .zst, a glob, or - for standard input; may be repeated.",
)  # fmt: skip
@click.option("-o", "--output-file", "output", metavar="FILE", help="JSON lines; without it, on stdout.")
@run_of_a_job
@click.option("--served-model-name", type=NameListParam(), default=(), metavar="A,B,…", help="Names that requests use.")
@click.option(
    "--lora-modules", type=NamedPathParam(), multiple=True, callback=distinct,
    help="A LoRA adapter that requests may name as model; may be repeated.",
)  # fmt: skip
@media_options
@running_options
@pass_state
def run_batch(
    state: State, /, model: str, inputs: tuple[str, ...], output: str | None, lora_modules: Any, **options: Any
) -> None:
    """Answer files of requests, as the server would.

    MODEL is a folder, a hub id or a .gguf file.
    """
    configure_output(state)
    from vllm_cls.server import ServerSettings, run_batch
    from vllm_cls.server.observability import logs

    logs.configure("text", "warning")
    settings = ServerSettings(
        served_model_names=tuple(options.pop("served_model_name")),
        lora_modules=lora_modules,
        request_timeout=None,
        **{name: options.pop(name) for name in MEDIA},
    )
    if lora_modules:
        options |= {"enable_lora": True, "max_loras": len(lora_modules)}
    stats = options.pop("stats")
    with progress(options.pop("progress"), state.quiet) as on_progress:
        report = run_batch(model, inputs, output, settings=settings, on_progress=on_progress, **options)
    show_report(report, state.quiet, stats, rows="requests")
