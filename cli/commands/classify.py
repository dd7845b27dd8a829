"""`vcls classify`."""

from __future__ import annotations

from typing import Any

import click

from vllm_cls.config import AGGREGATIONS

from ..job import files_of_a_job, show_report
from ..options import MEDIA, NameListParam, State, configure_output, media_options, pass_state, running_options
from ..progress import progress

EPILOG = """\b
Examples:
  vcls classify my-classifier reviews.jsonl -o classified.jsonl
  vcls classify my-classifier 'data/*.csv.gz' -o all.parquet --text-field body
  vcls classify my-classifier test.csv -o out.csv --label-field label    # and accuracy
  vcls classify my-classifier 's3://bucket/in/*.parquet' -o s3://bucket/out.parquet
  vcls classify my-classifier test.csv -o out.csv --label-field label --report report.html
  vcls classify my-classifier reviews.jsonl -o classified.jsonl --overwrite --max-errors 100
  vcls classify my-tagger news.jsonl -o names.jsonl --aggregation first
  echo '{"text": "Well done!"}' | vcls classify my-classifier -
  vcls classify my-nli-model reviews.jsonl -o out.jsonl --candidate-labels 'praise,complaint'
  vcls classify my-vision-classifier photos.parquet -o classified.jsonl --image-field image
  vcls classify my-classifier reviews.parquet -o classified.parquet --engine ray --num-workers 8
  vcls classify --server http://127.0.0.1:8000 reviews.jsonl -o classified.jsonl

\b
Each row of the output has the kept fields of its input, then
  label, score, probs    one label (score is its probability; probs in the order of the labels' indices)
  labels, probs          several labels: those with at least --threshold
  value                  regression
  NAME_label, NAME_score …   of several heads, those of the other ones
  spans                  token classifiers: a list of label, score, start, end (characters) and word
  steps                  process reward models: a list of score (of a good step) and probs
and truncated, where the text was cut, and error, where the row failed. A model with one label has no
label, and score is its probability. Where a model's config names an activation that gives no
probabilities, such as the identity of a cross-encoder, score is null, and there are logits. A kept field
that has the name of a column of the results, such as "label", is kept as "input_label".

\b
INPUT is .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt (a line a text), the texts also as .gz or .zst, a
folder of .parquet files, a glob, a URL such as s3://bucket/key, or - for JSON lines on standard input. Blank
lines are no rows, but a blank line of .txt keeps its place. In CSV, lists and maps are JSON text. In .txt, a
row of OUT is its label, empty where it failed.

\b
With -o, a job that ended early goes on with the same command; other inputs, options or models are refused.

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some rows failed, 130 interrupted.
"""


@click.command(epilog=EPILOG)
@files_of_a_job("no_template", "image_field", "video_field", *MEDIA)
@click.option("--text-field", default="text", metavar="NAME", show_default=True, help="The field of the text.")
@click.option("--text-pair-field", metavar="NAME", help="The field of a second text.")
@click.option("--messages-field", metavar="NAME", help="The field of chat messages, in place of a text.")
@click.option(
    "--image-field", metavar="NAME", help="The field of images: paths, URLs, bytes, base64 or a list of them."
)
@click.option("--video-field", metavar="NAME", help="The field of videos, likewise.")
@click.option("--keep-fields", type=NameListParam(), default="all", show_default=True, help="all, none or names.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="Probability of a label among several.")
@click.option("--top-k", type=int, metavar="N", help="Add the N most probable labels with their probabilities.")
@click.option("--scores", is_flag=True, help="Add a map from label to probability.")
@click.option("--logits", is_flag=True, help="Add the logits.")
@click.option("--no-activation", is_flag=True, help="Logits in place of probabilities.")
@click.option("--label-field", metavar="NAME", help="The field of the true label: print accuracy and the like.")
@click.option("--report", metavar="FILE", help="With --label-field: an HTML file with pictures and the worst mistakes.")
@click.option("--head-name", metavar="NAME", help="Of several heads, the one with the plain columns; else the first.")
@click.option(
    "--aggregation", type=click.Choice(AGGREGATIONS),
    help="Of a token classifier: how tokens become spans, as in transformers' pipeline; else simple.",
)  # fmt: skip
@click.option(
    "--long-text", type=click.Choice(["truncate", "error"]), default="truncate", show_default=True,
    help="What happens to a text that is too long.",
)  # fmt: skip
@click.option("--truncation-side", type=click.Choice(["left", "right"]), help="The side that is cut off.")
@click.option(
    "--candidate-labels",
    type=NameListParam(),
    help="In place of the labels of MODEL, one of natural language inference.",
)
@click.option("--hypothesis-template", metavar="TEXT", help="What is said of a text; else 'This example is {}.'")
@click.option("--multi-label", is_flag=True, help="Each candidate label is true or not, whatever the others are.")
@click.option("--no-template", is_flag=True, help="Leave out the prompt template that the model stores.")
@media_options
@running_options
@pass_state
def classify(state: State, /, model: Any, inputs: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Classify the rows of files.

    MODEL is a folder, a hub id or a .gguf file; with --server it is left out, and the server's model classifies.
    Rows keep their order and stream out; a bad row keeps its place.
    """
    configure_output(state)
    from vllm_cls.jobs.classify import classify_file

    stats = options.pop("stats")
    use_activation = False if options.pop("no_activation") else None
    if options.pop("no_template", False):
        options["use_template"] = False
    with progress(options.pop("progress"), state.quiet) as on_progress:
        report = classify_file(model, inputs, output, use_activation=use_activation, on_progress=on_progress, **options)
    show_report(report, state.quiet, stats)
