"""int8 products on a CPU: weights with a scale an output channel, inputs with a scale and a zero a token.

Inputs are quantised when they are seen (as LLM.int8(), arXiv:2208.07339, and torchao's
Int8DynamicActivationInt8Weight do), each token by itself. The product u8 · s8 → s32 is our own in C or oneDNN's
(`torch.ops.onednn.qlinear_pointwise`), which needs nothing but torch: the faster one, for they give the same; scales,
zeros and bias are float32.

Three things keep the results near those of float32:

- An input channel with large values would coarsen all others of its token. Where inputs were watched, a part
  of each channel's range moves into the weights (SmoothQuant, arXiv:2211.10438, with its exponent 0.5).
- What is large of one token alone is spread over its neighbours: both sides of the product are rotated
  (`native.int8.rotated`), which leaves it as it is.
- Before VNNI, processors add two products in 16 bits and cut what does not fit (oneDNN: "Nuances of int8
  computations"). Exact is what keeps two neighbouring weights of one sign within a sum of 128. Halving all
  weights would do that too and cost a bit of each; here only the pairs that break it are cut, at the scale
  that loses least.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..context import current
from ..native.int8 import ZERO, kernels, rotated, rotated_block
from ..native.int8_product import Int8Panels, takes
from ..native.trial import fastest
from .fusion import linears, weight_of
from .prepacking import gelus, same

# Largest sum of two neighbouring weights of one sign: any, or what 255 · 128 < 2¹⁵ allows.
_ANY_PAIR, _EXACT_PAIR = 254, 128
# Scales that are tried, over that of the largest weight at 127.
_SCALES = {_ANY_PAIR: (1.0,), _EXACT_PAIR: (1.0, 1.25, 1.5, 2.0)}
_CHUNK = 256  # rows of a weight that are looked at together, which stay in the cache

# Rows that are multiplied to find the faster product, and the size of a weight below which it does not matter.
_TRIED_ROWS, _FEWEST_WEIGHTS = 192, 1 << 16

Skip = Callable[[str, nn.Module], bool]


class OneDnnProduct:
    """As `Int8Panels`, by oneDNN and the passes of `native.int8`."""

    kernel = "oneDNN"

    def __init__(
        self,
        integers: torch.Tensor,
        weight_scale: torch.Tensor,
        sums: torch.Tensor,
        bias: torch.Tensor,
        gelu: bool = False,
    ) -> None:
        self._weight_scale, self._sums, self._bias, self._gelu = weight_scale, sums, bias, gelu
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(integers), dtype=torch.int32)

    def __call__(self, q: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        y = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, ZERO, self._packed, self._weight_scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return kernels().dequantize(y, scale, offset, self._sums, self._bias, self._gelu)


Int8Product = type[Int8Panels] | type[OneDnnProduct]


@functools.cache
def products() -> dict[str, Int8Product]:
    """Those that there are here, by name, the preferred one first."""
    return ({"C": Int8Panels} if takes(4) else {}) | {"oneDNN": OneDnnProduct}


@functools.cache
def faster_product(inputs: int, outputs: int) -> Int8Product:
    """The faster one here, for a weight `(outputs, inputs)`."""
    found = {name: each for name, each in products().items() if each is OneDnnProduct or takes(inputs)}
    if inputs * outputs < _FEWEST_WEIGHTS:
        return next(iter(found.values()))
    integers, ones = torch.ones(outputs, inputs, dtype=torch.int8), torch.ones(outputs, dtype=torch.float32)
    q = torch.ones(_TRIED_ROWS, inputs, dtype=torch.uint8)
    scale = torch.ones(_TRIED_ROWS, 1, dtype=torch.float32)
    tried = {name: functools.partial(make(integers, ones, ones, ones), q, scale, scale) for name, make in found.items()}
    return found[fastest(f"int8 {inputs} -> {outputs}", tried)]


class Int8Linear:
    """A linear layer in int8: `x (…, in)` → `(…, out)`, in the dtype of `x`. Safe to call from several threads.

    Args:
        weight: `(out, in)`, on the CPU.
        bias: `(out,)` or None.
        input_max: `(in,)`, the largest magnitude seen of each input channel; None leaves inputs as they are.
        gelu: apply the exact one to the result.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        input_max: torch.Tensor | None = None,
        gelu: bool = False,
    ) -> None:
        self._exact, self._gelu = (weight.detach(), bias), gelu
        inputs, outputs = weight.shape[1], weight.shape[0]
        weight = weight.detach().float().contiguous()  # the packing reads no strides
        smooth = weight.new_ones(weight.shape[1]) if input_max is None else _smoothing(weight, input_max)
        self._block = rotated_block(weight.shape[1])
        integers, scale = _round(rotated(weight * smooth, self._block) / self._block, pair_limit())
        self._factor = smooth.reciprocal()
        sums = integers.sum(1, dtype=torch.float32) * scale
        added = weight.new_zeros(outputs) if bias is None else bias.detach().float().clone()
        self._product = faster_product(inputs, outputs)(integers, scale, sums, added, gelu)
        self.kernel = f"int8 in {self._product.kernel}"

    def __deepcopy__(self, memo: dict[int, object]) -> Int8Linear:
        return self  # nothing of it changes, and packed weights cannot be copied

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if current.exact:
            y = F.linear(x, *self._exact)
            return F.gelu(y) if self._gelu else y
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        q, scale, offset = kernels().quantize(rows, self._factor, self._block)
        y = self._product(q, scale, offset)
        return y.view(*x.shape[:-1], y.shape[-1]).to(x.dtype)


