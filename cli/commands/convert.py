"""`vcls convert`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vllm_cls.config import CONVERT_MODES, DTYPES, PROBLEM_TYPES

from ..heads import ConvertCommand, check_head
from ..options import (
    MEDIA,
    LabelTokens,
    NameListParam,
    PoolingChoice,
    State,
    Template,
    configure_output,
    console,
    media_options,
    model_options,
    pass_state,
    say,
)
from ..show import measurements, number, size

if TYPE_CHECKING:
    from vllm_cls.conversion.converter import ConversionReport

_MOST_LABELS = 20
_MODES = [mode for mode in CONVERT_MODES if mode not in ("none", "decide")]

EPILOG = """\b
Examples:
  vcls convert ./finetuned copy --dtype bfloat16

\b
An example of every --head:
EXAMPLES

\b
Where each comes from:
SUMMARIES

\b
More:
  vcls convert ./bert merged --lora ./adapter
  vcls convert my-chat-model my-decider --questions questions.yaml

\b
--calibrate fits a temperature and biases, kept where the log loss of rows held out improves.
--no-bias: a temperature alone, which every format holds.
With --questions, a temperature for each type of question, in decision.json; the true answers are in columns that are
called as the questions, or --label-field NAME=COLUMN,NAME=COLUMN.
In --prompt-template, \\n and \\t are a new line and a tab, \\\\ is a backslash; {{ and }} are braces. In --label-tokens
too, where \\, \\= and \\| are a comma, = and | of a text.
"""

_GROUPS = {
    "Labels": ("labels", "num_labels", "problem_type"),
    "Head": (
        "convert", "head", "label_tokens", "head_weights", "lora", "pooling", "logit_bias", "head_name", "seed",
    ),
    "Labelled rows": (
        "train", "calibrate", "text_field", "text_pair_field", "image_field", "video_field", "label_field",
        "validation_split", "bias", *MEDIA,
    ),
    "Prompt": ("prompt_template", "chat_template_prompt", "score_template"),
    "Decisions": ("questions", "decision_template", "state_field"),
    "Output": ("dtype", "max_shard_size", "link", "dry_run", "overwrite"),
}  # fmt: skip


@click.command(cls=ConvertCommand, groups=_GROUPS, epilog=EPILOG)
@click.argument("model")
@click.argument("out")
@click.option(
    "--convert",
    type=click.Choice(_MODES),
    default="auto",
    show_default=True,
    help="auto: what MODEL is, else classify.",
)
@click.option(
    "--head", metavar="NAME", is_eager=True, callback=check_head, help="Where the head comes from: see below."
)
@click.option("--labels", type=NameListParam(), help="Names of the labels, in the order of their indices.")
@click.option("--num-labels", type=int, metavar="N", help="Number of labels, where they have no names.")
@click.option("--problem-type", type=click.Choice(PROBLEM_TYPES), help="Softmax, sigmoids or a number; else not set.")
@click.option("--label-tokens", type=LabelTokens(), help="Texts whose tokens stand for each label.")
@click.option("--train", metavar="FILE", help="Labelled rows, in any format that classify reads.")
@click.option("--text-field", default="text", metavar="NAME", show_default=True, help="The field of the text.")
@click.option("--text-pair-field", metavar="NAME", help="The field of a second text.")
@click.option(
    "--image-field", metavar="NAME", help="The field of images: paths, URLs, bytes, base64 or a list of them."
)
@click.option("--video-field", metavar="NAME", help="The field of videos, likewise.")
@click.option("--label-field", default="label", metavar="NAME", show_default=True, help="The field of the label.")
@click.option("--validation-split", type=float, default=0.2, show_default=True, help="Share of rows held out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and of a random head.")
@click.option(
    "--bias/--no-bias", default=None, help="An intercept, even where only our own format can hold it; see below."
)
@click.option("--calibrate", metavar="FILE", help="Labelled rows for a temperature and biases of the logits.")
@click.option("--head-weights", metavar="FILE", help="The head's tensors, a safetensors file.")
@click.option("--prompt-template", type=Template(), help="Put round each text: 'Review: {text}\\nSentiment:'.")
@click.option(
    "--score-template",
    type=Template(),
    help="How a reranker's pairs are written: Jinja with {{ query }} and {{ document }}, or a name.",
)
@click.option("--chat-template-prompt", is_flag=True, help="Put each text into the model's chat template.")
@click.option("--pooling", type=PoolingChoice(), help="Else as the model does. A plugin's is taken by its name.")
@click.option("--logit-bias", type=float, metavar="X", help="Subtracted from every logit.")
@click.option("--head-name", metavar="NAME", help="Its name among several; MODEL's named heads stay beside it.")
@click.option("--lora", metavar="FOLDER", help="A PEFT LoRA adapter: merged into the weights, and its head is taken.")
@click.option(
    "--questions",
    metavar="FILE",
    help="Questions by name (.json or .yaml) that the model answers: write it for vcls decide.",
)
@click.option(
    "--decision-template", metavar="FILE", help="Jinja that questions are written with, in place of the default."
)
@click.option("--state-field", metavar="NAME", help="The state, in rows for --calibrate; else it is the whole row.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the weights written; else as they are.")
@click.option("--max-shard-size", default="5GB", metavar="SIZE", show_default=True, help="Of a weights file.")
@click.option("--link", is_flag=True, help="Hard links to unchanged files in place of copies.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@media_options
@model_options
@pass_state
def convert(state: State, /, model: str, out: str, **options: Any) -> None:
    """Turn a model into a classifier on disk.

    MODEL is a folder, a hub id or a .gguf file; OUT is the folder to make, whole or not at all.
    """
    configure_output(state)
    from vllm_cls.conversion.converter import convert as run

    began = time.perf_counter()
    options["use_tqdm"] = not state.quiet
    report = run(model, out, **{name: value for name, value in options.items() if value is not None})
    if not state.quiet:
        _show(report, time.perf_counter() - began, own_code=bool(options.get("trust_remote_code")))
        for warning in report.warnings:
            say(f"warning: {warning}", style="yellow")


def _show(report: ConversionReport, seconds: float, *, own_code: bool) -> None:
    if report.questions:
        _show_lines(report, _of_questions(report, seconds), f"vcls decide {shlex.quote(report.out)} INPUT -o OUTPUT")
        return
    opens = "opens in plain transformers" if report.format == "transformers" else "opens after `import vllm_cls`"
    labels = ", ".join(report.labels[:_MOST_LABELS])
    rest = f", … ({len(report.labels)})" if len(report.labels) > _MOST_LABELS else ""
    lines = [
        ("class", f"{report.model_class}, {opens}"),
        ("head", f"{report.head}, on {report.pooling} states"),
        ("labels", labels + rest),
        ("heads", ", ".join(report.heads)),
        ("measured", _measured(report)),
        ("calibrated", _calibrated(report)),
        ("size", f"{size(report.num_bytes)} in {len(report.files)} files, {seconds:.1f} s"),
    ]
    trust = " --trust-remote-code" if own_code else ""
    _show_lines(report, lines, f"vcls classify {shlex.quote(report.out)} INPUT -o OUTPUT{trust}")


def _show_lines(report: ConversionReport, lines: Sequence[tuple[str, str]], command: str) -> None:
    """What was written, and the command that runs it."""
    out = console()
    done = "would write" if report.dry_run else "wrote"
    out.print(f"{done} {report.out}", style="bold", markup=False, soft_wrap=True)
    for name, text in lines:
        if text:
            out.print(f"  {name:<10} {text}", markup=False, soft_wrap=True)
    if not report.dry_run:
        out.print(f"next: {command}", markup=False, soft_wrap=True)


def _of_questions(report: ConversionReport, seconds: float) -> list[tuple[str, str]]:
    lines = [
        ("class", f"{report.model_class}, opens in plain transformers"),
        ("questions", ", ".join(report.questions)),
    ]
    for kind, found in report.report.get("calibration", {}).items():
        change = (
            f"temperature {number(found['temperature'])}" if found["kept"] else "no improvement, so it stays as it was"
        )
        lines.append(("calibrated", f"{kind}: {_changes(found, ('log_loss', 'calibration_error'))}; {change}"))
    return [*lines, ("size", f"{size(report.num_bytes)} in {len(report.files)} files, {seconds:.1f} s")]


def _measured(report: ConversionReport) -> str:
    values = dict(report.report)
    values.pop("calibration", None)
    rows, held_out = values.pop("rows", None), values.pop("held_out_rows", None)
    where = f"on {held_out:,} of {rows:,} rows, held out: " if held_out and rows else ""
    return where + measurements(values)


def _calibrated(report: ConversionReport) -> str:
    """`log loss 0.69 → 0.41, …, on 300 rows, cross-validated; temperature 2.1, biases negative 0.5, positive -0.5`."""
    values = report.report.get("calibration")
    if not values:
        return ""
    text = f"{_changes(values, ('log_loss', 'accuracy', 'calibration_error'))}; "
    if not values["kept"]:
        return text + "no improvement, so the head stays as it was"
    text += f"temperature {number(values['temperature'])}"
    biases = zip(report.labels, values.get("bias", ()), strict=False)
    shown = ", ".join(f"{label} {number(bias)}" for label, bias in list(biases)[:_MOST_LABELS])
    return text + (f", biases {shown}" if shown else "")


def _changes(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """`log loss 0.69 → 0.41, …, on 300 rows, cross-validated`."""
    changes = ", ".join(
        f"{name.replace('_', ' ')} {number(values[f'{name}_before'])} → {number(values[f'{name}_after'])}"
        for name in names
    )
    return f"{changes}, on {values['rows']:,} rows, cross-validated"
