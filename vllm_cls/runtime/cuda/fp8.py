"""FP8 weights and activations through torchao: a scale a token and a scale a row of weights.

A scale a tensor would be faster and make a text's result depend on what shares its batch.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ..layers.fusion import unfuse

_FIRST_CAPABILITY = (8, 9)  # Ada, Hopper and later
_MULTIPLE = 16  # of a product's inner and outer width


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Called before a model is loaded.

    Raises:
        ConfigError: the device has no FP8, torchao is not there, or the dtype is not the one it quantizes from.
    """
    needs = "quantization='fp8' needs a CUDA device of compute capability 8.9 or more"
    if device.type != "cuda":
        raise ConfigError(f"{needs}; this runs on {device.type}. Use quantization='none'.")
    capability = torch.cuda.get_device_capability(device)
    if capability < _FIRST_CAPABILITY:
        raise ConfigError(f"{needs}; {device} has {capability[0]}.{capability[1]}. Use quantization='none'.")
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"quantization='fp8' starts from bfloat16 weights; leave out dtype={name!r}.")
    _torchao()


def apply_fp8(backbone: nn.Module) -> int:
    """Quantize a backbone's linear layers in place; embeddings, norms, its pooler and the head stay as they are.

    Projections that were joined are taken apart first: their joined weight would go on running as it is.

    Returns:
        How many layers run in FP8 now.

    Raises:
        ConfigError: none can.
    """
    ao = _torchao()
    unfuse(backbone)
    chosen = [module for name, module in backbone.named_modules() if quantizes(module, name)]
    if not chosen:
        raise ConfigError("quantization='fp8': this model has no linear layers that FP8 takes; use 'none'.")
    config = ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
    ao.quantize_(backbone, config, filter_fn=quantizes)
    return len(chosen)


def quantizes(module: nn.Module, name: str) -> bool:
    """Whether a module runs in FP8: a linear layer outside the pooler, of widths that the products take."""
    if type(module) is not nn.Linear or "pooler" in name.split("."):
        return False
    return module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise ConfigError("quantization='fp8' needs torchao: pip install 'vllm-cls[fp8]'.") from error
