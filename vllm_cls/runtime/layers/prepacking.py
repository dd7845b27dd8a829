"""float32 products on a CPU with weights that oneDNN has laid out once, where that beats MKL.

MKL, which torch multiplies with, takes its AVX-512 kernels on its maker's processors only; on others that have
AVX-512, oneDNN is 1.1 to 1.5 times as fast (measured on an EPYC; with AVX2 alone it is slower). The choice goes by
the processor and not by a trial, so that the same machine always gives the same bits.
"""

from __future__ import annotations

import copy
import functools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .fusion import TANH_GELU, Product, linears, weight_of

# The layout is chosen for about so many rows; any number runs.
_ROWS = 512
# Packed weights come on top of the model's own, which stay for whoever looks at them.
_MOST_BYTES = 4 << 30
# A linear layer and the activation behind it, by their names in one module.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("c_fc", "act"), ("dense_h_to_4h", "act"))


def packed_linear(weight: torch.Tensor, bias: torch.Tensor | None, gelu: str | None = None) -> Product:
    """The product `x (…, in)` → `(…, out)` by oneDNN, float32, without gradients. Safe to call from several threads.

    Args:
        weight: `(out, in)`; changes to it after this are not seen.
        bias: `(out,)` or None.
        gelu: "none" (exact) or "tanh", torch's `approximate` of the GELU that follows; None where none follows.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    follows = ("none", "") if gelu is None else ("gelu", gelu)
    run = torch.ops.mkldnn._linear_pointwise
    return functools.partial(run, W=packed, B=bias, attr=follows[0], scalars=[], algorithm=follows[1])


class PackedLayer:
    """The forward of a layer whose product is packed; with gradients, or in a copy of the model, its own.

    Args:
        layer: with a weight and a bias.
        weight: of the layer, `(out, in)`.
        gelu: as for `packed_linear`.
    """

    def __init__(self, layer: nn.Module, weight: torch.Tensor, gelu: str | None = None) -> None:
        bias: Any = layer.bias
        self.layer, self.gelu = layer, gelu
        self.product: Product | None = packed_linear(weight, bias, gelu)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLayer:
        apart = PackedLayer.__new__(PackedLayer)
        apart.layer, apart.gelu, apart.product = copy.deepcopy(self.layer, memo), self.gelu, None
        return apart

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.product is not None and not torch.is_grad_enabled():
            return self.product(x)
        y: torch.Tensor = type(self.layer).forward(self.layer, x)
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)


def prepack(backbone: nn.Module) -> int:
    """Pack the products of the layers whose forward is still their own, each with the GELU that follows it, in place.

    Returns:
        How many layers were changed.
    """
    count, followed = 0, dict(gelus(backbone))
    for _, layer in linears(backbone):
        if "forward" in vars(layer):
            continue
        activation, gelu = followed.get(layer, (None, None))
        layer.forward = PackedLayer(layer, weight_of(layer), gelu)
        if activation is not None:
            activation.forward = same
        count += 1
    return count


def unpack(backbone: nn.Module) -> None:
    """Give modules that `prepack` changed their own forwards back."""
    for module in backbone.modules():
        forward = vars(module).get("forward")
        if forward is same or isinstance(forward, PackedLayer):
            del module.forward


def gelus(backbone: nn.Module) -> Iterator[tuple[nn.Module, tuple[nn.Module, str]]]:
    """Linear layers that a GELU follows, each with that module and torch's `approximate` for it."""
    for module in backbone.modules():
        for first, second in _ACTIVATED:
            layer, activation = getattr(module, first, None), getattr(module, second, None)
            if not isinstance(layer, nn.Module) or layer._forward_hooks:  # what a hook adds comes before the activation
                continue
            if (gelu := _approximate(activation)) is not None:
                yield layer, (activation, gelu)  # type: ignore[misc]  # a module, since it has a GELU's name


def _approximate(activation: Any) -> str | None:
    name = type(activation).__name__
    if name == "GELUActivation":
        return "none"
    return "tanh" if name in TANH_GELU else getattr(activation, "approximate", None) if name == "GELU" else None


def same(x: torch.Tensor) -> torch.Tensor:
    """What an activation does that the product before it has applied."""
    return x


def pays(backbone: nn.Module) -> bool:
    """Whether this model's products are faster so, here."""
    weights = list(backbone.parameters())
    plain = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in weights)
    return plain and onednn_is_faster() and sum(each.numel() * 4 for each in weights) <= _MOST_BYTES


@functools.cache
def onednn_is_faster() -> bool:
    """Whether the processor has AVX-512 and is not of MKL's maker."""
    offered = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return offered and torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _processor()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else platform.processor()
