"""Merges a LoRA adapter into a checkpoint: which tensors change, and the head that is saved with the adapter.

Tensors change one by one while they are written; the model is never loaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from transformers.pytorch_utils import Conv1D

from vllm_cls.architecture import OWN_MODEL_TYPE, Head, HeadRequest, HeadResult
from vllm_cls.checkpoint.name_rules import in_backbone, some
from vllm_cls.checkpoint.peft_adapter import PeftAdapter, is_output_layer, place
from vllm_cls.compat.transformers_calls import on_meta
from vllm_cls.errors import ModelError

from ..classifiers.own_type import VclsForSequenceClassification
from .tensor_names import TensorNames

if TYPE_CHECKING:
    import torch

Change = Callable[["torch.Tensor"], "torch.Tensor"]
"""A tensor of the source, float32, as it becomes."""


def changes(adapter: PeftAdapter | None, names: TensorNames, head: Container[str]) -> dict[str, Change]:
    """What an adapter changes, by the names of the source's tensors.

    Args:
        adapter: None changes nothing.
        names: what becomes of the source's tensors.
        head: parameters that come from elsewhere, whatever the adapter says of them.

    Raises:
        ModelError: the adapter changes what the source does not have, or has as a part of something.
    """
    if adapter is None:
        return {}
    parameters, prefix = dict(names.model.named_parameters()), names.model.base_model_prefix
    sources = {parameter: key for key, parameter in names.parameters.items()}
    found: dict[str, Change] = {}
    for name, change in _changes_of(adapter):
        parameter = place(name, parameters, prefix)
        if parameter in head or (parameter is None and (is_output_layer(name) or place(name, names.dropped, prefix))):
            continue  # another head comes in its place, or the output layer, which a classifier does not have
        if parameter is None or parameter not in sources:
            raise ModelError(
                f"{adapter.name} changes {name}, which {type(names.model).__name__} does not have or reads joined with "
                "others; merge it with PEFT."
            )
        conv = isinstance(names.model.get_submodule(parameter.rpartition(".")[0]), Conv1D)
        found[sources[parameter]] = functools.partial(change, transposed=conv)
    return found


def _changes_of(adapter: PeftAdapter) -> Iterator[tuple[str, Callable[..., torch.Tensor]]]:
    for name, low_rank in adapter.low_rank.items():
        yield f"{name}.weight", low_rank.merged
    for name, tensor in adapter.saved.items():
        yield name, functools.partial(_replacement, name, tensor)


def _replacement(name: str, saved: torch.Tensor, weight: torch.Tensor, *, transposed: bool) -> torch.Tensor:
    if saved.shape != weight.shape:
        raise ModelError(f"the adapter's {name} is {tuple(saved.shape)}, the model's {tuple(weight.shape)}.")
    return saved


def adapter_head(request: HeadRequest, adapter: PeftAdapter) -> HeadResult:
    """The head that is saved with an adapter (`PeftAdapter.head_rows` is not None).

    Raises:
        ModelError: its labels are not as many as its rows.
    """

    config = copy.deepcopy(request.config)
    own = config.model_type == OWN_MODEL_TYPE
    rows = adapter.head_rows(request.architecture.final_linear if not own else "score")
    assert rows is not None
    labels = _labels(request, adapter, rows)
    config.num_labels = rows
    model_class = VclsForSequenceClassification if own else request.architecture.classifier_class(type(config))
    model = on_meta(model_class, config)
    known, prefix = dict(model.named_parameters()), model.base_model_prefix
    by_parameter = {place(name, known, prefix): tensor for name, tensor in adapter.saved.items()}
    tensors = {
        name: tensor for name, tensor in by_parameter.items() if name is not None and not in_backbone(prefix, name)
    }
    same = rows == request.config.num_labels
    problem_type = adapter.config.get("problem_type") or (request.problem_type if same or request.labels else None)
    description = "The head of the LoRA adapter."
    return HeadResult(Head("lora", tensors=tensors, description=description, trained=True), labels, problem_type)


def _labels(request: HeadRequest, adapter: PeftAdapter, rows: int) -> list[str]:
    labels = list(request.labels) or adapter.labels(rows)
    if not labels and rows == request.config.num_labels:
        labels = [request.config.id2label[index] for index in range(rows)]
    labels = labels or [f"LABEL_{index}" for index in range(rows)]
    if len(labels) != rows:
        raise ModelError(
            f"{adapter.name} has a head for {rows} labels; {some(labels)} are {len(labels)}. Correct --labels."
        )
    return labels
