"""What is written: bytes, types, files beside the weights, and how much memory it takes."""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vllm_cls.adapters.classifiers.own_type import VclsForSequenceClassification
from vllm_cls.adapters.writer import checkpoint_writer, file_copies
from vllm_cls.adapters.writer.checkpoint_writer import WriteResult, vcls_write_checkpoint
from vllm_cls.adapters.writer.file_copies import can_clone
from vllm_cls.adapters.writer.tensor_plan import plan_tensors
from vllm_cls.errors import ModelError

from .checkpoint_cases import (
    BERT,
    CLASSIFIER,
    GPT2,
    HIDDEN,
    LABELS,
    QWEN2,
    QWEN2_5_VL,
    SCORE,
    SCORE_BIAS,
    T5,
    assert_opens,
    edit,
    make_plan,
    own,
    qwen_plan,
    save,
    two_layers,
)


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source")


def test_files_that_need_no_change_are_the_same_bytes_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    source = save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source", max_shard_size="3KB")
    weight_map = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    alone = [name for name, file in weight_map.items() if file == weight_map["lm_head.weight"]]
    assert alone == ["lm_head.weight"]
    vcls_write_checkpoint(qwen_plan(source))
    sources = {path.read_bytes() for path in source.glob("*.safetensors") if path.name != weight_map["lm_head.weight"]}
    written = {path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")}
    assert sources < written and len(written) == len(sources) + 1  # and one file for the head


def test_large_files_are_split_and_only_those(qwen: Path) -> None:
    result = vcls_write_checkpoint(qwen_plan(qwen, max_shard_size=8000))
    files = sorted((qwen.parent / "out").glob("*.safetensors"))
    assert (
        len(files) > 2
        and [file.name for file in files] == [name for name in result.files if "safetensors" in name][:-1]
    )
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
    assert max(sizes) <= 8000
    assert_opens(qwen.parent / "out", hf.Qwen2ForSequenceClassification, qwen, hf.Qwen2ForCausalLM, SCORE)


def test_a_large_file_is_split_even_if_nothing_else_changes(tmp_path: Path) -> None:
    source = save(hf.Qwen2ForSequenceClassification, QWEN2, tmp_path / "source")
    plan = qwen_plan(source, head=None, config=hf.Qwen2Config.from_pretrained(source), max_shard_size=8000)
    assert len([name for name in vcls_write_checkpoint(plan).files if name.endswith(".safetensors")]) > 2


def test_a_tensor_larger_than_a_shard_is_alone(qwen: Path) -> None:
    vcls_write_checkpoint(qwen_plan(qwen, max_shard_size=10))
    shards = [load_file(file) for file in (qwen.parent / "out").glob("*.safetensors")]
    assert len(shards) > 10 and {len(tensors) for tensors in shards} == {1}
    assert_opens(qwen.parent / "out", hf.Qwen2ForSequenceClassification, qwen, hf.Qwen2ForCausalLM, SCORE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_converts_the_backbone_and_leaves_the_head(qwen: Path, dtype: str) -> None:
    vcls_write_checkpoint(qwen_plan(qwen, dtype=dtype))
    before, after = (load_file(folder / "model.safetensors") for folder in (qwen, qwen.parent / "out"))
    for name, tensor in after.items():
        if name == "score.weight":
            assert torch.equal(tensor, SCORE[name]) and tensor.dtype == torch.float32
        else:
            assert torch.equal(tensor, before[name].to(getattr(torch, dtype))), name
    assert json.loads((qwen.parent / "out" / "config.json").read_text())["dtype"] == dtype


def test_dtype_leaves_what_the_class_keeps_in_float32(tmp_path: Path) -> None:
    """T5 holds `wo` in float32 when it is opened in float16; so is it written."""
    source = save(hf.T5ForConditionalGeneration, T5, tmp_path / "source")
    head = two_layers("classification_head")
    vcls_write_checkpoint(make_plan(source, hf.T5ForSequenceClassification, head, dtype="float16"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {name.rpartition(".wo.")[1]: tensor.dtype for name, tensor in written.items() if name not in head}
    assert kinds == {".wo.": torch.float32, "": torch.float16}


def test_an_unknown_dtype_is_refused(qwen: Path) -> None:
    with pytest.raises(ModelError, match="'int8'"):
        vcls_write_checkpoint(qwen_plan(qwen, dtype="int8"))


def test_a_source_without_a_dtype_gets_that_of_its_weights(qwen: Path) -> None:
    edit(qwen, lambda tensors: {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
    config = hf.Qwen2Config.from_pretrained(qwen, num_labels=LABELS)
    config.dtype = None
    vcls_write_checkpoint(qwen_plan(qwen, config=config))
    assert json.loads((qwen.parent / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_integers_do_not_decide_the_dtype(tmp_path: Path) -> None:
    """Old checkpoints of BERT hold the numbers of the positions too."""
    source = save(hf.BertForPreTraining, BERT, tmp_path / "source")
    positions = torch.arange(1 << 16)[None]
    assert positions.nbytes > sum(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
    edit(source, lambda tensors: tensors | {"bert.embeddings.position_ids": positions})
    config = hf.BertConfig.from_pretrained(source, num_labels=LABELS)
    config.dtype = None
    vcls_write_checkpoint(make_plan(source, hf.BertForSequenceClassification, CLASSIFIER, config=config))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert_opens(tmp_path / "out", hf.BertForSequenceClassification, source, hf.BertForPreTraining, CLASSIFIER)


def test_the_dtype_is_that_of_most_bytes(qwen: Path) -> None:
    """Not of most tensors."""
    edit(qwen, lambda tensors: {n: t.to(torch.bfloat16) if t.numel() > 200 else t for n, t in tensors.items()})
    kinds = [each.dtype for name, each in load_file(qwen / "model.safetensors").items() if name != "lm_head.weight"]
    assert kinds.count(torch.float32) > kinds.count(torch.bfloat16)
    config = hf.Qwen2Config.from_pretrained(qwen, num_labels=LABELS)
    config.dtype = None
    vcls_write_checkpoint(qwen_plan(qwen, config=config))
    assert json.loads((qwen.parent / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found


@pytest.mark.parametrize("head", [SCORE, None], ids=["new head", "copy"])
def test_files_say_that_they_are_pytorchs_as_transformers_files_do(tmp_path: Path, head: Any) -> None:
    """Whether the source's said so or not: other readers refuse what does not."""
    source = save(hf.Qwen2ForSequenceClassification, QWEN2, tmp_path / "source")
    expected = metadata(source / "model.safetensors")
    assert expected == {"format": "pt"}
    config = hf.Qwen2Config.from_pretrained(source, **({"num_labels": LABELS} if head else {}))
    for name in ("said", "not said"):
        vcls_write_checkpoint(qwen_plan(source, head=head, config=config, out=tmp_path / name))
        assert metadata(tmp_path / name / "model.safetensors") == expected
        save_file(load_file(source / "model.safetensors"), source / "model.safetensors")


def test_link_shares_the_files_that_need_no_change(tmp_path: Path) -> None:
    source = save(hf.Qwen2ForSequenceClassification, QWEN2, tmp_path / "source")
    config = hf.Qwen2Config.from_pretrained(source)
    vcls_write_checkpoint(qwen_plan(source, head=None, config=config, link=True))
    assert (tmp_path / "out" / "model.safetensors").samefile(source / "model.safetensors")
    assert not (tmp_path / "out" / "config.json").samefile(source / "config.json")


def test_link_keeps_the_only_file_and_puts_the_head_beside_it(tmp_path: Path) -> None:
    source = save(hf.GPT2LMHeadModel, GPT2, tmp_path / "source")
    vcls_write_checkpoint(make_plan(source, hf.GPT2ForSequenceClassification, SCORE, link=True))
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").samefile(source / "model.safetensors")
    assert_opens(tmp_path / "out", hf.GPT2ForSequenceClassification, source, hf.GPT2LMHeadModel, SCORE)


def test_a_head_goes_into_the_only_file_where_that_is_no_link(qwen: Path) -> None:
    result = vcls_write_checkpoint(qwen_plan(qwen, link=True))  # without its lm_head it is another file
    assert [name for name in result.files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert_opens(qwen.parent / "out", hf.Qwen2ForSequenceClassification, qwen, hf.Qwen2ForCausalLM, SCORE)


def test_a_config_within_another_is_looked_at_too(tmp_path: Path) -> None:
    source = save(hf.Qwen2_5_VLForConditionalGeneration, QWEN2_5_VL, tmp_path / "source")
    config = own(hf.Qwen2_5_VLConfig.from_pretrained(source))
    config.vcls["pooling"] = "LAST"
    vcls_write_checkpoint(make_plan(source, VclsForSequenceClassification, SCORE_BIAS, config=config, dtype="bfloat16"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = written["backbone_config"]
    assert {written["dtype"], kept["dtype"], kept["text_config"]["dtype"], kept["vision_config"]["dtype"]} == {
        "bfloat16"
    }
    config.backbone_config.text_config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ModelError, match="stored quantized"):
        plan_tensors(make_plan(source, VclsForSequenceClassification, SCORE_BIAS, config=config))


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    source = save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source", max_shard_size="5KB")
    (source / "merges.txt").write_text("#version: 0.2\n")
    dry = vcls_write_checkpoint(qwen_plan(source, dry_run=True))
    assert os.listdir(tmp_path) == ["source"]
    assert dry == vcls_write_checkpoint(qwen_plan(source))
    written = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert dry.files == sorted(written) and "merges.txt" in dry.files
    assert dry.num_bytes == sum(size for name, size in written.items() if name.endswith(".safetensors"))


def test_a_dry_run_refuses_what_the_run_would(qwen: Path) -> None:
    (qwen.parent / "out").mkdir()
    with pytest.raises(ModelError, match="exists"):
        vcls_write_checkpoint(qwen_plan(qwen, dry_run=True))


COPIED = [
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "qwen.tiktoken", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "additional_chat_templates/rag.jinja",
]  # fmt: skip
LEFT = [
    "modules.json", "1_Pooling/config.json", "generation_config.json", "config_sentence_transformers.json",
    "sentence_bert_config.json", "modeling_qwen.py", "vocab.py", "training_args.bin", "optimizer.pt",
]  # fmt: skip


def test_which_other_files_come_along(qwen: Path) -> None:
    for name in COPIED + LEFT:
        (qwen / name).parent.mkdir(exist_ok=True)
        (qwen / name).write_bytes(f"\x00{name}".encode())
    result = vcls_write_checkpoint(qwen_plan(qwen))
    assert result.files == sorted([*COPIED, "config.json", "model.safetensors", "README.md"])
    for name in COPIED:
        assert (qwen.parent / "out" / name).read_bytes() == f"\x00{name}".encode()
    assert (qwen.parent / "out" / "README.md").read_text() == "# card\n"


def test_a_given_tokenizer_is_saved_instead_of_the_sources(qwen: Path) -> None:
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    for name in ("vocab.txt", "preprocessor_config.json"):
        (qwen / name).write_text("{}")
    result = vcls_write_checkpoint(qwen_plan(qwen, tokenizer=tokenizer))
    assert "vocab.txt" not in result.files and "preprocessor_config.json" in result.files
    opened = hf.PreTrainedTokenizerFast.from_pretrained(qwen.parent / "out")
    assert opened("a")["input_ids"] == [0]


def test_the_config_names_the_class_and_leaves_out_what_transformers_would_refuse(qwen: Path) -> None:
    config = hf.Qwen2Config.from_pretrained(qwen, num_labels=LABELS)
    config.vcls = {"pooling": "LAST"}
    config.max_length, config.auto_map = 7, {"AutoModel": "modeling_qwen.Qwen"}
    vcls_write_checkpoint(qwen_plan(qwen, config=config))
    written = json.loads((qwen.parent / "out" / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForSequenceClassification"]
    assert len(written["id2label"]) == LABELS and written["vcls"] == {"pooling": "LAST"}
    assert not {"max_length", "auto_map"} & set(written)
    assert config.max_length == 7  # the plan's own config is left as it was


def test_files_have_the_usual_mode(qwen: Path) -> None:
    before = os.umask(0o027)
    try:
        vcls_write_checkpoint(qwen_plan(qwen))
    finally:
        os.umask(before)
    out = qwen.parent / "out"
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}


def test_an_unchanged_file_is_reflinked_where_the_filesystem_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(hf.Qwen2ForSequenceClassification, QWEN2, tmp_path / "source")
    if not can_clone(source / "model.safetensors", tmp_path):
        pytest.skip("this filesystem has no reflinks")
    monkeypatch.setattr(file_copies, "copy_bytes", lambda *_: pytest.fail("it was copied"))
    vcls_write_checkpoint(qwen_plan(source, head=None, config=hf.Qwen2Config.from_pretrained(source)))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


MEMORY = """
import sys
sys.path.insert(0, {root!r})
from tests.adapters.writer import test_checkpoint_writer as t
from pathlib import Path

def peak():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024

small, large = Path({small!r}), Path({large!r})
t.vcls_write_checkpoint(t.qwen_plan(small, dtype={dtype!r}))
before = peak()
t.vcls_write_checkpoint(t.qwen_plan(large, dtype={dtype!r}))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, dtype: str | None) -> None:
    """300 MB through a few: one embedding of 268 MB, and an LM head that is dropped."""
    small = save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "small" / "source")
    config = copy.deepcopy(QWEN2)
    config.vocab_size = 4 * 2**20
    large = tmp_path / "large" / "source"
    shutil.copytree(small, large)
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(large)
    edit(large, lambda tensors: tensors | {name: torch.zeros(config.vocab_size, HIDDEN) for name in (
        "model.embed_tokens.weight", "lm_head.weight")})  # fmt: skip
    size = (large / "model.safetensors").stat().st_size
    assert size > 500 * 2**20
    code = MEMORY.format(root=str(Path(__file__).parents[3]), small=str(small), large=str(large), dtype=dtype)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 40, "megabytes"
    shutil.rmtree(tmp_path / "large")


def test_the_plan_can_be_had_without_writing(qwen: Path) -> None:
    plan = plan_tensors(qwen_plan(qwen))
    assert (list(plan.files), plan.dropped, plan.renamed) == (["model.safetensors"], ["lm_head.weight"], 0)
    assert plan.index is None and plan.dtype == "float32"


def test_the_module_is_a_plugin(qwen: Path) -> None:
    from vllm_cls import hookspecs

    manager = pluggy.PluginManager("vllm_cls")
    manager.add_hookspecs(hookspecs)
    manager.register(checkpoint_writer)
    result = manager.hook.vcls_write_checkpoint(plan=qwen_plan(qwen))
    assert isinstance(result, WriteResult) and result.dropped == ["lm_head.weight"]
