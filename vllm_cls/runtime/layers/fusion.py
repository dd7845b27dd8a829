"""Fewer, larger products: projections that read the same input run as one; a quicker form of one activation.

The modules stay where they are, with their parameters as views of the joined weight, so that the model can
still be inspected and saved; only their forwards change. Results differ by rounding, which the self-check
holds to its tolerance.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ..context import current

Product = Callable[[torch.Tensor], torch.Tensor]
MakeProduct = Callable[["torch.Tensor", "torch.Tensor | None"], Product]

# Siblings that get the same input. Where one is called with another input after all, it runs by itself. Gate and up
# projections are not among them: their joint output leaves the cache (measured).
_QUERY_KEY_VALUE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
# Below this width a product is not worth a form of its own, and is often one that decides (a router of experts).
_NARROW = 32
TANH_GELU = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "FastGELUActivation")


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """The plain product `x (…, in)` → `(…, out)` with a weight `(out, in)`."""
    return functools.partial(F.linear, weight=weight, bias=bias)


class SharedInput:
    """Queries, keys and values of the same input: the first to be called computes all of them as one product.

    Args:
        linears: with equal `in_features`, all with a bias or all without; the first gives the queries, which the
            pruned last layer can do without.
        make: makes the product of a weight and a bias.
    """

    def __init__(self, linears: Sequence[nn.Linear], make: MakeProduct) -> None:
        biases: list[torch.Tensor | None] = [each.bias for each in linears]
        present = [each.data for each in biases if each is not None]
        weight: torch.Tensor = torch.cat([each.weight.data for each in linears])
        bias: torch.Tensor | None = torch.cat(present) if present else None
        self.linears = list(linears)
        self.sizes = [each.out_features for each in linears]
        self.starts = [sum(self.sizes[:index]) for index in range(len(linears))]
        for each, start, size in zip(linears, self.starts, self.sizes, strict=True):
            each.weight.data = weight[start : start + size]
            if bias is not None:
                each.bias.data = bias[start : start + size]
        self.weight, self.bias = weight, bias
        self._memo = threading.local()
        self.remake(make)

    def remake(self, make: MakeProduct, *, whole: bool = True) -> None:
        """Take another product, of the same weight and bias.

        Args:
            whole: False takes it only for keys and values without queries, which the pruned last layer asks for.
        """
        self._make = make
        vars(self).pop("_without_query", None)
        if whole:
            self.product: Product | None = make(self.weight, self.bias)

    @functools.cached_property
    def _without_query(self) -> Product:
        """Made when it is first needed, which is in the last layer only."""
        start = self.sizes[0]
        return self._make(self.weight[start:], None if self.bias is None else self.bias[start:])

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedInput:
        """For a copy of the model, whose linears have weights of their own, which are not joined."""
        apart = SharedInput.__new__(SharedInput)
        apart.product = None
        return apart

    def part(self, module: nn.Linear, index: int, x: torch.Tensor) -> torch.Tensor:
        """What linear `index` gives for `x`."""
        joined = self.product
        if joined is None or torch.is_grad_enabled() or (index and getattr(self._memo, "input", None) is not x):
            return F.linear(x, module.weight, module.bias)
        if index == 0:
            row = current.row
            if row is not None and row.wants_keys_only:
                self._memo.input, self._memo.output, self._memo.shift = x, self._without_query(x), self.sizes[0]
                return x.new_zeros(1).expand(*x.shape[:-1], self.sizes[0])
            self._memo.input, self._memo.output, self._memo.shift = x, joined(x), 0
        start = self.starts[index] - self._memo.shift
        output: torch.Tensor = self._memo.output[..., start : start + self.sizes[index]]
        if index == len(self.sizes) - 1:
            del self._memo.input, self._memo.output
        return output


def fuse(backbone: nn.Module, make: MakeProduct = linear) -> int:
    """Join the projections of a backbone and quicken its activations, in place.

    Args:
        make: makes the products.

    Returns:
        How many modules were changed.
    """
    count = 0
    on_cpu = all(each.device.type == "cpu" for each in backbone.parameters())
    for module in list(backbone.modules()):
        for group in _groups(module):
            shared = SharedInput(group, make)
            for index, each in enumerate(group):
                each.forward = functools.partial(shared.part, each, index)  # type: ignore[method-assign]
            count += len(group)
        plain = type(module).__name__ in TANH_GELU and "forward" not in vars(module)
        if on_cpu and plain:  # a GPU has one kernel for it
            module.forward = tanh_gelu
            count += 1
    return count


def linears(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that multiply by a weight and nothing else: subclasses may do more. A pooler reads one token a text."""
    for name, module in backbone.named_modules():
        plain = type(module) in (nn.Linear, Conv1D) and not name.startswith("pooler.")
        if plain and min(weight_of(module).shape) >= _NARROW:
            yield name, module


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight `(out, in)` of a linear layer; GPT2's Conv1D holds it transposed."""
    weight = module.get_parameter("weight")
    return weight.t() if isinstance(module, Conv1D) else weight


def joined(backbone: nn.Module) -> Iterator[tuple[SharedInput, nn.Module]]:
    """The joined projections of a backbone, each with the first of its linears."""
    for module in backbone.modules():
        shared = getattr(getattr(vars(module).get("forward"), "func", None), "__self__", None)
        if isinstance(shared, SharedInput) and shared.linears[0] is module:
            yield shared, module


def unfuse(backbone: nn.Module) -> None:
    """Give modules that `fuse` changed their own forwards back."""
    for module in backbone.modules():
        forward = vars(module).get("forward")
        if forward is tanh_gelu or isinstance(getattr(forward, "func", None), MethodType):
            del module.forward


def _groups(module: nn.Module) -> Iterator[list[nn.Linear]]:
    for names in _QUERY_KEY_VALUE:
        found: list[Any] = [getattr(module, name, None) for name in names]
        # One whose forward was replaced does more: of a part of its weight, or of a weight that is elsewhere.
        if not all(type(each) is nn.Linear and "forward" not in vars(each) for each in found):
            continue
        same_input = len({each.in_features for each in found}) == 1
        same_form = len({(each.bias is None, each.weight.dtype, each.weight.device) for each in found}) == 1
        if same_input and same_form:
            yield found


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form as `x · sigmoid(2u)`, since `(1 + tanh u) / 2 = sigmoid 2u`: a third of the passes and no tanh.

    `u = sqrt(2 / pi) · (x + 0.044715 x³)`; `x` has any shape.
    """
    if torch.is_grad_enabled():  # what follows writes over what a gradient needs
        return F.gelu(x, approximate="tanh")
    inner = torch.addcmul(x, torch.mul(x, x), x, value=0.044715)
    return inner.mul_(1.5957691216057308).sigmoid_().mul_(x)
