"""`vcls decide`."""

from __future__ import annotations

from typing import Any

import click

from ..job import files_of_a_job, show_report
from ..options import MEDIA, NameListParam, State, configure_output, media_options, pass_state, running_options
from ..progress import progress

EPILOG = """\b
Examples:
  vcls decide my-chat-model tickets.jsonl --questions questions.yaml -o decided.jsonl
  vcls decide my-chat-model tickets.csv --questions questions.json --state-field body -o decided.parquet
  vcls decide my-chat-model test.jsonl --questions questions.yaml --label-field tone=mood -o out.jsonl
  vcls convert my-chat-model my-decider --questions questions.yaml && vcls decide my-decider tickets.jsonl -o decided.jsonl
  vcls decide --server http://127.0.0.1:8000 tickets.jsonl --questions questions.yaml -o decided.jsonl

\b
Questions are a map from a name to a question of one of three types:
  refund:
    type: noul
    instructions: Is a refund requested?
  tone:
    type: choice
    instructions: What is the tone?
    criteria: {calm: a polite message, angry: null}
  urgency:
    type: score
    instructions: How urgent is it?
    criteria: [can wait, this week, today]

\b
Each row of the output has the kept fields of its input, then of each question
  NAME                  the probability of true (noul), the option (choice), the mean level from 0 (score)
  NAME_confidence       how far it is from all being equally likely (choice, score)
  NAME_probabilities    of every option or level (choice, score)
and error, where the row failed. Nothing is generated: an answer is read from the logits of label tokens.

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some rows failed, 130 interrupted.
"""


@click.command(epilog=EPILOG)
@files_of_a_job("image_field", *MEDIA)
@click.option(
    "--questions", metavar="FILE", help="Questions by name, in a .json or .yaml file; else those stored in MODEL."
)
@click.option("--state-field", metavar="NAME", help="The field that is the state; else it is the whole row.")
@click.option(
    "--image-field", metavar="NAME", help="The field of images: paths, URLs, bytes, base64 or a list of them."
)
@click.option("--label-field", metavar="NAME=FIELD", help="The field of a question's true answer: print accuracy.")
@click.option("--keep-fields", type=NameListParam(), default="all", show_default=True, help="all, none or names.")
@media_options
@running_options
@pass_state
def decide(state: State, /, model: Any, inputs: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Ask typed questions about the rows of files.

    MODEL is a language model, best one for chats, or a decision model: a folder, a hub id or a .gguf file; with --server
    it is left out, and the server's model answers. Rows keep their order and stream out.
    """
    configure_output(state)
    from vllm_cls.jobs.decide import decide_file

    stats = options.pop("stats")
    with progress(options.pop("progress"), state.quiet) as on_progress:
        report = decide_file(model, inputs, output, on_progress=on_progress, **options)
    show_report(report, state.quiet, stats)
