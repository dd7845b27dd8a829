"""The description of a loaded model and how it runs, which `vcls inspect` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import labels_of

if TYPE_CHECKING:
    from .loaded_model import LoadedModel
    from .loading.classifier import Classifier


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """Plain values for `vcls inspect`."""
    from ..runtime.layers.absent import size_of
    from ..runtime.layers.prepacking import kernels_of

    classifier, mode, source = loaded.classifier, loaded.engine.runner.mode, loaded.classifier.source
    template = loaded.processor.template
    parameters, num_bytes = size_of(classifier.model)
    return {
        "model": loaded.options.model,
        "model_type": source.backbone_config.model_type,
        "model_class": type(classifier.model).__name__,
        "task": loaded.task,
        "format": classifier.architecture.checkpoint_format(classifier.config),
        "plugin": classifier.architecture.name,
        "backbone": type(loaded.engine.runner.backbone).__name__,
        "head": _head_of(classifier),
        "heads": {each["name"]: _describe_head(each) for each in source.settings.get("heads") or ()} or None,
        "adapter": source.adapter.name if source.adapter is not None else None,
        "pooling": loaded.pooler.pooling,
        "embedding": classifier.embedder.description if classifier.embedder is not None else None,
        "num_labels": int(classifier.config.num_labels),
        "id2label": labels_of(classifier.config),
        "problem_type": classifier.config.problem_type,
        "activation": getattr(loaded.pooler.activation, "__name__", type(loaded.pooler.activation).__name__),
        "prompt_template": template.source if template else None,
        "chat_template_prompt": loaded.processor.chat_template_prompt,
        "score_template": loaded.processor.pairs.name if int(classifier.config.num_labels) == 1 else None,
        "reads_images": loaded.processor.media is not None,
        "execution": "whole forward, " + mode.form if mode.whole else mode.form,
        "why_not_packed": mode.reason or None,
        "packed_up_to": mode.checked_up_to,
        "prefix_sharing": loaded.engine.prefix_cache.max_bytes > 0,
        "pruned_last_layer": mode.pruned,
        "attention_kernel": loaded.engine.runner.attention_kernel,
        "matrix_kernels": kernels_of(loaded.engine.runner.backbone) or None,
        "cuda_graphs": loaded.engine.runner.graphs is not None,
        "quantization": loaded.options.quantization,
        "close_call_reach": [round(each.reach, 4) for each in loaded.fallback.boundaries()]
        if loaded.fallback and classifier.has_head
        else None,
        "num_threads": loaded.engine.num_threads or None,
        "max_model_len": loaded.processor.max_model_len,
        "max_num_batched_tokens": loaded.engine.max_num_batched_tokens,
        "parameters": parameters,
        "bytes": num_bytes,
        "dtype": str(loaded.engine.runner.backbone.dtype).removeprefix("torch."),
        "device": str(loaded.engine.runner.device),
        "device_map": _devices(classifier.model) or None,
        "not_optimised": _not_optimised(loaded),
        "tensor_parallel_size": loaded.options.tensor_parallel_size,
        "pipeline_parallel_size": loaded.options.pipeline_parallel_size,
        "data_parallel_size": loaded.options.data_parallel_size,
    }


def _head_of(classifier: Classifier) -> str | None:
    """How its head was made."""
    if classifier.guard is not None:
        return classifier.guard.guard.name
    return str(classifier.source.settings.get("head_method", "existing")) if classifier.has_head else None


def _describe_head(head: Mapping[str, Any]) -> dict[str, Any]:
    """What `vcls inspect` says of one of several heads."""
    return {"head": head["method"], "labels": head["labels"], "problem_type": head["problem_type"]}


def _devices(model: Any) -> dict[str, int]:
    """How many parts each device holds, "disk" among them, where several do."""
    from ..runtime.machine.device import parts_of

    return dict(Counter(str(each) for each in parts_of(model).values()))


def _not_optimised(loaded: LoadedModel) -> str | None:
    """What a model on several devices or processes does without."""
    if loaded.options.pipeline_parallel_size > 1:
        return "beginnings in common are not shared, the last layer is not pruned, one forward a process at a time"
    if loaded.options.tensor_parallel_size > 1:
        return "projections that are split are not joined, products not repacked, one forward at a time"
    if _devices(loaded.classifier.model):
        return "projections are not joined, products not repacked, one forward at a time; weights on disk are read each time"
    return None