def quantize_int8(
    backbone: nn.Module, skip: Skip | None = None, input_max: dict[nn.Module, torch.Tensor] | None = None
) -> int:
    """Swap the forwards of linear layers for int8, each with a GELU that follows it alone, in place.

    A pooler, which reads one token a text, stays.

    Modules keep their parameters. A module whose forward was replaced already is left alone.

    Args:
        skip: `(name, module) → bool`, layers to leave in float32.
        input_max: what `watch_inputs` gave.

    Returns:
        How many layers were swapped.

    Raises:
        ConfigError: this machine has no exact integer product.
    """
    count, followed = 0, _own_gelus(backbone)
    for name, module in linears(backbone):
        if "forward" in vars(module) or (skip is not None and skip(name, module)):
            continue
        seen = None if input_max is None else input_max.get(module)
        activation = followed.get(module)
        module.forward = Int8Linear(weight_of(module), module.bias, seen, activation is not None)  # type: ignore[arg-type]
        if activation is not None:
            activation.forward = same
        count += 1
    return count


def _own_gelus(backbone: nn.Module) -> dict[nn.Module, nn.Module]:
    """Linear layers that an exact GELU follows which is no other layer's, with its module."""
    found = [(layer, activation) for layer, (activation, form) in gelus(backbone) if form == "none"]
    users = Counter(activation for _, activation in found)
    return {layer: activation for layer, activation in found if users[activation] == 1}


@contextmanager
def watch_inputs(backbone: nn.Module) -> Iterator[dict[nn.Module, torch.Tensor]]:
    """Gives the largest magnitude of each input channel, `(in,)` a linear layer, of what the backbone runs within it."""
    seen: dict[nn.Module, torch.Tensor] = {}

    def watch(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        most = args[0].detach().reshape(-1, args[0].shape[-1]).abs().amax(0).float()
        seen[module] = torch.maximum(seen[module], most) if module in seen else most

    handles = [module.register_forward_pre_hook(watch) for _, module in linears(backbone)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@functools.cache
def pair_limit() -> int:
    """The largest sum of two neighbouring weights of one sign whose products are exact here; tried, not looked up.

    Raises:
        ConfigError: not even small weights are exact, or there is no such product.
    """
    try:
        for limit in (_ANY_PAIR, _EXACT_PAIR):
            tried = (
                (each, rows, width) for each in products().values() for rows in (1, 16, 512) for width in (64, 384)
            )
            if all(_exact(limit, *each) for each in tried):
                return limit
    except (RuntimeError, AttributeError) as failure:
        raise ConfigError(f"quantization='int8' needs torch with oneDNN's int8 products: {failure}") from failure
    raise ConfigError("quantization='int8': the integer products of this processor are not exact; use 'none'.")


def _exact(limit: int, make: Int8Product, rows: int, width: int) -> bool:
    """Whether the worst inputs and weights within `limit` give exact sums."""
    first = torch.arange(width).remainder(127) + 1
    weight = torch.stack([first, (limit - first).clamp_max(127)], 1).repeat(1, width // 2)
    weight[1::2] = -weight[1::2]
    weight = weight.to(torch.int8)
    x = torch.full((rows, width), 255, dtype=torch.uint8)
    x[-1, ::2] = 0
    ones, nothing = torch.ones(width, dtype=torch.float32), torch.zeros(width, dtype=torch.float32)
    one_a_row = torch.ones(rows, 1, dtype=torch.float32)
    y = make(weight, ones, nothing, nothing)(x, one_a_row, torch.zeros_like(one_a_row))
    return torch.equal(y.double(), (x.double() - ZERO) @ weight.double().t())


def _smoothing(weight: torch.Tensor, input_max: torch.Tensor) -> torch.Tensor:
    """What each input channel is divided by and its weights are multiplied by, `(in,)`."""
    inputs = input_max.float().clamp_min(float(input_max.mean()) * 1e-2 + 1e-6)
    weights = weight.abs().amax(0)
    return (inputs / weights.clamp_min(float(weights.mean()) * 1e-2 + 1e-6)).sqrt()


def _round(weight: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers `(out, in)` within ±127 and scales `(out,)`, of those tried the ones with the least squared error."""
    parts = [_round_rows(rows, limit) for rows in weight.split(_CHUNK)]
    return torch.cat([integers for integers, _ in parts]), torch.cat([scale for _, scale in parts])


def _round_rows(weight: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    largest = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    best, best_scale, least = torch.zeros_like(weight), largest, torch.full_like(largest, torch.inf)
    for factor in _SCALES[limit]:
        scale = largest * factor
        integers = _cut_pairs((weight / scale).round_(), limit)
        error = (integers * scale).sub_(weight).square_().sum(1, keepdim=True)
        better = error < least
        best = torch.where(better, integers, best)
        best_scale, least = torch.where(better, scale, best_scale), torch.where(better, error, least)
    return best.to(torch.int8), best_scale.squeeze(1)


def _cut_pairs(integers: torch.Tensor, limit: int) -> torch.Tensor:
    """Integers `(out, in)` within ±127, changed in place so that neighbours 2i and 2i + 1 sum to ±`limit` at most."""
    first, second = integers[:, : integers.shape[1] // 2 * 2 : 2], integers[:, 1::2]
    sums = first + second  # beyond ±128 only where both have one sign
    over = sums - sums.clamp(-limit, limit)
    half = (over / 2).trunc_()
    first.sub_(half)
    second.sub_(over.sub_(half))
    return integers
