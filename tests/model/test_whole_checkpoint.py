"""Nothing of a checkpoint is left out in silence: adapters beside it, tensors without a place, wrapped names, other heads."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vllm_cls import LLM, ConfigError, ModelError, convert, load_classifier

from ..models import tiny
from .test_lora import TARGETS, expected, train

TEXT = "The film was good"
Tensors = dict[str, torch.Tensor]


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The same folder with other tensors."""
    path = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})
    return folder


def configure(folder: Path, remove: tuple[str, ...] = (), **values: Any) -> Path:
    path = folder / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in remove}
    path.write_text(json.dumps(config | values))
    return folder


@torch.no_grad()
def of_transformers(folder: Path, **options: Any) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    logits: list[float] = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].tolist()
    return logits


def ours(folder: Path, **options: Any) -> list[float]:
    with LLM(str(folder), **options) as llm:
        return llm.classify(TEXT)[0].outputs.logits


def every_way(folder: Path, out: Path) -> list[list[float]]:
    """Opened as it is, as a transformers model, and after a conversion."""
    convert(str(folder), out)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")
    with torch.no_grad():
        loaded = load_classifier(str(folder))(**ids).logits[0].tolist()
    return [ours(folder), loaded, ours(out)]


def refused(folder: Path, out: Path, message: str) -> None:
    """Neither opened nor converted, with these words."""
    with pytest.raises(ModelError, match=message):
        LLM(str(folder))
    with pytest.raises(ModelError, match=message):
        convert(str(folder), out)


# -- an adapter beside the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"), [("bert", tiny.classifier), ("qwen2", tiny.classifier), ("qwen2", tiny.base_model)]
)
def test_an_adapter_beside_a_model_is_a_part_of_it(name: str, source: Any, tmp_path: Path) -> None:
    folder = source(name, tmp_path / "model")
    adapter = train(folder, tmp_path / "adapter", TARGETS[name], 3, seed=1)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    (wanted,) = expected(folder, adapter, 3, [ids])
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, folder)
    for found in every_way(folder, tmp_path / "out"):
        assert found == pytest.approx(wanted.tolist(), abs=1e-4)
    assert not list((tmp_path / "out").glob("adapter_*"))
    if source is tiny.classifier:
        assert of_transformers(folder) == pytest.approx(wanted.tolist(), abs=1e-4)
    with LLM(str(folder), convert="none") as llm:  # as inspect opens it
        assert llm.describe()["adapter"] == str(folder) and llm.task == "classify"


def test_heads_are_fitted_with_the_adapter_beside_the_model(tmp_path: Path) -> None:
    """The head measures the model that is written, not the one without its adapter."""
    folder = tiny.base_model("qwen2", tmp_path / "model")
    config = {"task_type": "FEATURE_EXTRACTION", "r": 4, "lora_alpha": 8, "target_modules": TARGETS["qwen2"]}
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(transformers.AutoModel.from_pretrained(folder), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(0, 0.3, generator=generator)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        state = adapted.eval()(input_ids=tokenizer(TEXT, return_tensors="pt").input_ids).last_hidden_state[0, -1]
    adapted.save_pretrained(folder)
    rows = [{"text": f"{word} film", "label": label} for word in "The A What I yes".split() for label in ("b", "g")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows * 2)))
    convert(str(folder), tmp_path / "out", head="fit", train=str(tmp_path / "rows.jsonl"))
    weight = load_file(tmp_path / "out" / "model.safetensors")["score.weight"]
    assert ours(tmp_path / "out") == pytest.approx((weight @ state).tolist(), abs=1e-4)


def test_a_second_adapter_is_refused(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    adapter = train(folder, tmp_path / "adapter", TARGETS["bert"], 3, seed=1)
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, folder)
    with pytest.raises(ConfigError, match="has an adapter of its own beside it"):
        LLM(str(folder), lora=str(adapter))
    with pytest.raises(ConfigError, match="is to be merged first"):
        convert(str(folder), tmp_path / "out", head_name="one")


def test_an_adapters_folder_is_no_model(tmp_path: Path) -> None:
    base = tiny.classifier("bert", tmp_path / "model")
    adapter = train(base, tmp_path / "adapter", TARGETS["bert"], 3, seed=1)
    refused(adapter, tmp_path / "out", f"is a PEFT adapter.*give that model .{base}.*--lora {adapter}")


# -- tensors without a place ----------------------------------------------------------------------------

