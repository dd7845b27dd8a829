"""Heads that are stored already: the checkpoint's own, its LoRA adapter's, or one in a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_cls.architecture import CLASSIFIERS, DECISIONS, OWN_MODEL_TYPE, Head, HeadRequest, HeadResult, LinearHead
from vllm_cls.checkpoint.peft_adapter import PeftAdapter
from vllm_cls.errors import ConfigError, ModelError

from ..classifiers.seq_cls import LinearClassifier, own_settings
from ..classifiers.sequence_settings import sequences_from
from ..writer.merging import adapter_head

if TYPE_CHECKING:
    import torch

_LABELS_BY_DEFAULT = 2


def _labels(request: HeadRequest, num_labels: int) -> list[str]:
    """The requested labels, else the config's, else LABEL_0 … for each row of the head.

    Raises:
        ModelError: their number is not the head's.
    """
    config = request.config
    count = request.options.get("num_labels") or len(request.labels)
    states_labels = _is_classifier(request) and _states_labels(request)
    if request.labels:
        labels = list(request.labels)
    elif not count and (states_labels or config.num_labels == num_labels):
        labels = [config.id2label[index] for index in sorted(config.id2label)]
    else:
        labels = [f"LABEL_{index}" for index in range(count or num_labels)]
    if len(labels) != num_labels:
        raise ModelError(
            f"the head has {num_labels} rows, but there are {len(labels)} labels ({', '.join(labels[:5])}); give --labels "
            f"in the order of its rows, or hf_overrides={{'num_labels': {num_labels}}} (--hf-overrides)."
        )
    return labels


def _states_labels(request: HeadRequest) -> bool:
    """Whether the config states labels or their number; transformers assumes two where it does not."""
    raw = request.checkpoint.raw_config
    return request.config.num_labels != _LABELS_BY_DEFAULT or not raw.keys().isdisjoint(("id2label", "num_labels"))


def _is_classifier(request: HeadRequest) -> bool:
    return next(iter(request.config.architectures or ()), "").endswith(
        (CLASSIFIERS[request.architecture.task], DECISIONS)
    )


def existing_head(request: HeadRequest) -> HeadResult:
    """The head that the checkpoint has, or its LoRA adapter; one with a `score.bias` that the class lacks keeps it.

    Raises:
        ModelError: its size disagrees with the labels.
    """
    checkpoint, config = request.checkpoint, request.config
    final = request.architecture.final_linear
    adapter: PeftAdapter | None = request.options.get("adapter")
    if adapter is not None and adapter.head_rows("score" if config.model_type == OWN_MODEL_TYPE else final) is not None:
        return adapter_head(request, adapter)
    if config.model_type == OWN_MODEL_TYPE:
        rows = _own_rows(request)
        labels = list(request.labels) if rows is None else _labels(request, rows)
        return HeadResult(
            Head("existing", description="The head that the checkpoint had.", trained=True),
            labels,
            request.problem_type,
        )
    weight, bias = f"{final}.weight", f"{final}.bias"
    if weight in checkpoint.locations:
        labels = _labels(request, _rows(request, weight))
        for name in (weight, bias):
            if name in checkpoint.locations and not bool(checkpoint.tensor(name).isfinite().all()):
                raise ModelError(
                    f"{checkpoint.name}: the weight {name} holds NaN or infinite values; fetch or train it again."
                )
        ours = issubclass(request.architecture.classifier_class(type(config)), LinearClassifier)
        # transformers' decoders have a bias where they label tokens, and none where they label sequences
        lacks_bias = request.architecture.task == "classify" and final == "score" and not ours
        if bias in checkpoint.locations and lacks_bias:
            linear = LinearHead(checkpoint.tensor(weight), checkpoint.tensor(bias))
            return HeadResult(
                Head("existing", linear=linear, description="The checkpoint's `score` layer, its bias included."),
                labels,
                request.problem_type,
            )
    elif checkpoint.locations and not _is_classifier(request):
        raise ModelError(
            f"{checkpoint.name} has no {weight}, so it has no head; make one (`vcls convert --help` lists the heads)."
        )
    else:
        labels = list(request.labels)
    return HeadResult(
        Head("existing", description="The head that the checkpoint had.", trained=True), labels, request.problem_type
    )


def _own_rows(request: HeadRequest) -> int | None:
    """The number of labels of a checkpoint of our own type; None with several named heads, or where the shape does not say."""
    settings, names = own_settings(request.config), request.checkpoint.locations
    texts = sequences_from(settings)
    if texts is not None:
        return len(texts.texts)
    found = next((name for name in ("combine.weight", "score.weight") if name in names), None)
    return None if found is None else _rows(request, found)


def _rows(request: HeadRequest, name: str) -> int:
    return request.checkpoint.shape(name)[0]


def head_from_file(request: HeadRequest) -> HeadResult:
    """A head from `--head-weights FILE.safetensors`.

    The file holds `weight` `(num_labels, hidden)` and perhaps `bias`, under those names or `score.…`; or all
    of the classifier class's own head parameters, under its names.

    Raises:
        ConfigError: no file was given.
        ModelError: names or shapes do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = request.options.get("head_weights")
    if not path:
        raise ConfigError("--head file needs --head-weights FILE.safetensors.")
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        raise ModelError(f"--head-weights {path}: not an existing .safetensors file.")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ModelError(f"--head-weights {path}: not readable as safetensors ({error}).") from error
    bare = {
        name.removeprefix("score.").removeprefix(f"{request.architecture.final_linear}."): t
        for name, t in tensors.items()
    }
    if set(bare) <= {"weight", "bias"} and "weight" in bare:
        return _linear(request, path, bare["weight"], bare.get("bias"))
    return _by_class_names(request, path, tensors)


def _linear(request: HeadRequest, path: str, weight: torch.Tensor, bias: torch.Tensor | None) -> HeadResult:
    hidden = request.config.get_text_config().hidden_size
    if weight.ndim != 2 or weight.shape[1] != hidden:
        raise ModelError(f"{path}: weight has shape {tuple(weight.shape)}; this model needs (num_labels, {hidden}).")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ModelError(
            f"{path}: bias has shape {tuple(bias.shape)}; weight's {tuple(weight.shape)} asks for ({weight.shape[0]},)."
        )
    labels = _labels(request, weight.shape[0])
    description = f"A linear head read from `{Path(path).name}`."
    return HeadResult(
        Head("file", linear=LinearHead(weight, bias), description=description), labels, request.problem_type
    )


def _by_class_names(request: HeadRequest, path: str, tensors: dict[str, torch.Tensor]) -> HeadResult:
    from .random_head import head_parameters

    labels = _labels(request, len(request.labels) or request.config.num_labels)
    expected = head_parameters(request, len(labels))
    if set(tensors) != set(expected):
        raise ModelError(
            f"{path} holds {', '.join(sorted(tensors))}; this model's head is {', '.join(sorted(expected))}."
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{path}: {name} has shape {tuple(tensor.shape)}; this model needs {tuple(expected[name].shape)}."
            )
    description = f"The class's own head, read from `{Path(path).name}`."
    return HeadResult(Head("file", tensors=tensors, description=description), labels, request.problem_type)
