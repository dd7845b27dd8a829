"""Where a model runs, in which dtype, and how many tokens a batch holds by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CPU_ACTIVATION_BYTES = 12 << 20
_GPU_TOKENS = 16384


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use 'cpu'.")
    return device


def parts_of(model: PreTrainedModel) -> dict[str, Any]:
    """On which devices accelerate keeps the parts of a model, "cpu" and "disk" among them; empty where all is on one."""
    parts: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    return parts if len(set(parts.values())) > 1 or "disk" in parts.values() else {}


def main_device(model: PreTrainedModel) -> torch.device:
    """Where a model gets its inputs: with its parts on several devices, accelerate brings them from there."""
    device: torch.device = model.device
    parts = parts_of(model)
    if not parts:
        return device
    on_gpu = [each for each in parts.values() if each not in ("cpu", "disk")]
    return torch.device(on_gpu[0] if on_gpu else "cpu")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor is in this process: all of it, but for a part of one that several processes share."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor
    return found


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for "auto" or a name.

    On a CPU without AMX "auto" stays exact: bfloat16 runs at half of float32's speed with AVX2, and at 1.6 times with
    AVX512_BF16 (measured).
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return _cuda_dtype(device)
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def _cuda_dtype(device: torch.device) -> torch.dtype:
    """What a card computes fast: bfloat16 from Ampere on, float16 from Volta on. torch emulates bfloat16 on others."""
    if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32


def default_batched_tokens(backbone: PreTrainedModel, device: torch.device) -> int:
    """Tokens in one forward where the user names no number.

    On a CPU as many as keep the widest activation within the caches, 512 to 1024: fewer rows do not reach a
    product's full speed, and more push the activations between products out of the cache (measured).
    """
    if device.type != "cpu":
        return _GPU_TOKENS
    widest = max((width for each in backbone.modules() if (width := _width(each))), default=1)
    tokens = _CPU_ACTIVATION_BYTES // (widest * 4)
    return max(512, min(1024, 1 << max(tokens, 1).bit_length() - 1))


def default_prefix_cache_bytes(device: torch.device) -> int:
    """Memory for keys and values of prompts that begin alike: 512 MiB of a CPU's, a tenth of a GPU's."""
    if device.type == "cpu":
        return 512 << 20
    total: int = torch.cuda.get_device_properties(device).total_memory
    return total // 10


def _width(module: torch.nn.Module) -> int:
    """Outputs of a layer that multiplies by a weight; GPT2's Conv1D calls them `nf`."""
    return int(getattr(module, "out_features", 0) or getattr(module, "nf", 0))
