"""The table of `docs/coverage.md`, from the rows of `results/coverage.json`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .refused import NEEDS

_TITLES = {
    "causal": "Causal language models",
    "classifier": "Sequence classifiers of transformers",
    "base": "Base models that take texts",
}
_OPENS = {"transformers": "opens in plain transformers", "vcls": "opens after `import vllm_cls`"}
_NOT = {
    "fails": "Fails here, though transformers runs it:",
    "cannot": "What transformers itself does not build from a small config, or not run on texts alone, with its own error:",
}
_INTRODUCTION = """# Which architectures become classifiers

Every entry of transformers' mappings of causal language models, sequence classifiers and base models for texts, tried:
built with a small config and random weights, converted (`--head random --seed 0`; a classifier keeps its head), run in
the form that the equivalence check chose and in the slower ones, at lengths from 1 to 40 tokens that cross every window, and
opened again in transformers. Logits must agree within {tolerance} with transformers, a text at a time.

    python -m benchmarks.coverage.run

wrote this file and `benchmarks/results/coverage.json`, with transformers {transformers} and torch {torch}.

- **packed**: texts of different lengths share a row without padding; **padded**: padded on the right; **equal**: texts of
  equal lengths share a batch; **single**: one at a time. *Whole forward* means that the head is part of the model's own
  forward. The slower forms are taken where the faster ones change a result.
- **opens in**: plain transformers, or transformers after `import vllm_cls`.
"""


_REFUSED = """## What is refused, and what it would need

Every other model type of transformers. `vcls convert` and `LLM` refuse them by name before anything is read.
"""


def report(
    rows: Iterable[dict[str, Any]],
    refused: Mapping[str, list[str]],
    versions: dict[str, str],
    tolerance: float,
    images: Sequence[dict[str, Any]] = (),
) -> str:
    """The document.

    Args:
        rows: one a mapping and model type.
        refused: what the others would need → their model types.
        versions: of transformers and torch.
        tolerance: between logits.
        images: one row a model for images and texts.
    """
    listed = list(rows)
    parts = [_INTRODUCTION.format(tolerance=f"{tolerance:g}", **versions), _counts(listed)]
    parts += [_section(title, [row for row in listed if row["mapping"] == name]) for name, title in _TITLES.items()]
    if images:
        summary = _images_summary(images, tolerance)
        parts.append(f"## Models for images\n\n{summary} [coverage-images.md](coverage-images.md) names them.\n")
    parts += [_REFUSED, *(f"{_listed(need, names)}\n" for need, names in refused.items())]
    return "\n".join(parts)


def _listed(title: str, names: list[str]) -> str:
    return f"{title[0].upper()}{title[1:]} ({len(names)}):\n\n" + textwrap.fill(
        ", ".join(names) + ".", 118, break_on_hyphens=False
    )


def _counts(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | entries | exact | packed | padded | equal | single | fails | transformers cannot | largest error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in _TITLES.items():
        here = [row for row in rows if row["mapping"] == name]
        status = Counter(row["status"] for row in here)
        exact = [row for row in here if row["status"] == "exact"]
        forms = Counter(row["form"].rpartition(" ")[2] for row in exact)
        counts = [len(here), len(exact), *(forms[form] for form in ("packed", "padded", "equal", "single"))]
        counts += [status["fails"], status["cannot"]]
        error = max((max(row["errors"].values()) for row in exact), default=0.0)
        lines.append(f"| {title} | " + " | ".join(map(str, counts)) + f" | {error:.0e} |")
    return "\n".join(lines) + "\n"


def _section(title: str, rows: list[dict[str, Any]]) -> str:
    """What is packed as a list of names, the rest as tables that say why."""
    exact = [row for row in rows if row["status"] == "exact"]
    packed = [row for row in exact if row["form"] == "packed"]
    parts = [f"## {title}"]
    for opens_in, words in _OPENS.items():
        names = [row["model_type"] for row in packed if row["opens_in"] == opens_in]
        if names:
            parts.append(_listed(f"packed, {words}", names))
    others = [row for row in exact if row["form"] != "packed"]
    if others:
        lines = ["| model type | runs | opens in | why not packed |", "| --- | --- | --- | --- |"]
        cells = [(row["model_type"], row["form"], row["opens_in"], _cell(row["reason"])) for row in others]
        parts.append("\n".join(lines + [f"| {' | '.join(each)} |" for each in cells]))
    for status, words in _NOT.items():
        listed = "\n".join(
            f"- {row['model_type']}: {_cell(row['why'])}{_need(row)}" for row in rows if row["status"] == status
        )
        parts += [words, listed] if listed else []
    return "\n\n".join(parts) + "\n"


def _images_summary(rows: Sequence[dict[str, Any]], tolerance: float) -> str:
    exact = [row for row in rows if row["status"] == "exact"]
    return _IMAGES.format(
        tolerance=f"{tolerance:g}",
        entries=len(rows),
        exact=len(exact),
        packed=sum(row["form"] == "packed" for row in exact),
        shares=sum(row["shares"] for row in exact),
        error=f"{max((row['error'] for row in exact), default=0.0):.0e}",
    )


def images_page(rows: Sequence[dict[str, Any]], tolerance: float) -> str:
    """Models that read images: how prompts with them run, the whole document.

    Args:
        rows: one a model.
        tolerance: between logits.
    """
    exact = [row for row in rows if row["status"] == "exact"]
    forms = {form: [row["model_type"] for row in exact if row["form"] == form] for form in _FORMS}
    parts = [
        "# Models for images, on prompts with images",
        _images_summary(rows, tolerance),
        "    python -m benchmarks.coverage.images_run\n\nwrote this file and `benchmarks/results/coverage_images.json`.",
        "The towers of fast_vlm and perception_lm are of transformers here, a ResNet and a CLIP: timm's are not installed.",
    ]
    parts += [_listed(words, forms[form]) for form, words in _FORMS.items() if forms[form]]
    for status, words in _NOT_WITH_IMAGES.items():
        listed = "\n".join(
            f"- {row['model_type']}: {_cell(row['why'], 400)}" for row in rows if row["status"] == status
        )
        parts += [words, listed] if listed else []
    return "\n\n".join(parts) + "\n"


_FORMS = {
    "packed": "packed, with texts in the same row",
    "padded": "padded, prompts with images in batches of their own",
    "single": "one at a time",
    "pixels": "one at a time, the tower within the model's forward",
}
_NOT_WITH_IMAGES = {
    "refused": "Refused by name, when they are converted, opened or get the first image, with these words:",
    "fails": "Different here, though transformers runs them:",
    "cannot": "What transformers does not build so small, or whose images this does not make, with its own error:",
}
_IMAGES = """transformers' mapping of models from images and texts to texts has {entries} entries. {exact} of them were built
small, converted, and run in one call on prompts with one image, with two, with one at the end and with none; logits agree
within {tolerance} with the state of transformers' own model below its output layer, and the head (largest error
{error}). {packed} share rows with texts, {shares} go on from the keys and values of an image that several prompts begin with."""


def _need(row: dict[str, Any]) -> str:
    need = NEEDS.get(row["model_type"]) if row["status"] == "cannot" else None
    return f". *It would need {need}.*" if need else ""


def _cell(text: str, longest: int = 200) -> str:
    return text.replace("|", "/").replace("<", "&lt;")[:longest]