LOST = {
    "a layer that the config does not count": (
        "bert", lambda tensors: tensors | {n.replace("layer.0", "layer.3"): t for n, t in tensors.items()}, "bert.encoder.layer.3"
    ),
    "relative positions": (
        "bert",
        lambda tensors: {**tensors, "bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 3)},
        "distance_embedding",
    ),
    "norms of queries": (
        "qwen2", lambda tensors: {**tensors, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, "q_norm.weight"
    ),
    "a bias": (
        "llama", lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, "q_proj.bias"
    ),
    "a part of another model": ("gpt2", lambda tensors: {**tensors, "tower.weight": torch.ones(3)}, "tower.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), LOST.values(), ids=LOST.keys())
def test_what_the_class_has_no_place_for_is_refused(name: str, change: Any, message: str, tmp_path: Path) -> None:
    folder = edit(tiny.classifier(name, tmp_path / "model"), change)
    refused(folder, tmp_path / "out", f"no place for .*{message}.*lose a part of the model")
    with pytest.raises(ModelError, match=message):
        load_classifier(str(folder))


@pytest.mark.parametrize("source", [tiny.causal_lm, tiny.base_model])
def test_so_it_is_where_a_head_is_made(source: Any, tmp_path: Path) -> None:
    folder = edit(source("qwen2", tmp_path / "model"), lambda tensors: {
        **tensors, ("model." if source is tiny.causal_lm else "") + "layers.0.self_attn.q_norm.weight": torch.ones(8)
    })  # fmt: skip
    with pytest.raises(ModelError, match="no place for .*q_norm.weight"):
        LLM(str(folder), convert="none")
    with pytest.raises(ModelError, match="no place for .*q_norm.weight"):
        convert(str(folder), tmp_path / "out", head="random", num_labels=2)


HARMLESS = {
    "bert": {"bert.embeddings.position_ids": torch.zeros(1, 48), "cls.predictions.bias": torch.zeros(3)},
    "gpt2": {"transformer.h.0.attn.bias": torch.zeros(1), "transformer.h.0.attn.masked_bias": torch.zeros(1)},
    "qwen2": {"lm_head.weight": torch.zeros(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_old_buffers_and_the_output_layer_are_welcome(name: str, tmp_path: Path) -> None:
    folder = tiny.classifier(name, tmp_path / "model")
    wanted = of_transformers(folder)
    edit(folder, lambda tensors: tensors | HARMLESS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for found in every_way(folder, tmp_path / "out"):
            assert found == pytest.approx(wanted, abs=1e-4)


def test_a_head_of_another_kind_is_left_out_with_a_word(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path / "model")
    wanted = of_transformers(folder)
    edit(folder, lambda tensors: {**tensors, "v_head.summary.weight": torch.zeros(1, 32)})
    with pytest.warns(UserWarning, match="v_head.summary.weight, a head of another kind, which is left out"):
        assert ours(folder) == pytest.approx(wanted, abs=1e-4)
    report = convert(str(folder), tmp_path / "out")
    assert any("v_head.summary.weight" in each for each in report.warnings)


# -- names ----------------------------------------------------------------------------------------------

WRAPPED = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "a compiled part": lambda name: name.replace("layer", "_orig_mod.layer", 1),
    "FSDP": lambda name: name.replace(".0.", ".0._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("name", ["bert", "qwen2"])
def test_what_a_model_was_wrapped_in_is_taken_off_its_names(name: str, wrapped: Any, tmp_path: Path) -> None:
    folder = tiny.classifier(name, tmp_path / "model")
    wanted = of_transformers(folder)
    edit(folder, lambda tensors: {wrapped(key): tensor for key, tensor in tensors.items()})
    for found in every_way(folder, tmp_path / "out"):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert of_transformers(tmp_path / "out") == pytest.approx(wanted, abs=1e-4)


def test_a_wrapped_language_model_gives_its_rows(tmp_path: Path) -> None:
    folder = tiny.causal_lm("qwen2", tmp_path / "model")
    options: dict[str, Any] = {"head": "tokens", "label_tokens": "b= bad,g= good"}
    convert(str(folder), tmp_path / "plain", **options)
    edit(folder, lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()})
    convert(str(folder), tmp_path / "wrapped", **options)
    assert ours(tmp_path / "wrapped") == ours(tmp_path / "plain")


def test_wrapped_pickles_open_too(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    wanted = of_transformers(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert ours(folder, allow_pickle=True) == pytest.approx(wanted, abs=1e-4)


def test_another_prefix_is_named(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    edit(folder, lambda tensors: {f"student.{name}": tensor for name, tensor in tensors.items()})
    refused(folder, tmp_path / "out", "The file has student.bert.*: take 'student.' off its names")


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("bert", "classifier", "score"), ("qwen2", "score", "classifier")]
)
def test_a_head_under_another_name_is_named(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    folder = tiny.classifier(name, tmp_path / "model")
    edit(folder, lambda tensors: {
        key.replace(f"{right}.", f"{wrong}.") if key.startswith(right) else key: tensor for key, tensor in tensors.items()
    })  # fmt: skip
    refused(folder, tmp_path / "out", f"lacks {right}.*The file has .*{wrong}.weight, which that class does not read")


# -- heads that the config does not describe ------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 3, 5])
def test_the_heads_rows_are_its_labels_where_the_config_names_none(num_labels: int, tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model", num_labels=num_labels)
    wanted = of_transformers(folder)
    configure(folder, ("id2label", "label2id", "num_labels"))
    for found in every_way(folder, tmp_path / "out"):
        assert found == pytest.approx(wanted, abs=1e-4)
    with LLM(str(folder)) as llm:
        assert llm.id2label == {index: f"LABEL_{index}" for index in range(num_labels)}
    if num_labels > 2:
        with pytest.raises(ConfigError, match=f"the model has {num_labels} labels, but .* name 2"):
            LLM(str(folder), hf_overrides={"num_labels": 2})


def test_labels_that_contradict_the_head_are_refused_with_the_override_that_helps(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model", num_labels=3)
    configure(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    refused(folder, tmp_path / "out", r"3 rows, but there are 2 labels \(a, b\).*hf_overrides={'num_labels': 3}")
    assert len(ours(folder, hf_overrides={"num_labels": 3})) == 3


def test_a_head_that_no_class_is_named_for_asks_what_it_is_for(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    wanted = of_transformers(folder)
    configure(folder, ("architectures",))
    refused(folder, tmp_path / "out", "names no class .*classifier.weight.*convert='classify' or 'token_classify'")
    assert ours(folder, convert="classify") == pytest.approx(wanted, abs=1e-4)
    convert(str(folder), tmp_path / "out", convert="classify")
    assert ours(tmp_path / "out") == pytest.approx(wanted, abs=1e-4)


FOREIGN = {
    "a value head": ({"v_head.summary.weight": torch.zeros(1, 32)}, "v_head.summary.weight, a head of another kind.*--head file"),
    "a reward head": (
        {"score.0.weight": torch.zeros(32, 32), "score.2.weight": torch.zeros(1, 32)},
        "score.0.weight, score.2.weight.*Qwen2ForRewardModel",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_language_model_with_another_librarys_head_says_so(tensors: Tensors, message: str, tmp_path: Path) -> None:
    folder = edit(tiny.causal_lm("qwen2", tmp_path / "model"), lambda present: present | tensors)
    refused(folder, tmp_path / "out", message)
    report = convert(str(folder), tmp_path / "out", head="tokens", label_tokens="b= bad,g= good")
    assert any(next(iter(tensors)) in each for each in report.warnings)


def test_a_pickled_head_beside_an_embedder_is_named(tmp_path: Path) -> None:
    folder = tiny.base_model("bert", tmp_path / "model")
    (folder / "model_head.pkl").write_bytes(b"not read")
    refused(folder, tmp_path / "out", r"SetFit's model_head.pkl .*coef_ and intercept_.*--head file")
    report = convert(str(folder), tmp_path / "out", head="random", num_labels=2)
    assert "model_head.pkl, SetFit's pickled head, is left out" in report.warnings


def test_a_taggers_head_without_a_class_says_how_it_is_opened(tmp_path: Path) -> None:
    folder = tiny.token_classifier("roberta", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "architectures"})
    )
    with pytest.raises(
        ModelError, match=r"if it labels each token, say so with convert='token_classify' \(--convert\)"
    ):
        LLM(str(folder))
    LLM(str(folder), convert="token_classify").close()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "scaler.pt"])
def test_what_a_training_run_left_is_no_weights(name: str, tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"not read")
    refused(folder, tmp_path / "out", "has no weights in safetensors; give a folder")
    with pytest.raises(ModelError, match="has no weights"):
        LLM(str(folder), allow_pickle=True)
