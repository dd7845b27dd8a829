"""Reads a PEFT LoRA adapter: its low-rank matrices and its head.

What PEFT would compute otherwise than `W + scale · B A` (DoRA, biases, initialisations that change the model
itself) is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ModelError
from ..parsing.json_fields import check_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
_FILE, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# Ways to begin a training that take something out of the model's own weights, which this adapter then lacks.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_TASKS = {"SEQ_CLS": "classify", "TOKEN_CLS": "token_classify"}
_UNSUPPORTED = {
    "use_dora": "DoRA, which rescales the weights",
    "lora_bias": "biases in its low-rank parts",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "single trained tokens",
    "target_parameters": "parameters that belong to no linear layer",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "block-diagonal parts",
    "kasa_config": "KaSA, which rescales its parts",
    "monteclora_config": "MonteCLoRA, which samples",
    "arrow_config": "routing between adapters",
    "alora_invocation_tokens": "tokens that switch it on",
}


@dataclass(frozen=True)
class LowRank:
    """The low-rank update of a linear layer: it adds `scale · (x Aᵀ) Bᵀ` to the output.

    Args:
        a: `(rank, in)`, float32.
        b: `(out, rank)`, float32.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def merged(self, weight: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        """`weight + scale · B A` in float32; a `transposed` weight is `(in, out)` (GPT-2's Conv1D).

        Raises:
            ModelError: the shapes differ.
        """
        delta = (self.b @ self.a).mul_(self.scale)
        delta = delta.T if transposed else delta
        if delta.shape != weight.shape:
            raise ModelError(
                f"the adapter is for a weight of shape {tuple(delta.shape)}, and the model's is {tuple(weight.shape)}; "
                "it was trained on another model."
            )
        return weight.float() + delta


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as it is stored; paths and names are those of the class that it was trained on.

    Args:
        name: what the user called it.
        low_rank: linear layer's path → what is added to it.
        saved: parameters that are saved whole (`modules_to_save`), float32: usually a head.
        config: `config.json` beside it, which names labels where somebody put it there; else empty.
        task: what it was trained for, "classify" or "token_classify"; None for anything else.
    """

    name: str
    low_rank: Mapping[str, LowRank]
    saved: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]
    task: str | None = None

    def check_task(self, task: str) -> None:
        """Raise `ModelError` if the head that is saved with it is for another task than `task`."""
        if self.saved and self.task not in (None, task):
            what = {"classify": "whole texts (SEQ_CLS)", "token_classify": "tokens (TOKEN_CLS)"}
            raise ModelError(
                f"{self.name} brings a head that classifies {what[str(self.task)]}, and the model is opened for "
                f"{what[task]}; pass convert={self.task!r} (--convert)."
            )

    def check_output_layer(self) -> None:
        """Raise `ConfigError` if it may change the output layer, whose rows are read as they are without the adapter."""
        outside = [name for name in self.low_rank if not any(part.isdigit() for part in name.split("."))]
        if self.saved or outside:
            name = next(iter(outside), None) or next(iter(self.saved))
            raise ConfigError(
                f"--lora {self.name} changes {name}, so the output layer's rows may not be what the model has; merge it with "
                "PEFT first, or take a head that does not read them."
            )

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((each.rank for each in self.low_rank.values()), default=0)

    def head_rows(self, final_linear: str) -> int | None:
        """The number of labels of the head that is saved with it, whose last layer is `final_linear`; None without one."""
        name = f"{final_linear}.weight"
        found = [tensor for each, tensor in self.saved.items() if each == name or each.endswith(f".{name}")]
        return len(found[0]) if found else None

    def labels(self, count: int) -> list[str]:
        """The label names in its config, in the order of their indices; empty where there are none, or not `count`."""
        named: Any = self.config.get("id2label") or {}
        labels = {int(index): str(label) for index, label in named.items()}
        return [labels[index] for index in range(count)] if sorted(labels) == list(range(count)) else []


def place(name: str, known: Container[str], prefix: str) -> str | None:
    """The path in our class of a layer that an adapter names, or None.

    An adapter that was trained on the bare model lacks the backbone's `prefix`; one that was trained on another
    class may have another in its place.
    """
    inner = name.partition(".")[2]
    return next((each for each in (name, f"{prefix}.{name}", f"{prefix}.{inner}") if each in known), None)


def is_output_layer(path: str) -> bool:
    """Whether a path of an adapter is in a language model's output layer, which classifiers do not have."""
    return path.partition(".")[0] in ("lm_head", "embed_out")


def merge_into(
    model: PreTrainedModel, adapter: PeftAdapter, *, skip: Container[str], beside: Container[str] = ()
) -> None:
    """Merge an adapter into a classifier in memory, in place.

    Args:
        skip: parameters that come from elsewhere.
        beside: tensors of the checkpoint; what is among them and the class does not have (another head) is left out.

    Raises:
        ModelError: it was trained on another model.
    """
    from transformers.pytorch_utils import Conv1D

    known, prefix = dict(model.named_parameters()), model.base_model_prefix

    def target_path(path: str) -> str | None:
        name = place(path, known, prefix)
        if name is None and not is_output_layer(path) and place(path, beside, prefix) is None:
            raise ModelError(
                f"{adapter.name} changes {path}, which {type(model).__name__} does not have; it was trained on another model."
            )
        return None if name is None or name in skip else name

    for path, low_rank in adapter.low_rank.items():
        name = target_path(f"{path}.weight")
        if name is not None:
            weight, conv = known[name], isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)
            weight.data = low_rank.merged(weight.data.cpu(), transposed=conv).to(weight.device, weight.dtype)
    for path, tensor in adapter.saved.items():
        name = target_path(path)
        if name is None:
            continue
        if known[name].shape != tensor.shape:
            raise ModelError(f"the adapter's {path} is {tuple(tensor.shape)}, the model's {tuple(known[name].shape)}.")
        known[name].data = tensor.to(known[name].device, known[name].dtype)


