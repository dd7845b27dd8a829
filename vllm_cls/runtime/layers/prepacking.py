"""float32 products on a CPU with weights that were laid out once, where that beats torch's plain ones.

Which library is the fastest differs from processor to processor and from shape to shape: torch's plain product is
MKL's, which takes its AVX-512 kernels on its maker's processors only; oneDNN's and our own take a weight that was laid
out once, and a GELU along. So each shape is tried once on a machine (`native.trial`), and the same machine goes on
to give the same bits.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..native.product import compiled, panel_linear
from ..native.trial import fastest
from .fusion import TANH_GELU, Product, joined, linear, linears, weight_of

# oneDNN's layout is chosen for about so many rows; any number runs.
_ROWS = 512
# Rows that are multiplied to find the fastest: enough that laying out a weight is not all that it takes.
_TRIED_ROWS = 192
# Of smaller layers, most of the time goes into calling whatever it is.
_FEWEST_WEIGHTS = 1 << 16
# Packed weights come on top of the model's own, which stay for whoever looks at them.
_MOST_BYTES = 4 << 30
# A linear layer and the activation behind it, by their names in one module.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("c_fc", "act"), ("dense_h_to_4h", "act"))

PLAIN = "torch"


def onednn_linear(weight: torch.Tensor, bias: torch.Tensor | None, gelu: str | None = None) -> Product:
    """As `panel_linear`, by oneDNN."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    follows = ("none", "") if gelu is None else ("gelu", gelu)
    run = torch.ops.mkldnn._linear_pointwise
    product = functools.partial(run, W=packed, B=bias, attr=follows[0], scalars=[], algorithm=follows[1])
    vars(product)["kernel"] = "oneDNN"
    return product


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None, gelu: str | None = None) -> Product:
    """As `panel_linear`, by torch's own passes."""
    product = linear(weight, bias)
    return product if gelu is None else lambda x: F.gelu(product(x), approximate=gelu)


@functools.cache
def kernels() -> dict[str, Callable[..., Product]]:
    """What can multiply here, by name, the preferred ones first."""
    found: dict[str, Callable[..., Product]] = {PLAIN: plain_linear}
    if torch.backends.mkldnn.is_available():
        found["oneDNN"] = onednn_linear
    if compiled() is not None:
        found["C"] = panel_linear
    return found


@functools.cache
def chosen(inputs: int, outputs: int, gelu: str | None = None) -> str:
    """The name of the fastest kernel here for a weight `(outputs, inputs)` and the GELU that follows."""
    if inputs * outputs < _FEWEST_WEIGHTS:
        return PLAIN
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in ((_TRIED_ROWS, inputs), (outputs, inputs), (outputs,))
    )
    with torch.inference_mode():
        products = {name: make(weight, bias, gelu) for name, make in kernels().items()}
        what = f"float32 {inputs} -> {outputs}" + (f", GELU {gelu}" if gelu else "")
        return fastest(what, {name: functools.partial(product, x) for name, product in products.items()})


def packed_linear(weight: torch.Tensor, bias: torch.Tensor | None, gelu: str | None = None) -> Product:
    """The product `x (…, in)` → `(…, out)` by the fastest kernel here, float32, without gradients.

    Args: as for `panel_linear`.
    """
    outputs, inputs = weight.shape
    return kernels()[chosen(inputs, outputs, gelu)](weight, bias, gelu)


def kernels_of(backbone: nn.Module) -> dict[str, int]:
    """How many linear layers each kernel computes; joined ones count as one."""
    found: Counter[str] = Counter()
    shared = {id(each): each for each, _ in joined(backbone)}
    members = {id(each) for group in shared.values() for each in group.linears}
    for group in shared.values():
        found[getattr(group.product, "kernel", PLAIN)] += 1
    for _, layer in linears(backbone):
        if id(layer) not in members:
            forward = vars(layer).get("forward")
            found[getattr(getattr(forward, "product", forward), "kernel", PLAIN)] += 1
    return dict(found.most_common())


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
    """Pack the products of layers whose forward is still their own where that is faster, each with the GELU that follows.

    Returns:
        How many layers were changed.
    """
    count, followed = 0, dict(gelus(backbone))
    for _, layer in linears(backbone):
        if "forward" in vars(layer):
            continue
        activation, gelu = followed.get(layer, (None, None))
        outputs, inputs = weight_of(layer).shape
        if chosen(inputs, outputs, gelu) == PLAIN:
            continue
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
    """Whether this model's products may be packed: there are kernels for them here, and memory."""
    weights = list(backbone.parameters())
    plain = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in weights)
    return plain and len(kernels()) > 1 and sum(each.numel() * 4 for each in weights) <= _MOST_BYTES
