"""A converted checkpoint opens in its class with the source's values; nothing is invented, nothing lost."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from vllm_cls.adapters import as_seq_cls_model
from vllm_cls.adapters.classifiers.own_type import VclsForSequenceClassification
from vllm_cls.adapters.writer.checkpoint_writer import vcls_write_checkpoint
from vllm_cls.errors import ModelError

from .checkpoint_cases import (
    BERT,
    CLASSIFIER,
    GPT2,
    HIDDEN,
    LABELS,
    LLAMA,
    MIXTRAL,
    POOLER,
    QWEN2,
    QWEN2_5_VL,
    SCORE,
    SCORE_BIAS,
    T5,
    TIED,
    TINY,
    assert_opens,
    edit,
    make_plan,
    own,
    qwen_plan,
    rows,
    save,
    two_layers,
)


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source")


CASES = {
    "bert": (hf.BertModel, BERT, hf.BertForSequenceClassification, CLASSIFIER),
    "bert mlm": (hf.BertForMaskedLM, BERT, hf.BertForSequenceClassification, CLASSIFIER | POOLER),
    "bert pre-training": (hf.BertForPreTraining, BERT, hf.BertForSequenceClassification, CLASSIFIER),
    "roberta, without its pooler": (
        hf.RobertaModel, hf.RobertaConfig(**TINY), hf.RobertaForSequenceClassification, two_layers("classifier"),
    ),
    "ernie": (hf.ErnieForMaskedLM, hf.ErnieConfig(**TINY), hf.ErnieForSequenceClassification, CLASSIFIER | {
        name.replace("bert", "ernie"): tensor for name, tensor in POOLER.items()}),
    "gpt2 lm": (hf.GPT2LMHeadModel, GPT2, hf.GPT2ForSequenceClassification, SCORE),
    "gpt2": (hf.GPT2Model, GPT2, hf.GPT2ForSequenceClassification, SCORE),
    "qwen2 lm, untied": (hf.Qwen2ForCausalLM, QWEN2, hf.Qwen2ForSequenceClassification, SCORE),
    "qwen2 lm, tied": (hf.Qwen2ForCausalLM, TIED, hf.Qwen2ForSequenceClassification, SCORE),
    "qwen2": (hf.Qwen2Model, QWEN2, hf.Qwen2ForSequenceClassification, SCORE),
    "gpt-neox lm, whose head has another name on disk": (
        hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**TINY), hf.GPTNeoXForSequenceClassification, SCORE,
    ),
    "llama lm": (hf.LlamaForCausalLM, LLAMA, hf.LlamaForSequenceClassification, SCORE),
    "mixtral lm": (hf.MixtralForCausalLM, MIXTRAL, hf.MixtralForSequenceClassification, SCORE),
    "mixtral": (hf.MixtralModel, MIXTRAL, hf.MixtralForSequenceClassification, SCORE),
    "qwen2.5-vl": (hf.Qwen2_5_VLModel, QWEN2_5_VL, as_seq_cls_model(hf.Qwen2_5_VLModel), SCORE),
    "qwen2.5-vl lm": (hf.Qwen2_5_VLForConditionalGeneration, QWEN2_5_VL, as_seq_cls_model(hf.Qwen2_5_VLModel), SCORE),
    "own, bert": (hf.BertModel, BERT, VclsForSequenceClassification, SCORE_BIAS),
    "own, gpt2 lm": (hf.GPT2LMHeadModel, GPT2, VclsForSequenceClassification, SCORE_BIAS),
    "own, gpt2": (hf.GPT2Model, GPT2, VclsForSequenceClassification, SCORE_BIAS),
    "own, mixtral lm": (hf.MixtralForCausalLM, MIXTRAL, VclsForSequenceClassification, SCORE_BIAS),
    "own, mixtral": (hf.MixtralModel, MIXTRAL, VclsForSequenceClassification, SCORE_BIAS),
    "own, qwen2.5-vl lm": (
        hf.Qwen2_5_VLForConditionalGeneration, QWEN2_5_VL, VclsForSequenceClassification, SCORE_BIAS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shard_size", ["5GB", "5KB"], ids=["single", "sharded"])
@pytest.mark.parametrize(("source_class", "config", "target", "head"), CASES.values(), ids=CASES.keys())
def test_the_result_opens_with_the_sources_values(
    tmp_path: Path, source_class: type, config: Any, target: type, head: dict, shard_size: str
) -> None:
    source = save(source_class, config, tmp_path / "source", max_shard_size=shard_size)
    aim = own(config) if target is VclsForSequenceClassification else None
    result = vcls_write_checkpoint(make_plan(source, target, head, config=aim))
    assert_opens(tmp_path / "out", target, source, source_class, head)
    if shard_size == "5GB":
        assert "model.safetensors" in result.files and not any(name.endswith(".index.json") for name in result.files)
    else:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        written = {name: load_file(tmp_path / "out" / name) for name in set(index["weight_map"].values())}
        assert {name: file for file, tensors in written.items() for name in tensors} == index["weight_map"]
        sizes = [tensor.nbytes for tensors in written.values() for tensor in tensors.values()]
        assert index["metadata"]["total_size"] == sum(sizes)


def test_an_encoder_decoder_keeps_its_shared_embeddings(tmp_path: Path) -> None:
    source = save(hf.T5ForConditionalGeneration, T5, tmp_path / "source")
    head = two_layers("classification_head")
    vcls_write_checkpoint(make_plan(source, hf.T5ForSequenceClassification, head))
    model, info = hf.T5ForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    before = hf.T5ForConditionalGeneration.from_pretrained(source).state_dict()
    for name, tensor in model.transformer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_head_that_is_there_is_kept_and_nothing_else_changes(tmp_path: Path) -> None:
    source = save(hf.BertForSequenceClassification, BERT, tmp_path / "source")
    result = vcls_write_checkpoint(make_plan(source, hf.BertForSequenceClassification, None, config=BERT))
    assert (result.dropped, result.renamed) == ([], 0)
    assert (source / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_new_head_replaces_the_old_one(tmp_path: Path) -> None:
    source = save(hf.BertForSequenceClassification, BERT, tmp_path / "source")
    result = vcls_write_checkpoint(make_plan(source, hf.BertForSequenceClassification, CLASSIFIER))
    assert result.dropped == ["classifier.bias", "classifier.weight"]
    assert_opens(
        tmp_path / "out", hf.BertForSequenceClassification, source, hf.BertForSequenceClassification, CLASSIFIER
    )


def test_our_own_checkpoint_converts_back_to_the_native_class(tmp_path: Path) -> None:
    source = save(hf.GPT2LMHeadModel, GPT2, tmp_path / "source")
    config = own(GPT2)
    config.vcls["head"] |= {"num_rows": 4, "combine": True}
    head = {"score.weight": rows(4, HIDDEN), "score.bias": rows(4), "combine.weight": rows(LABELS, 4)}
    vcls_write_checkpoint(make_plan(source, VclsForSequenceClassification, head, config=config))
    native = copy.deepcopy(GPT2)
    native.num_labels = LABELS
    plan = make_plan(tmp_path / "out", hf.GPT2ForSequenceClassification, SCORE, config=native, out=tmp_path / "back")
    result = vcls_write_checkpoint(plan)
    assert result.dropped == ["combine.weight", "score.bias", "score.weight"]
    assert_opens(tmp_path / "back", hf.GPT2ForSequenceClassification, source, hf.GPT2LMHeadModel, SCORE)


def test_names_of_a_base_model_get_the_prefix_that_other_readers_expect(tmp_path: Path) -> None:
    source = save(hf.Qwen2Model, QWEN2, tmp_path / "source")
    result = vcls_write_checkpoint(qwen_plan(source))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert set(after) == {f"model.{name}" for name in before} | {"score.weight"}
    assert (result.renamed, result.dropped) == (len(before), [])


@pytest.mark.parametrize("target", [hf.MixtralForSequenceClassification, VclsForSequenceClassification])
def test_names_on_disk_stay_where_transformers_joins_tensors_as_it_loads(tmp_path: Path, target: type) -> None:
    source = save(hf.MixtralForCausalLM, MIXTRAL, tmp_path / "source")
    head, config = (SCORE, None) if target is hf.MixtralForSequenceClassification else (SCORE_BIAS, own(MIXTRAL))
    result = vcls_write_checkpoint(make_plan(source, target, head, config=config))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in before
    assert set(after) == set(before) - {"lm_head.weight"} | set(head)
    assert result.renamed == 0 and result.dropped == ["lm_head.weight"]


def test_old_names_and_old_buffers(tmp_path: Path) -> None:
    def age(tensors: dict) -> dict:
        aged = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return aged | {"bert.embeddings.position_ids": torch.arange(32)[None]}

    source = save(hf.BertForPreTraining, BERT, tmp_path / "source")
    edit(source, age)
    result = vcls_write_checkpoint(make_plan(source, hf.BertForSequenceClassification, CLASSIFIER))
    assert "bert.embeddings.position_ids" in result.dropped
    assert_opens(tmp_path / "out", hf.BertForSequenceClassification, source, hf.BertForPreTraining, CLASSIFIER)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2s_old_mask_buffers_are_dropped_and_said_so(tmp_path: Path, prefix: str) -> None:
    source = save(hf.GPT2LMHeadModel if prefix else hf.GPT2Model, GPT2, tmp_path / "source")
    old = {f"{prefix}h.0.attn.bias": torch.ones(1, 1, 20, 20), f"{prefix}h.1.attn.masked_bias": torch.tensor(-1e4)}
    edit(source, lambda tensors: tensors | old)
    result = vcls_write_checkpoint(make_plan(source, hf.GPT2ForSequenceClassification, SCORE))
    assert result.dropped == sorted(old)


def test_a_head_of_another_class_of_the_family_is_dropped(tmp_path: Path) -> None:
    """bert-base-uncased names BertForMaskedLM and yet holds the head of BertForPreTraining."""
    source = save(hf.BertForPreTraining, BERT, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    result = vcls_write_checkpoint(make_plan(source, hf.BertForSequenceClassification, CLASSIFIER))
    assert "cls.seq_relationship.weight" in result.dropped


def drop(*names: str) -> Any:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def add(**tensors: torch.Tensor) -> Any:
    return lambda held: held | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


REFUSED = {
    "missing": (drop("model.norm.weight", "model.layers.1.mlp.up_proj.weight"), r"lacks model.layers.1.*norm.weight"),
    "shape": (add(model__norm__weight=torch.ones(5)), r"model.norm.weight \(5,\) instead of \(16,\)"),
    "part of the backbone": (add(model__layers__0__lora__weight=torch.ones(5)), r"no place for model.layers.0.lora"),
    "unknown part": (add(tower__weight=torch.ones(5)), r"no place for tower.weight"),
    "layer too many": (add(model__layers__2__mlp__up_proj__weight=torch.ones(5)), r"no place for model.layers.2"),
    "same twice": (add(norm__weight=torch.ones(16)), r"several names: .*norm.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_invented_or_lost_is_refused(qwen: Path, change: Any, message: str) -> None:
    edit(qwen, change)
    with pytest.raises(ModelError, match=message):
        vcls_write_checkpoint(qwen_plan(qwen))
    assert os.listdir(qwen.parent) == ["source"]


def test_many_missing_tensors_are_counted(qwen: Path) -> None:
    edit(qwen, lambda tensors: {name: tensor for name, tensor in tensors.items() if ".mlp." not in name})
    with pytest.raises(ModelError, match=r"(model\.layers\S+, ){4}model\.layers\S+ and 1 more"):
        vcls_write_checkpoint(qwen_plan(qwen))


def test_a_part_that_the_class_has_no_use_for_is_not_taken_for_a_head(tmp_path: Path) -> None:
    """Funnel's classifier is made of its encoder alone; that its decoder is to go, nobody said."""
    config = hf.FunnelConfig(d_model=HIDDEN, n_head=2, d_head=8, d_inner=24, vocab_size=50, block_sizes=[1, 1])
    source = save(hf.FunnelModel, config, tmp_path / "source")
    head = {
        f"classifier.{name}.{kind}": rows(*shape)
        for name, size in (("linear_hidden", HIDDEN), ("linear_out", LABELS))
        for kind, shape in (("weight", (size, HIDDEN)), ("bias", (size,)))
    }
    with pytest.raises(ModelError, match=r"no place for decoder"):
        vcls_write_checkpoint(make_plan(source, hf.FunnelForSequenceClassification, head))