def read_adapter(path: str, *, allow_pickle: bool = False) -> PeftAdapter:
    """Read an adapter's folder.

    Args:
        allow_pickle: read `adapter_model.bin` too, with `weights_only`.

    Raises:
        ModelError: it is no LoRA adapter, or one that computes something else.
    """
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{path} has no adapter_config.json; give the folder of a PEFT adapter.")
    settings = _read_json(folder / "adapter_config.json")
    _refuse_unsupported(path, settings)
    low_rank: dict[str, dict[str, torch.Tensor]] = {}
    saved: dict[str, torch.Tensor] = {}
    for name, tensor in _read_tensors(folder, path, allow_pickle).items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: {name} holds NaN or infinite values; fetch or train it again.")
        stem = name.removeprefix(_PREFIX)
        module, found, side = stem.removesuffix(".weight").rpartition(".lora_")
        if found and side in ("A", "B"):
            low_rank.setdefault(module, {})[side] = tensor
        elif "lora_" in stem:
            raise ModelError(
                f"{path}: {stem} is no part of a linear layer, which alone are supported; merge it with PEFT."
            )
        else:
            saved[stem.replace(".modules_to_save", "").replace(".base_layer", "")] = tensor
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return PeftAdapter(
        path,
        {name: _low_rank(path, name, each, settings) for name, each in low_rank.items()},
        saved,
        config,
        _TASKS.get(str(settings.get("task_type"))),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}); fetch it again.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object; fetch it again.")
    check_file(str(path.parent), path.name, found)
    return {name: value for name, value in found.items() if value is not None}


def _refuse_unsupported(path: str, settings: Mapping[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"{path} is a {settings.get('peft_type')} adapter; only LORA is supported. Merge it with PEFT."
        )
    for name, what in _UNSUPPORTED.items():
        if settings.get(name):
            raise ModelError(f"{path} has {what} ({name}), which is not supported; merge it with PEFT.")
    if settings.get("bias", "none") != "none":
        raise ModelError(
            f"{path} trains biases (bias={settings['bias']!r}), which is not supported; merge it with PEFT."
        )
    initialised = settings.get("init_lora_weights")
    if isinstance(initialised, str) and initialised.lower().startswith(_CHANGES_BASE):
        raise ModelError(
            f"{path} was trained with init_lora_weights={initialised!r}, which changes the base's weights; save it with PEFT's "
            "path_initial_model_for_weight_conversion first."
        )


def _read_tensors(folder: Path, name: str, allow_pickle: bool) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / _FILE
    try:
        if file.is_file():
            found = load_file(file)
        elif allow_pickle and (folder / _PICKLE).is_file():
            found = torch.load(folder / _PICKLE, map_location="cpu", weights_only=True)
        else:
            hint = f"; it has {_PICKLE}, a pickle, which is read with allow_pickle=True (--allow-pickle)"
            raise ModelError(f"{name} has no {_FILE}{hint if (folder / _PICKLE).is_file() else ''}.")
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise ModelError(f"{name}: its weights cannot be read ({error}); fetch it again.") from error
    return {key: tensor.float() for key, tensor in found.items()}


def _low_rank(path: str, module: str, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> LowRank:
    a, b = parts.get("A"), parts.get("B")
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        shapes = {side: tuple(tensor.shape) for side, tensor in parts.items()}
        raise ModelError(f"{path}: the low-rank parts of {module} do not fit each other ({shapes}); fetch it again.")
    rank = a.shape[0]
    alpha = _by_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
    return LowRank(a, b, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: float) -> float:
    """PEFT's `get_pattern_key`: the first pattern that the end of a layer's path matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(default)
