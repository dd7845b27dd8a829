"""The prompts that published causal rerankers were trained with, word for word as their model cards have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_cls.architecture import ScoreTemplate
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
_QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {{ instruction }}\n<Query>: {{ query }}\n<Document>: {{ document }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# https://github.com/mixedbread-ai/mxbai-rerank (mxbai_rerank_v2.py), of mxbai-rerank-base-v2 and -large-v2; vLLM's too
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{{ 'instruction: ' + instruction + '\n' if instruction else '' }}query: {{ query }}\n"
    "document: {{ document }}\nYou are a search relevance expert who evaluates how well documents match search queries. "
    "For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
    "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)

# https://huggingface.co/BAAI/bge-reranker-v2-gemma; the tokenizer puts <bos> before it
_BGE_GEMMA = "A: {{ query }}\nB: {{ document }}\n{{ instruction }}"
_BGE_GEMMA_INSTRUCTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


class _Presents:
    """Matches a model by its type, and by its name or the tokens of its score.

    Args:
        model_type: of its config.
        words: all in its name, whatever their case.
        tokens: `classifier_from_token`, as vLLM's documentation gives them for it.
    """

    def __init__(self, model_type: str, words: tuple[str, ...], tokens: tuple[str, ...]) -> None:
        self.model_type, self.words, self.tokens = model_type, words, list(tokens)

    def __call__(self, config: PreTrainedConfig, name: str) -> bool:
        if config.model_type != self.model_type:
            return False
        names = [name, str(getattr(config, "base_model", "")), str(getattr(config, "_name_or_path", ""))]
        tokens = getattr(config, "classifier_from_token", None)
        return any(all(word in each.lower() for word in self.words) for each in names) or tokens == self.tokens


class _Qwen3(_Presents):
    def __call__(self, config: PreTrainedConfig, name: str) -> bool:
        ours = config.model_type == self.model_type and getattr(config, "is_original_qwen3_reranker", False)
        return bool(ours) or super().__call__(config, name)


@hookimpl(trylast=True)
def vcls_score_templates() -> list[ScoreTemplate]:
    return [
        ScoreTemplate(
            "qwen3-reranker", _QWEN3, _QWEN3_INSTRUCTION, _Qwen3("qwen3", ("qwen3-reranker",), ("no", "yes"))
        ),
        ScoreTemplate("mxbai-rerank-v2", _MXBAI, None, _Presents("qwen2", ("mxbai-rerank", "v2"), ("0", "1"))),
        ScoreTemplate(
            "bge-reranker-v2-gemma",
            _BGE_GEMMA,
            _BGE_GEMMA_INSTRUCTION,
            _Presents("gemma", ("bge-reranker-v2-gemma",), ("Yes",)),
        ),
    ]