def test_incomplete_experts_are_refused(tmp_path: Path) -> None:
    source = save(hf.MixtralForCausalLM, MIXTRAL, tmp_path / "source")
    edit(source, drop("model.layers.0.block_sparse_moe.experts.3.w1.weight"))
    with pytest.raises(ModelError, match="MixtralForSequenceClassification"):
        vcls_write_checkpoint(make_plan(source, hf.MixtralForSequenceClassification, SCORE))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            None,
            r"tiny lacks score.weight, which Qwen2ForSequenceClassification needs; they are never invented. Make a head",
        ),
        ({"score.weight": torch.full((LABELS, HIDDEN), float("nan"))}, "NaN or infinite"),
        ({"score.weight": torch.full((LABELS, HIDDEN), float("inf"))}, "NaN or infinite"),
        ({"score.weight": rows(LABELS, HIDDEN + 1)}, r"score.weight \(3, 17\) instead of \(3, 16\)"),
        ({"classifier.weight": rows(LABELS, HIDDEN)}, "no parameter classifier.weight"),
        ({**SCORE, "score.bias": rows(LABELS)}, "no parameter score.bias"),
    ],
)
def test_bad_heads_are_refused(qwen: Path, head: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        vcls_write_checkpoint(qwen_plan(qwen, head=head))


def test_quantized_and_missing_weights_are_refused(qwen: Path) -> None:
    config = hf.Qwen2Config.from_pretrained(qwen, num_labels=LABELS)
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ModelError, match="stored quantized"):
        vcls_write_checkpoint(qwen_plan(qwen, config=config))
    (qwen / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights in safetensors"):
        vcls_write_checkpoint(qwen_plan(qwen))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    source = save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source", max_shard_size="5KB")
    first, second = sorted(source.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second, {"format": "pt"})
    with pytest.raises(ModelError, match="in several files"):
        vcls_write_checkpoint(qwen_plan(source))
