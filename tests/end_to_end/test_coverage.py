"""A fixed sample of `python -m benchmarks.coverage.run`: each architecture converts, is exact in every form and reopens."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import vllm_cls
from benchmarks.coverage.case import run_case
from benchmarks.coverage.images import MAPPING
from benchmarks.coverage.images import run_case as run_image_case
from benchmarks.coverage.refused import NEEDS, refused_types
from benchmarks.coverage.run import DOCS, IMAGES, RESULTS
from benchmarks.coverage.small_configs import small_config
from vllm_cls import LLM
from vllm_cls.errors import ModelError

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
    "llama4": "packed",  # transformers has a whole generator for its base model, and features before its projector
    "shieldgemma2": "packed",  # its model is that of another family
    "emu3": "packed",  # its tower is an image tokenizer with attention
    "qwen3_omni_moe_thinker": "padded",  # experts whose names the generator's class alone explains
    "minicpmv4_6": "padded",  # patches of all images side by side
    "molmo2": "padded",  # places among the patches of all images
}  # fmt: skip


@pytest.mark.parametrize("model_type", WITH_IMAGES)
def test_a_sample_of_the_models_for_images(model_type: str, tmp_path: Path) -> None:
    row = run_image_case(model_type, tmp_path)
    assert row.status == "exact", row.why
    assert row.form == WITH_IMAGES[model_type]
    assert row.pooling == "LAST"


@pytest.mark.parametrize("model_type", ["git", "mllama"])
def test_images_that_do_not_take_the_place_of_tokens_are_refused(model_type: str, tmp_path: Path) -> None:
    config = small_config(model_type)
    MAPPING[type(config)](config).save_pretrained(tmp_path / "source")
    vllm_cls.convert(str(tmp_path / "source"), tmp_path / "out", head="random", num_labels=3, seed=0)
    prompt = {"prompt_token_ids": [20, 21, 22], "multi_modal_data": {"image": np.zeros((8, 8, 3), np.uint8)}}
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        with pytest.raises(ModelError, match="no features of images that take the place of tokens"):
            llm.classify(prompt)
        assert len(llm.classify([prompt["prompt_token_ids"]])) == 1


def test_the_count_of_models_for_images() -> None:
    rows = json.loads(IMAGES.read_text())
    status = Counter(row["status"] for row in rows)
    assert len(rows) == 97 and status["exact"] >= 75 and status["exact"] + status["refused"] == 97
    assert sum(row["form"] == "packed" for row in rows if row["status"] == "exact") >= 43
    assert all(row["why"] for row in rows if row["status"] == "refused")
