"""The LoRA adapters of a loaded model: read when a request first names them, each with a head of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...checkpoint.name_rules import in_backbone
from ...checkpoint.peft_adapter import LowRank, PeftAdapter, place, read_adapter
from ...errors import ConfigError, ModelError
from ...params import LoRARequest
from ...pooler.activations import activation_for
from ...pooler.heads import set_head_dtype
from ...registry import registry
from ...runtime.adapter import LoRAAdapter
from ...runtime.runner import Runner
from ..loading.classifier import Classifier
from .lora_head import labelled, with_head
from .pooler import Pooler


class Adapters:
    """The cache of LoRA adapters that requests name (`lora_request`); safe to call from several threads.

    Args:
        classifier: the model, whose backbone's layers add what adapters say (`let_adapt`).
        runner: that runs it.
        pooler: of the model; an adapter's differs in its activation.
        max_loras: adapters held in memory; the least recently used is evicted.
        max_lora_rank: an adapter of a larger rank is refused; None takes any.
    """

    def __init__(
        self,
        classifier: Classifier,
        runner: Runner,
        pooler: Pooler,
        *,
        max_loras: int,
        max_lora_rank: int | None,
        allow_pickle: bool,
    ) -> None:
        self.classifier, self.runner, self.pooler = classifier, runner, pooler
        self.max_loras, self.max_lora_rank, self.allow_pickle = max_loras, max_lora_rank, allow_pickle
        self._layers = _linear_layers(classifier.model)
        self._in_backbone = backbone_layers(classifier.model)
        self._held: OrderedDict[LoRARequest, LoRAAdapter] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, request: LoRARequest) -> LoRAAdapter:
        """The adapter of a request.

        Raises:
            ModelError: it cannot be read, or does not fit the model.
        """
        with self._lock:
            if request not in self._held:
                self._held[request] = self._load(request)
            self._held.move_to_end(request)
            while len(self._held) > self.max_loras:
                self._held.popitem(last=False)
            return self._held[request]

    def _load(self, request: LoRARequest) -> LoRAAdapter:
        stored = read_adapter(request.lora_path, allow_pickle=self.allow_pickle)
        stored.check_task(self.classifier.source.task)
        if self.max_lora_rank is not None and stored.rank > self.max_lora_rank:
            raise ModelError(
                f"{stored.name} has rank {stored.rank}, above max_lora_rank={self.max_lora_rank}; raise that."
            )
        parts, of_head = self._low_rank_by_path(stored)
        saved = self._saved(stored)
        model = with_head(self.classifier.model, saved, of_head)
        head = None
        if not self.runner.mode.whole and self.runner.head is not None:
            head = self.classifier.architecture.head(model)
        if head is not None:
            set_head_dtype(model, head, self.runner.head_dtype)
        config = labelled(model.config, stored, self._num_labels(saved))
        model.config, model.num_labels = config, config.num_labels
        pooler = replace(self.pooler, activation=activation_for(config, registry().collect("vcls_activations")))
        return LoRAAdapter(request.lora_name, parts, model, head, config, pooler)

    def _low_rank_by_path(self, stored: PeftAdapter) -> tuple[dict[str, Any], dict[str, LowRank]]:
        """The low-rank updates by layer path: of the backbone in the layer's dtype, of the head unchanged."""
        layers = self._layers
        parts: dict[str, Any] = {}
        of_head: dict[str, LowRank] = {}
        for name, each in stored.low_rank.items():
            path = place(name, layers, self.classifier.model.base_model_prefix)
            if path is None:
                raise ModelError(f"{stored.name} changes {name}, which is no linear layer of this model.")
            weight: torch.Tensor = layers[path].get_parameter("weight")
            shape = tuple(weight.shape if isinstance(layers[path], Conv1D) else weight.T.shape)
            if (each.a.shape[1], each.b.shape[0]) != shape:
                raise ModelError(
                    f"{stored.name}: {name} has {each.a.shape[1]} inputs and {each.b.shape[0]} outputs, and the model's "
                    f"layer {shape[0]} and {shape[1]}; it was trained on another model."
                )
            if path in self._in_backbone:
                a, b = (side.T.contiguous().to(weight.device, weight.dtype) for side in (each.a, each.b))
                parts[path] = (a, b, each.scale)
            else:
                of_head[path] = each
        return parts, of_head

    def _saved(self, stored: PeftAdapter) -> dict[str, torch.Tensor]:
        """The head's parameters that are saved with an adapter, by their names in the classifier."""
        model = self.classifier.model
        known = dict(model.named_parameters())
        found = {}
        for name, tensor in stored.saved.items():
            path = place(name, known, model.base_model_prefix)
            if path is None:
                raise ModelError(f"{stored.name} brings {name}, which {type(model).__name__} does not have.")
            if in_backbone(model.base_model_prefix, path):
                raise ModelError(
                    f"{stored.name} brings {name}, a part of the backbone, whole; merge it with `vcls convert --lora`."
                )
            found[path] = tensor
        lacking = sorted(self.classifier.missing - set(found))
        if lacking:
            raise ModelError(
                f"{stored.name} has no {', '.join(lacking)}, which the model lacks too; train it with modules_to_save."
            )
        return found

    def _num_labels(self, saved: Mapping[str, torch.Tensor]) -> int:
        """The outputs of the layer that has another number of them than the model's; as many as the model, if none."""
        known = dict(self.classifier.model.named_parameters())
        changed = [len(tensor) for name, tensor in saved.items() if len(tensor) != len(known[name])]
        return changed[0] if changed else int(self.classifier.config.num_labels)


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def backbone_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of a classifier's backbone, by their paths in the classifier."""
    return {
        path: each
        for path, each in _linear_layers(model).items()
        if in_backbone(model.base_model_prefix, f"{path}.weight")
    }


def requests_for(
    lora_request: LoRARequest | Sequence[LoRARequest | None] | None, count: int
) -> list[LoRARequest | None]:
    """A request for each of `count` prompts.

    Raises:
        ConfigError: they are of another type or number.
    """
    if lora_request is None or isinstance(lora_request, LoRARequest):
        return [lora_request] * count
    given: Any = lora_request
    if not isinstance(given, Sequence) or not all(each is None or isinstance(each, LoRARequest) for each in given):
        raise ConfigError(f"lora_request={lora_request!r} is no LoRARequest and no list of them.")
    if len(given) != count:
        raise ConfigError(f"The lengths of prompts ({count}) and lora_request ({len(given)}) must be the same.")
    return list(given)
