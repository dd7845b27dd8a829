"""One architecture from transformers to a classifier and back: built small, converted, run every way, reloaded."""

from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

import vllm_cls
from vllm_cls import LLM
from vllm_cls.architecture import decoder_start
from vllm_cls.runtime.runner import Mode

from .small_configs import FIRST_TOKEN, POSITIONS, VOCABULARY, small_config

TOLERANCE = 1e-4
"""Between logits, relative to the largest where that is above 1."""
LENGTHS = (1, 2, 3, 5, 9, 17, 33, 40)
MAPPINGS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "classifier": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "base": modeling_auto.MODEL_MAPPING,
}
_AUTO: dict[str, Any] = {
    "causal": transformers.AutoModelForCausalLM,
    "classifier": transformers.AutoModelForSequenceClassification,
    "base": transformers.AutoModel,
}
_REFUSALS = (Exception,)  # every class of transformers refuses in its own way


@dataclass
class Row:
    """What became of one entry of a mapping.

    Args:
        mapping: "causal", "classifier" or "base".
        status: "exact"; "fails" (ours is wrong or refuses); "cannot" (transformers itself cannot build or run it).
        why: of a status that is not "exact".
        source: transformers' class that the weights were saved from.
        target: the class that the conversion wrote.
        opens_in: "transformers" where plain transformers opens it, else "vcls".
        form: how it runs: "packed", "padded", "equal" or "single"; with "whole forward, " before it where the head
            is part of the model's forward.
        reason: why it is not packed.
        errors: largest difference of logits, by what was compared.
    """

    mapping: str
    model_type: str
    status: str = "cannot"
    why: str = ""
    source: str = ""
    target: str = ""
    opens_in: str = ""
    form: str = ""
    reason: str = ""
    pooling: str = ""
    prefix_sharing: bool = False
    pruned_last_layer: bool = False
    errors: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_case(mapping: str, model_type: str, folder: Path) -> Row:
    """Try one entry of a mapping.

    Args:
        folder: where the model and its conversion are written.
    """
    row = Row(mapping, model_type)
    try:
        model = _build(mapping, model_type)
        row.source = type(model).__name__
        prompts = [ids for ids in _prompts(model) if len(ids) > 5 or _takes(model, ids)]
        _run_stock(model, prompts)
    except _REFUSALS as error:
        row.why = _line(error)
        return row
    try:
        _convert_and_compare(row, model, prompts, folder)
    except _REFUSALS as error:
        row.status, row.why = "fails", _line(error)
    return row


def _build(mapping: str, model_type: str) -> PreTrainedModel:
    config = small_config(model_type)
    if mapping == "classifier":
        config.num_labels = 3
    if mapping == "base" and isinstance(MAPPINGS["base"][type(config)], tuple):
        config.architectures = [MAPPINGS["base"][type(config)][-1].__name__]  # Funnel's, without its decoder
    torch.manual_seed(0)
    return randomize(_AUTO[mapping].from_config(config))


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Weights drawn wide enough that a wrong position, mask or type changes the logits by far more than the tolerance."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.is_floating_point():
            parameter.data.normal_(0, 0.1, generator=generator)
        elif parameter.numel() > 1 and parameter.is_floating_point():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.float().eval()


