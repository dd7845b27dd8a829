"""A fixed sample of `python -m benchmarks.coverage.run`: each architecture converts, is exact in every form and reopens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.coverage.case import run_case
from benchmarks.coverage.images import run_case as run_image_case
from benchmarks.coverage.refused import NEEDS, refused_types
from benchmarks.coverage.run import DOCS, RESULTS

# How each runs is a part of the claim: an architecture that stops packing fails here.
SAMPLE = {
    "packed": """
        llama qwen2 qwen3 mistral gemma gemma2 gemma3_text phi phi3 opt mixtral qwen2_moe gpt2 olmo olmo2 cohere
        starcoder2 granite stablelm smollm3 glm4 exaone4 ministral whisper gpt_neox gpt_oss bart marian
    """.split(),
    "padded": """
        bloom mpt falcon gptj codegen mamba falcon_mamba jamba recurrent_gemma rwkv bamba zamba2 trocr
        falcon_h1 blt inkling2_text
    """.split(),
}
CLASSIFIERS = {
    "packed": "bert roberta modernbert electra distilbert bart mbart t5gemma eurobert layoutlm xmod mistral4".split(),
    "padded": "t5 deberta deberta-v2 mpnet xlnet".split(),
    "whole forward, padded": "longformer perceiver".split(),
    "whole forward, equal": "funnel canine".split(),
}
CASES = [("causal", form, name) for form, names in SAMPLE.items() for name in names]
CASES += [("classifier", form, name) for form, names in CLASSIFIERS.items() for name in names]


@pytest.mark.parametrize(("mapping", "form", "model_type"), CASES, ids=[f"{one[0]}-{one[2]}" for one in CASES])
def test_a_sample_of_the_architectures(mapping: str, form: str, model_type: str, tmp_path: Path) -> None:
    row = run_case(mapping, model_type, tmp_path)
    assert row.status == "exact", row.why
    assert row.form == form, row.reason


def test_the_sample_is_large() -> None:
    assert len({name for _, _, name in CASES}) >= 40


def test_the_page_says_what_each_refused_class_would_need() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert {row["model_type"] for row in rows if row["status"] == "cannot"} == set(NEEDS)
    page = DOCS.read_text()
    for need in NEEDS.values():
        assert f"*It would need {need}.*" in page
    refused = refused_types(but={row["model_type"] for row in rows})
    assert {"vit", "whisper", "clip", "timesfm"} - {row["model_type"] for row in rows} <= {
        name for names in refused.values() for name in names
    }
    listed = set(re.findall(r"[\w.-]+", page.partition("## What is refused")[2].replace(".\n", "\n")))
    for need, names in refused.items():
        assert f"{need[0].upper()}{need[1:]} (" in page
        assert set(names) <= listed


WITH_IMAGES = {
    "qwen2_vl": "packed", "qwen3_vl": "packed", "llava_next": "packed", "internvl": "packed", "mistral3": "packed",
    "gemma4": "packed", "idefics2": "packed", "qwen3_5": "padded", "paligemma": "single",
}  # fmt: skip


@pytest.mark.parametrize("model_type", WITH_IMAGES)
def test_a_sample_of_the_models_for_images(model_type: str, tmp_path: Path) -> None:
    row = run_image_case(model_type, tmp_path)
    assert row.status == "exact", row.why
    assert row.form == WITH_IMAGES[model_type]
    assert row.pooling == "LAST"
