"""The README.md of a converted checkpoint: what it is, how its head was made, how to run it, where it ends."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_POOLING = {"ALL": "every token", "CLS": "the first token", "LAST": "the last token", "MEAN": "the mean of all tokens"}
_PACKAGES = ("vllm-cls", "transformers", "torch")


def model_card(
    *,
    name: str,
    base_model: str,
    classifier_class: str,
    native: bool,
    head_method: str,
    about_head: str,
    reads_lm_head: bool,
    description: str,
    report: Mapping[str, Any],
    labels: Sequence[str],
    problem_type: str | None,
    pooling: str,
    prompt_template: str | None,
    command: str | None,
) -> str:
    """A model card in Markdown, with the front matter that the model hub reads.

    Args:
        name: what the classifier is called (its folder).
        base_model: what the source was called; of a path only the last part is shown.
        native: whether plain transformers opens `classifier_class`.
        head_method: the head's source ("tokens", "fit" …).
        about_head: a sentence on what such heads are, or "".
        reads_lm_head: whether it is made of the language model's output layer.
        description: how the head was made, a paragraph.
        report: measurements by name; mappings in it are shown with dotted names.
        prompt_template: stored in the checkpoint and put round each text, or None.
        command: that made it, or None.
    """
    base = _public(base_model)
    tokens = classifier_class.endswith("ForTokenClassification")
    parts = [
        _front_matter(base, tokens),
        f"# {_line(name)}",
        f"`{classifier_class}` made from {_code(base)} with vllm-cls. {about_head}".rstrip(),
        _head(description, labels, problem_type, pooling, command),
        _measurements(report),
        _template(prompt_template),
        _running(_line(name), tokens=tokens, native=native, template=prompt_template),
        _limits(report, reads_lm_head=reads_lm_head, template=prompt_template),
        "## Versions\n\n" + ", ".join(f"{package} {_version(package)}" for package in _PACKAGES) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base: str, tokens: bool) -> str:
    # A JSON string is a YAML string too, but for characters that YAML has none of.
    base = "".join(character for character in base if character.isprintable())
    kind = "token" if tokens else "text"
    lines = ["library_name: transformers", f"pipeline_tag: {kind}-classification", "tags:", "- vllm-cls"]
    return "\n".join(["---", *lines, f"base_model: {json.dumps(base, ensure_ascii=False)}", "---"])


def _head(description: str, labels: Sequence[str], problem_type: str | None, pooling: str, command: str | None) -> str:
    rows = [
        "## The head",
        description.strip(),
        f"It reads the state of {_POOLING.get(pooling, pooling)} (pooling {_code(pooling)}); problem type: "
        f"{_code(problem_type or 'not set')}.",
    ]
    if labels:
        rows.append(_table(("index", "label"), [(str(index), _code(label)) for index, label in enumerate(labels)]))
    if command:
        rows.append(f"Made with\n\n{_fenced(command, 'bash')}")
    return "\n\n".join(row for row in rows if row)


def _measurements(report: Mapping[str, Any]) -> str:
    rows = [(_line(name), _value(value)) for name, value in _flat(report)]
    return "## Measurements\n\n" + _table(("measurement", "value"), rows) if rows else ""


def _template(template: str | None) -> str:
    if template is None:
        return ""
    return (
        "## Prompt\n\nEach text is put into this template, which is stored in `config.json` and which vllm-cls applies "
        f"by itself (the line breaks shown are part of it):\n\n{_fenced(template, 'text')}"
    )


def _running(name: str, *, tokens: bool, native: bool, template: str | None) -> str:
    call, result = ("token_classify", "spans") if tokens else ("classify", "probs")
    ours = f'from vllm_cls import LLM\n\n(output,) = LLM({name!r}).{call}("your text")\nprint(output.outputs.{result})'
    how = "With plain transformers" if native else "With transformers, after `import vllm_cls`"
    if template is not None:
        how += " and does not apply the template by itself"
    return "\n\n".join(
        [
            "## How to run it",
            _fenced(f"vcls classify {name} texts.jsonl -o labels.jsonl", "bash"),
            _fenced(ours, "python"),
            f"{how}, one text at a time:",
            _fenced(_with_transformers(name, tokens=tokens, native=native, template=template), "python"),
        ]
    )


def _with_transformers(name: str, *, tokens: bool, native: bool, template: str | None) -> str:
    auto = "AutoModelForTokenClassification" if tokens else "AutoModelForSequenceClassification"
    text = '"your text"'
    if template is not None and "{text}" in template:
        text = f'{template!r}.replace("{{text}}", "your text")'
    lines = [
        *([] if native else ["import vllm_cls"]),
        "import torch",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
        f"model = {auto}.from_pretrained({name!r})",
        f'inputs = tokenizer({text}, return_tensors="pt")',
        "with torch.inference_mode():",
        "    logits = model(**inputs).logits",
    ]
    return "\n".join(lines)


def _limits(report: Mapping[str, Any], *, reads_lm_head: bool, template: str | None) -> str:
    limits = []
    if not report:
        limits.append("Nothing was measured when it was made: try it on labelled texts of your own first.")
    else:
        limits.append("The measurements hold for texts like those measured; others can be much worse.")
    if reads_lm_head:
        limits.append("Another wording of the prompt or of the labels can change its accuracy by tens of points.")
    if template is not None:
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
    return _line(str(value))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    """Inline code, whatever the text holds."""
    text = _line(text)
    ticks = "`" * (_longest_ticks(text) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{room}{text}{room}{ticks}" if text else "(empty)"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _line(text: str) -> str:
    return " ".join(str(text).split())


def _public(base_model: str) -> str:
    """A hub id as it is; of a path only its last part, which says nothing of the machine."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base_model)
    return base_model if is_id else base_model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "model"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
