"""What follows the pooling in a Sentence Transformers folder: dense layers, layer norms, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from ..errors import ModelError
from .files import Checkpoint

Stage = Callable[[torch.Tensor], torch.Tensor]


def normalized(pooled: torch.Tensor) -> torch.Tensor:
    """A state at unit length."""
    return functional.normalize(pooled, dim=-1)


def dense(
    checkpoint: Checkpoint, path: str, settings: Mapping[str, Any], width: int, allow_pickle: bool
) -> tuple[Stage, int]:
    """A dense layer with its activation, and the size of its output.

    Args:
        path: the module's folder.
        settings: its `config.json`.
        width: size of its input.

    Raises:
        ModelError: its weights are missing, damaged or of another shape, or its activation is none of torch's.
    """
    tensors = _tensors(checkpoint, path, allow_pickle)
    weight, bias = (_first(tensors, f"linear.{name}", name, f"dense.{name}") for name in ("weight", "bias"))
    if weight is None or weight.shape[1] != width or (bias is None) == bool(settings.get("bias", True)):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise ModelError(f"{checkpoint.name}: the Dense module in {path} ({shapes}) does not take {width} numbers.")
    activation = _activation(checkpoint, settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    residual = tensors.get("residual.weight")
    adds = bool(settings.get("use_residual"))
    if adds and residual is None and len(weight) != width:
        raise ModelError(f"{checkpoint.name}: the Dense module in {path} has no residual.weight; fetch it again.")

    def stage(pooled: torch.Tensor) -> torch.Tensor:
        made = activation(functional.linear(pooled, weight, bias))
        if not adds:
            return made
        return made + (pooled if residual is None else functional.linear(pooled, residual))

    return stage, len(weight)


def _activation(checkpoint: Checkpoint, name: str) -> Stage:
    kind = getattr(torch.nn.modules.activation, name.rpartition(".")[2], None)
    if name.endswith("linear.Identity"):
        kind = torch.nn.Identity
    if not name.startswith("torch.nn.") or not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ModelError(
            f"{checkpoint.name} has a Dense module with the activation {name!r}, which is none of torch's; it is not run."
        )
    activation: Stage = kind()
    return activation


def layer_norm(checkpoint: Checkpoint, path: str, width: int, allow_pickle: bool) -> Stage:
    """A layer norm; as `dense`."""
    tensors = _tensors(checkpoint, path, allow_pickle)
    weight, bias = tensors.get("norm.weight"), tensors.get("norm.bias")
    if weight is None or bias is None or tuple(weight.shape) != (width,):
        raise ModelError(f"{checkpoint.name}: the LayerNorm module in {path} does not take {width} numbers.")
    return lambda pooled: functional.layer_norm(pooled, (width,), weight, bias)


def _tensors(checkpoint: Checkpoint, path: str, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """A module's parameters, float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = checkpoint.folder / path
    file, pickle = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if file.is_file():
            found = load_file(file)
        elif pickle.is_file() and allow_pickle:
            found = torch.load(pickle, map_location="cpu", weights_only=True)
        else:
            hint = f"; it has {pickle.name}, a pickle: pass --allow-pickle (allow_pickle=True)" * pickle.is_file()
            raise ModelError(f"{checkpoint.name}: {path} has no model.safetensors{hint}.")
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        raise ModelError(
            f"{checkpoint.name}: the weights in {path} cannot be read ({error}); fetch it again."
        ) from error
    tensors = {name: tensor.float() for name, tensor in found.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ModelError(f"{checkpoint.name}: the weights in {path} hold NaN or infinite values; fetch it again.")
    return tensors


def _first(tensors: Mapping[str, torch.Tensor], *names: str) -> torch.Tensor | None:
    return next((tensors[name] for name in names if name in tensors), None)
