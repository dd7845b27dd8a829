"""The model card (README.md) of a converted checkpoint: what it is, how its head was made, usage, limits."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .card_usage import UsageExample
from .markdown import code, fenced, line, table

_POOLING = {
    "ALL": "every token's state",
    "CLS": "the first token's state",
    "LAST": "the last token's state",
    "MEAN": "the mean of all tokens' states",
}
_PACKAGES = ("vllm-cls", "transformers", "torch")


def model_card(
    *,
    name: str,
    base_model: str,
    classifier_class: str,
    native: bool,
    own_code: bool,
    task: str,
    head_method: str,
    about_head: str,
    reads_lm_head: bool,
    description: str,
    report: Mapping[str, Any],
    labels: Sequence[str],
    heads: Sequence[str],
    problem_type: str | None,
    pooling: str,
    prompt_template: str | None,
    chat_template_prompt: bool,
    score_template: str | None,
    example: tuple[Any, ...],
    rendered: tuple[str, str | None, bool] | None,
    command: str | None,
) -> str:
    """A model card in Markdown, with the front matter that the model hub reads.

    Args:
        name: what the classifier is called (its folder).
        base_model: what the source was called; of a path only the last part is shown.
        native: whether plain transformers opens `classifier_class`.
        own_code: whether the checkpoint brings code of its own along.
        task: "classify", "token_classify", "score" (pairs of texts), "reward" (one number a text) or "steps" (of a text).
        head_method: the head's source ("tokens", "fit" …).
        about_head: a sentence on what such heads are, or "".
        reads_lm_head: whether it is made of the language model's output layer.
        description: how the head was made, a paragraph.
        report: measurements by name; mappings in it are shown with dotted names.
        heads: their names, the default one first; empty where they have none.
        prompt_template: stored in the checkpoint and put round each text, or None.
        chat_template_prompt: whether each text is put into the tokenizer's chat template.
        score_template: Jinja, by which pairs are written, or None.
        example: the arguments of one call.
        rendered: what the tokenizer gets for it: a text, a second one or None, whether it adds its special tokens; None
            where there is no tokenizer.
        command: that made it, or None.
    """
    base = _public(base_model)
    use = UsageExample(line(name), task, native, own_code, example, rendered, list(heads))
    templates = [prompt_template is not None, chat_template_prompt, score_template is not None]
    parts = [
        _front_matter(base, task, native),
        f"# {line(name)}",
        f"`{classifier_class}` made from {code(base)} with vllm-cls. {about_head}".rstrip(),
        _head(description, labels, problem_type, pooling, command, several=len(heads) > 1, steps=task == "steps"),
        _measurements(report),
        _prompt(prompt_template, chat_template_prompt, score_template),
        use.markdown(templated=any(templates)),
        _limits(report, reads_lm_head=reads_lm_head, templated=any(templates)),
        "## Versions\n\n" + ", ".join(f"{package} {_version(package)}" for package in _PACKAGES) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base: str, task: str, native: bool) -> str:
    # A JSON string is a YAML string too, but for characters that YAML has none of.
    base = "".join(character for character in base if character.isprintable())
    tag = {"token_classify": "token-classification", "score": "text-ranking"}.get(task, "text-classification")
    library = "transformers" if native else "vllm-cls"
    lines = [f"library_name: {library}", f"pipeline_tag: {tag}", "tags:", "- vllm-cls"]
    return "\n".join(["---", *lines, f"base_model: {json.dumps(base, ensure_ascii=False)}", "---"])


def _head(
    description: str,
    labels: Sequence[str],
    problem_type: str | None,
    pooling: str,
    command: str | None,
    *,
    several: bool,
    steps: bool,
) -> str:
    reads, of_which = ("They read", " of the first one") if several else ("It reads", "")
    state = f"{_POOLING.get(pooling, 'the pooled state')} (pooling {code(pooling)})"
    if steps:
        state = "the state of each token that ends a step"
    rows = [
        "## The heads" if several else "## The head",
        description.strip(),
        f"{reads} {state}; problem type{of_which}: {code(problem_type or 'not set')}.",
    ]
    if labels:
        rows.append(table(("index", "label"), [(str(index), code(label)) for index, label in enumerate(labels)]))
    if command:
        rows.append(f"Made with\n\n{fenced(command, 'bash')}")
    return "\n\n".join(row for row in rows if row)


def _measurements(report: Mapping[str, Any]) -> str:
    rows = [(line(name), _value(value)) for name, value in _flat(report)]
    return "## Measurements\n\n" + table(("measurement", "value"), rows) if rows else ""


def _prompt(template: str | None, chat_template: bool, score_template: str | None) -> str:
    """The section on templates, which vllm-cls applies by itself."""
    paragraphs = []
    if template is not None:
        paragraphs.append(
            "Each text is put into this template, which is stored in `config.json` and which vllm-cls applies by itself (the "
            f"line breaks shown are part of it):\n\n{fenced(template, 'text')}"
        )
    if chat_template:
        what = "Each text" if template is None else "The result"
        paragraphs.append(
            f"{what} is put into the tokenizer's chat template, as the user's message, up to where the answer begins; "
            "vllm-cls does this by itself."
        )
    if score_template is not None:
        paragraphs.append(
            "Each pair of a query and a document is written by this template (Jinja), which vllm-cls applies by itself:\n\n"
            + fenced(score_template, "text")
        )
    return "## Prompt\n\n" + "\n\n".join(paragraphs) if paragraphs else ""


def _limits(report: Mapping[str, Any], *, reads_lm_head: bool, templated: bool) -> str:
    limits = []
    if not report:
        limits.append("Nothing was measured when it was made: try it on labelled texts of your own first.")
    else:
        limits.append("The measurements hold for texts like those measured; others can be much worse.")
    if reads_lm_head:
        limits.append("Another wording of the prompt or of the labels can change its accuracy by tens of points.")
    if templated:
        limits.append("It was made for texts inside the template above; without it the answers are others.")
    limits.append("Texts that are longer than the model are cut or refused, as the program that runs it decides.")
    limits.append("It knows and repeats what the base model knows and repeats; the base model's licence applies.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _flat(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in report.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value)
    return line(str(value))


def _public(base_model: str) -> str:
    """A hub id unchanged; of a path only its last part, which reveals nothing of the machine."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base_model)
    return base_model if is_id else base_model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "model"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
