"""`vcls score`."""

from __future__ import annotations

from typing import Any

import click

from ..job import files_of_a_job, show_report
from ..options import NameListParam, State, Template, configure_output, pass_state, running_options
from ..progress import progress

EPILOG = """\b
Examples:
  vcls score my-reranker pairs.jsonl -o scored.jsonl
  vcls score my-reranker pairs.csv -o scored.csv --text-field question --text-pair-field passage
  vcls score my-reranker pairs.jsonl --max-tokens-per-doc 256 --instruction 'Find the answer'
  vcls score --server http://127.0.0.1:8000 pairs.jsonl -o scored.jsonl
  echo '{"query": "who?", "document": "Harper Lee"}' | vcls score my-reranker -

\b
Each row of the output has the kept fields of its input, then score, and truncated, where a text was cut,
and error, where the row failed. The model has one label. How the two texts become one prompt is shown by
`vcls inspect` as score template; a causal reranker for which none is known is refused until you give one:
  qwen3-reranker, mxbai-rerank-v2, bge-reranker-v2-gemma    the published prompts of these models
  'Query: {{ query }} Document: {{ document }} Relevant:'   Jinja; also {{ instruction }}, messages
  concat                                                    the texts one behind the other
  pair                                                      the tokenizer's own pair

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some rows failed, 130 interrupted.
"""


@click.command(epilog=EPILOG)
@files_of_a_job("score_template")
@click.option("--text-field", default="query", metavar="NAME", show_default=True, help="The field of the query.")
@click.option(
    "--text-pair-field", default="document", metavar="NAME", show_default=True, help="The field of the document."
)
@click.option("--keep-fields", type=NameListParam(), default="all", show_default=True, help="all, none or names.")
@click.option("--score-template", type=Template(), metavar="TEXT", help="How the pairs are written: see below.")
@click.option("--instruction", type=Template(), metavar="TEXT", help="For the template's place of that name.")
@click.option("--max-tokens-per-query", type=int, metavar="N", help="Keep this many tokens of each query.")
@click.option("--max-tokens-per-doc", type=int, metavar="N", help="Keep this many tokens of each document.")
@click.option("--head-name", metavar="NAME", help="Of several heads, the one that scores; else the first.")
@click.option("--no-activation", is_flag=True, help="Logits in place of probabilities.")
@click.option(
    "--long-text", type=click.Choice(["truncate", "error"]), default="truncate", show_default=True,
    help="What happens to a pair that is too long; a template is never cut, but the document.",
)  # fmt: skip
@click.option("--truncation-side", type=click.Choice(["left", "right"]), help="The side that is cut off.")
@running_options
@pass_state
def score(state: State, /, model: Any, inputs: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Score the pairs of texts in the rows of files.

    How well a document answers a query. MODEL is a folder, a hub id or a .gguf file with one label; with --server it
    is left out, and the server's model scores. Rows keep their order and stream out.
    """
    configure_output(state)
    from vllm_cls.jobs.score import score_file

    stats = options.pop("stats")
    use_activation = False if options.pop("no_activation") else None
    with progress(options.pop("progress"), state.quiet) as on_progress:
        report = score_file(model, inputs, output, use_activation=use_activation, on_progress=on_progress, **options)
    show_report(report, state.quiet, stats)
