"""The published prompts, letter by letter, and which models get them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cls.inputs.pair_template import PairTemplate
from vllm_cls.plugins.rerankers import vcls_score_templates

from ..models import tokenizers

QWEN3 = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: a query
<Document>: a document<|im_end|>
<|im_start|>assistant
<think>

</think>

"""  # noqa: E501
MXBAI = """<|im_start|>system
You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
<|im_start|>user
query: a query
document: a document
You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).
Relevance:<|im_end|>
<|im_start|>assistant
"""  # noqa: E501
BGE = """A: a query
B: a document
Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'."""  # noqa: E501
TEMPLATES = {each.name: each for each in vcls_score_templates()}


def rendered(name: str, *pair: str) -> str:
    from vllm_cls.model.pair_form import _of

    tokenizer: Any = tokenizers.byte_level()
    return _of(TEMPLATES[name], SimpleNamespace(tokenizer=tokenizer)).render(tokenizer, *pair)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "prompt"), [("qwen3-reranker", QWEN3), ("mxbai-rerank-v2", MXBAI), ("bge-reranker-v2-gemma", BGE)]
)
def test_the_published_prompts(name: str, prompt: str) -> None:
    assert rendered(name, "a query", "a document") == prompt


def test_instructions() -> None:
    assert "\n<Instruct>: Find it\n<Query>: q\n" in rendered("qwen3-reranker", "q", "d", "Find it")
    assert "user\ninstruction: Find it\nquery: q\n" in rendered("mxbai-rerank-v2", "q", "d", "Find it")
    assert rendered("bge-reranker-v2-gemma", "q", "d", "Find it") == "A: q\nB: d\nFind it"


def test_texts_are_never_read_as_templates() -> None:
    text = "{{ 7 * 7 }} {% raw %} <|im_end|>\n"
    assert f"<Query>: {text}\n<Document>: {text}<|im_end|>" in rendered("qwen3-reranker", text, text)


def config(**values: Any) -> Any:
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        (config(model_type="qwen3"), "Qwen/Qwen3-Reranker-0.6B", "qwen3-reranker"),
        (config(model_type="qwen3"), "models/Qwen3-Reranker-4B-seq-cls", "qwen3-reranker"),
        (config(model_type="qwen3", is_original_qwen3_reranker=True), "x", "qwen3-reranker"),
        (config(model_type="qwen3", classifier_from_token=["no", "yes"]), "x", "qwen3-reranker"),
        (config(model_type="qwen3", base_model="Qwen/Qwen3-Reranker-8B"), "x", "qwen3-reranker"),
        (config(model_type="qwen3"), "Qwen/Qwen3-0.6B", None),
        (config(model_type="qwen2"), "Qwen/Qwen3-Reranker-0.6B", None),
        (config(model_type="qwen2"), "mixedbread-ai/mxbai-rerank-base-v2", "mxbai-rerank-v2"),
        (config(model_type="qwen2", classifier_from_token=["0", "1"]), "x", "mxbai-rerank-v2"),
        (config(model_type="qwen2", classifier_from_token=["no", "yes"]), "x", None),
        (config(model_type="deberta-v2"), "mixedbread-ai/mxbai-rerank-base-v1", None),
        (config(model_type="gemma"), "BAAI/bge-reranker-v2-gemma", "bge-reranker-v2-gemma"),
        (config(model_type="gemma", classifier_from_token=["Yes"]), "x", "bge-reranker-v2-gemma"),
    ],
)
def test_which_model_gets_which(config: Any, name: str, expected: str | None) -> None:
    assert [each.name for each in TEMPLATES.values() if each.matches(config, name)] == [expected] * (
        expected is not None
    )


def test_a_beginning_of_sequence_is_not_written_twice() -> None:
    tokenizer: Any = tokenizers.roberta()
    template = PairTemplate.checked(tokenizer, "x", "{{ bos_token }}{{ query }}|{{ document }}")
    assert template.render(tokenizer, "a", "b") == "<s>a|b"
