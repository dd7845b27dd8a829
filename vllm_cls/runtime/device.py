"""Where a model runs, in which dtype, and how many tokens a batch holds by default."""

from __future__ import annotations

import torch

from ..errors import ConfigError

# Measured on CPUs: 512 to 2048 tokens a batch are alike, 4096 is slower (outputs leave the cache).
_CPU_TOKENS = 1024
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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for "auto" or a name. On a CPU without AMX bfloat16 runs at half of float32's speed."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def default_batched_tokens(device: torch.device) -> int:
    """Tokens in one forward where the user names no number."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