def _prompts(model: PreTrainedModel, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Token ids of all lengths; those of an encoder-decoder end in eos, where its classifier pools."""
    generator = random.Random(0)
    config = model.config
    prompts = [[generator.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(length)] for length in lengths]
    eos = getattr(config.get_text_config(), "eos_token_id", None)
    if config.is_encoder_decoder and isinstance(eos, int):
        prompts = [[*ids[:-1], eos] for ids in prompts]
    return prompts


def _takes(model: PreTrainedModel, ids: list[int]) -> bool:
    """Whether transformers runs so short a text: some models pool tokens."""
    try:
        _run_stock(model, [ids] * 4)
    except _REFUSALS:
        return False
    return True


def _run_stock(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    """Whether transformers itself runs it on texts alone."""
    texts_in = ["input_ids"]
    if model.config.is_encoder_decoder and type(model).__name__.endswith("Model"):
        texts_in.append("decoder_input_ids")  # the bare model makes none of the texts itself
    with torch.no_grad():
        for ids in (prompts[-4], prompts[-1]):
            first = model(**dict.fromkeys(texts_in, torch.tensor([ids])), **_without_cache(model))[0]
            if not isinstance(first, torch.Tensor) or not bool(torch.isfinite(first).all()):
                raise ValueError("its output on texts alone is no finite tensor")
            if isinstance(model, MAPPINGS["base"].get(type(model.config), ())):
                _refuse_other_than_states(model, first, len(ids))


def _without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """Keyword arguments that keep a model from making a cache, which some cannot make of their configs (BLT)."""
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes and hasattr(model.config, "use_cache") else {}


def _refuse_other_than_states(model: PreTrainedModel, output: torch.Tensor, num_tokens: int) -> None:
    """Base models that give no hidden state of each token (an embedder, a vocoder); classes of their own may know."""
    config = model.config
    wanted = (1, num_tokens, getattr(config.get_text_config(), "hidden_size", output.shape[-1]))
    if output.shape != wanted and type(config) not in MAPPINGS["classifier"]:
        raise ValueError(f"its output is of shape {tuple(output.shape)}, no hidden state of each token, {wanted}")


def _convert_and_compare(row: Row, model: PreTrainedModel, prompts: list[list[int]], folder: Path) -> None:
    source, out = folder / "source", folder / "classifier"
    model.save_pretrained(source)
    head = {"head": None} if row.mapping == "classifier" else {"head": "random", "num_labels": 3, "seed": 0}
    report = vllm_cls.convert(str(source), out, **head)
    row.target, row.opens_in = report.model_class, report.format
    with LLM(str(out), dtype="float32", max_num_batched_tokens=96, num_threads=1) as llm:
        described = llm.describe()
        for name in ("form", "reason", "pooling", "prefix_sharing", "pruned_last_layer"):
            setattr(row, name, described[{"form": "execution", "reason": "why_not_packed"}.get(name, name)] or "")
        fitting = [ids for ids in prompts if len(ids) <= min(llm.max_model_len, POSITIONS)]
        if llm.max_model_len <= 2 * POSITIONS:
            fitting += _prompts(model, [llm.max_model_len])  # as long as we say that the model takes it
        expected = transformers_logits(out, fitting)
        if row.mapping == "classifier":
            row.errors["source"] = _error(expected, _logits(model, fitting))
        elif row.opens_in == "vcls":
            row.errors["by hand"] = _error(expected, _by_hand(model, llm, fitting))
        row.errors["chosen"] = _error(_run(llm, fitting), expected)
        runner: Any = llm._open.engine.runner
        chosen: Mode = runner.mode
        for form in ("padded", "single"):
            # Where the equivalence check found that padding changes the model, it is not to be run so.
            if form == chosen.form or (form == "padded" and chosen.form != "packed"):
                continue
            runner.mode = Mode(form, whole=chosen.whole)
            row.errors[form] = _error(_run(llm, fitting), expected)
    wrong = {name: error for name, error in row.errors.items() if not error <= TOLERANCE}
    row.status = "fails" if wrong else "exact"
    row.why = ", ".join(f"{name}: logits differ by {error:.1e}" for name, error in wrong.items())


def _run(llm: LLM, prompts: list[list[int]]) -> torch.Tensor:
    """Logits `(num_prompts, num_labels)`, asked for in another order than that of length."""
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    outputs = llm.classify([prompts[index] for index in order], use_tqdm=False)
    rows = {index: output.outputs.logits for index, output in zip(order, outputs, strict=True)}
    return torch.tensor([rows[index] for index in range(len(prompts))])


def transformers_logits(folder: Path, prompts: list[list[int]]) -> torch.Tensor:
    """Logits `(num_prompts, num_labels)` by the checkpoint opened in transformers, a prompt at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return _logits(model.eval(), prompts)


def _logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([ids]), **_without_cache(model)).logits for ids in prompts])


def _by_hand(model: PreTrainedModel, llm: LLM, prompts: list[list[int]]) -> torch.Tensor:
    """Logits of the source's own states: transformers' model below its output layer, and the head's weights."""
    score = llm.model.get_parameter("score.weight").float()
    backbone = model if model.get_output_embeddings() is None else model.base_model
    backbone = model.model if backbone is model and hasattr(model, "model") else backbone
    place = {"LAST": -1, "CLS": 0}[llm.describe()["pooling"]]
    start = decoder_start(backbone.config)
    states = []
    with torch.no_grad():
        for ids in prompts:
            inputs = {"input_ids": torch.tensor([ids])}
            if start is not None and "decoder_input_ids" in inspect.signature(backbone.forward).parameters:
                inputs["decoder_input_ids"] = torch.tensor([[start, *ids[:-1]]])
            states.append(backbone(**inputs, **_without_cache(backbone))[0][0, place])
        return torch.stack(states) @ score.T


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))


def _line(error: Exception) -> str:
    """What failed, in a line, and where."""
    lines = str(error).strip().splitlines() or ["no message"]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(line.strip() for line in lines[:2])[:220]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


def model_types(mapping: str) -> list[str]:
    """The model types of a mapping; of base models, those that take texts."""
    names = {"causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
             "classifier": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
             "base": modeling_auto.MODEL_MAPPING_NAMES}[mapping]  # fmt: skip
    return sorted(name for name in names if mapping != "base" or _takes_texts(name))


def _takes_texts(model_type: str) -> bool:
    """Whether the base model's first input is token ids, and what it needs beside them is optional."""
    try:
        found = MAPPINGS["base"][transformers.CONFIG_MAPPING[model_type]]
        model_class = found[0] if isinstance(found, (tuple, list)) else found
        modalities = model_class.input_modalities
        if model_class.main_input_name != "input_ids" or {
            *([modalities] if isinstance(modalities, str) else modalities)
        } != {"text"}:
            return False
        parameters = inspect.signature(model_class.forward).parameters.values()
    except _REFUSALS:  # a library that it needs is not installed
        return False
    needed = {
        each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    }
    return "input_ids" in {each.name for each in parameters} and not needed - {"self", "input_ids"}
