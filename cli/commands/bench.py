"""`vcls bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..options import NameListParam, State, configure_output, console, pass_state, running_options
from ..show import number, show_table

if TYPE_CHECKING:
    from collections.abc import Callable

EPILOG = """\b
Examples:
  vcls bench my-classifier
  vcls bench my-classifier reviews.jsonl --against transformers,padded
  vcls bench my-classifier --against openvino,onnxruntime:16 --json > measured.json
  vcls bench my-classifier reviews.jsonl --quantization int8    # and what int8 changes

\b
PEERS: transformers (its pipeline, 32 texts at once), padded (transformers, 32 at once, sorted by length),
  sentence-transformers (CrossEncoder.predict), onnxruntime, openvino, ctranslate2 (at the batch size that is
  best for them), vllm. NAME:BATCH fixes the batch size. Outputs are compared first: who differs is not timed.

\b
Everyone has a process of its own, the same texts and the same threads, and they take turns. A ratio is the
median over the rounds of a peer's time by ours. The useful share is the arithmetic done by us, in the share
of what matrix products of the model's own shapes reach, timed in the same rounds.
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.argument("input", required=False)
@click.option(
    "--against", type=NameListParam(), default="", metavar="PEERS", help="Whom to measure against, by commas."
)
@click.option(
    "--workload", type=click.Choice(["mixed", "long", "shared-prefix", "rerank"]), default="mixed", show_default=True,
    help="The texts, where there is no INPUT.",
)  # fmt: skip
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each; medians count.")
@click.option("--num-texts", type=int, metavar="N", help="Texts of the workload, or at most N rows of INPUT.")
@click.option("--text-field", default="text", metavar="NAME", show_default=True, help="The field of the text.")
@click.option("--text-pair-field", metavar="NAME", help="The field of a second text.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document, with the environment.")
@running_options
@pass_state
def bench(state: State, /, model: str, input: str | None, as_json: bool, **options: Any) -> None:
    """Measure how fast a model runs, alone or against other libraries."""
    configure_output(state)
    from vllm_cls.bench.options import BenchOptions
    from vllm_cls.bench.run import bench as measure
    from vllm_cls.jobs.rows import PromptFields

    fields = PromptFields(options.pop("text_field"), options.pop("text_pair_field"))
    own = {name: options.pop(name) for name in ("workload", "rounds", "num_texts")}
    own["threads"] = options.pop("num_threads")  # of every contender
    against = [name for name in options.pop("against") if name]
    llm_options = {name: value for name, value in options.items() if value is not None}
    with _telling(not state.quiet) as tell:
        found = measure(BenchOptions(model, input, against=against, fields=fields, llm=llm_options, **own), tell)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)


@contextmanager
def _telling(active: bool) -> Iterator[Callable[[str], None]]:
    """What is going on, on one line of stderr that goes away."""
    err = console(stderr=True)
    if not (active and err.is_interactive):
        yield lambda text: None
        return
    with err.status("starting") as status:
        yield status.update


def _show(found: dict[str, Any]) -> None:
    out = console()
    model, workload, ours, environment = found["model"], found["workload"], found["ours"], found["environment"]
    precision = model["dtype"] if model["quantization"] == "none" else model["quantization"]
    lines = [
        f"{model['model_class']}, {number(model['parameters'])} parameters, {precision}, {model['execution']}, on "
        f"{environment['device']} ({environment['threads']} threads)",
        f"{workload['texts']:,} texts, {workload['tokens']:,} tokens: {workload['description']}; {found['rounds']} rounds",
    ]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    rows = [_row(each) for each in found["contenders"]]
    show_table(out, ("", "settings", "texts/s", "tokens/s", "× our time", "logits differ by"), rows, left=2)
    out.print()
    counts = {name.removeprefix("num_"): f"{value:,}" for name, value in ours["counters"].items()}
    notes = {
        "useful share": f"{ours['useful_share']:.0%} of {found['matrix']['gflops']:,.0f} GFLOP/s (matrix products of the "
        f"model's shapes, {found['matrix']['rows']:,} rows); as the model is written, {ours['model_share']:.0%}",
        "stages": ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in ours["stage_seconds"].items())
        + f"; outside the forward {ours['outside_forward']:.1%}",
        "counted": f"{counts['forwards']} forwards, {counts['tokens']} of {counts['prompt_tokens']} tokens computed, "
        f"{counts['shared_tokens']} shared, {counts['pruned_tokens']} pruned in the last layer, "
        f"{counts['duplicates']} duplicates",
    }
    if found["int8"] is not None:
        notes["int8"] = (
            f"{found['int8']['labels_changed_percent']:.2f} % of the labels changed against float32; largest change of "
            f"a probability {found['int8']['largest_probability_change']:.4f}; {counts['close_calls']} of "
            f"{counts['prompts']} prompts were close calls, which float32 decided"
        )
    for name, text in notes.items():
        out.print(f"{name:<14}{text}", markup=False, soft_wrap=True)


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in each["settings"].items() if name != "sorted"
    )
    agreed = each["agreement"]
    differs = "" if agreed is None else f"{agreed['logit_difference']:.1e}"
    if each["error"] is not None:
        return each["name"], each["error"], "–", "–", "–", ""
    if not each["seconds"]:
        return each["name"], settings, "–", "–", "not timed: its outputs differ", differs
    relative = f"{each['ratio']:.2f}" if "ratio" in each else "–"
    return (
        each["name"],
        settings,
        f"{each['texts_per_second']:,.1f}",
        f"{each['tokens_per_second']:,.0f}",
        relative,
        differs,
    )
