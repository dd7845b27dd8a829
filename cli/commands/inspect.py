"""`vcls inspect`."""

from __future__ import annotations

import contextlib
import json
import warnings
from typing import Any

import click

from ..options import State, configure_output, console, pass_state, running_options
from ..show import number, size

EPILOG = """\b
Examples:
  vcls inspect my-classifier
  vcls inspect my-classifier --json | jq .execution
  vcls inspect ./bert    # a model without a head is shown as it is
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@running_options
@pass_state
def inspect(state: State, /, model: str, as_json: bool, **options: Any) -> None:
    """Show what a model is and how it would run.

    Its class, the plugin that takes it, pooling, labels, packed or padded and why, sizes and dtype.
    """
    configure_output(state)
    with _opened(model, options) as opened:
        described = opened.describe()
    if as_json:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False, default=str))
        return
    width = max(map(len, described))
    for name, value in described.items():
        text = f"{name.replace('_', ' '):<{width}}  {_text(name, value)}"
        console().print(text, markup=False, soft_wrap=True)


def _opened(model: str, options: dict[str, Any]) -> Any:
    """The model as it opens; one without a head can be looked at, too, and is opened a second time for that."""
    from vllm_cls import ModelError, llm

    if options["convert"] != "auto" or options["lora"] is not None:
        return llm.LLM(model, **options)
    opened = None
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(ModelError):
        opened = llm.LLM(model, **options)
    if opened is None:  # which tells all that again
        return llm.LLM(model, **{**options, "convert": "none"})
    for each in told:
        warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    return opened


def _text(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "heads":
        return "; ".join(f"{head} ({each['head']}): {', '.join(each['labels'])}" for head, each in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if name == "bytes":
        return size(value)
    return repr(value) if name == "prompt_template" else number(value)
