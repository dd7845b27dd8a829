"""Encoders for which transformers has a classifier class: one entry each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_cls.adapters import Encoder
from vllm_cls.hookspecs import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def encoder(
    name: str,
    *model_types: str,
    final_linear: str = "classifier",
    tanh_dense: str | None = None,
    offset_positions: bool = False,
) -> Encoder:
    """An encoder that differs in these values only; see `Encoder` for their meaning."""
    architecture = Encoder()
    architecture.name = name
    architecture.model_types = model_types or (name,)
    architecture.final_linear = final_linear
    architecture.tanh_dense = tanh_dense
    architecture.offset_positions = offset_positions
    return architecture


def roberta_like(name: str, *model_types: str, tanh: bool = True) -> Encoder:
    """RoBERTa's head (dense, tanh, out_proj) and positions."""
    return encoder(
        name,
        *model_types,
        final_linear="classifier.out_proj",
        tanh_dense="classifier.dense" if tanh else None,
        offset_positions=True,
    )


class ModernBert(Encoder):
    """The config says whether the first token or the mean is pooled."""

    name = "modernbert"
    model_types = ("modernbert",)

    def pooling(self, config: PreTrainedConfig) -> str:
        return "MEAN" if config.classifier_pooling == "mean" else "CLS"


class XLNet(Encoder):
    """Permutation language model: the last token is pooled."""

    name = "xlnet"
    model_types = ("xlnet",)
    final_linear = "logits_proj"
    tanh_dense = "sequence_summary.summary"

    def pooling(self, config: PreTrainedConfig) -> str:
        return {"last": "LAST", "first": "CLS", "mean": "MEAN"}.get(config.summary_type, "LAST")

    def max_positions(self, config: PreTrainedConfig) -> None:
        return None  # relative positions

    def takes_token_type_ids(self, config: PreTrainedConfig) -> bool:
        return True


class Funnel(Encoder):
    """Its blocks halve the sequence, so there is no state for every token."""

    name = "funnel"
    model_types = ("funnel",)
    final_linear = "classifier.linear_out"

    def min_tokens(self, config: PreTrainedConfig) -> int:
        return 5


@hookimpl
def vcls_architectures() -> list[Encoder]:
    return [
        encoder("bert", tanh_dense="bert.pooler.dense"),
        encoder("megatron-bert", tanh_dense="bert.pooler.dense"),
        encoder("roc_bert", tanh_dense="roc_bert.pooler.dense"),
        encoder("albert", tanh_dense="albert.pooler"),
        encoder("rembert", tanh_dense="rembert.pooler.dense"),
        encoder("distilbert"),
        encoder("electra", final_linear="classifier.out_proj"),
        encoder("deberta"),
        encoder("deberta-v2"),
        encoder("mpnet", final_linear="classifier.out_proj", tanh_dense="classifier.dense", offset_positions=True),
        encoder("roformer", final_linear="classifier.out_proj"),
        encoder("convbert", final_linear="classifier.out_proj"),
        encoder("big_bird", final_linear="classifier.out_proj"),
        roberta_like("roberta"),
        roberta_like("xlm-roberta"),
        roberta_like("xlm-roberta-xl"),
        roberta_like("camembert"),
        roberta_like("data2vec-text"),
        roberta_like("roberta-prelayernorm"),
        roberta_like("esm"),
        roberta_like("xmod"),
        roberta_like("ibert"),
        roberta_like("lilt"),
        roberta_like("longformer"),
        encoder("layoutlmv3", final_linear="classifier.out_proj", offset_positions=True),
        encoder("luke", offset_positions=True),
        encoder("markuplm", offset_positions=True),
        Funnel(),
        ModernBert(),
        XLNet(),
    ]
