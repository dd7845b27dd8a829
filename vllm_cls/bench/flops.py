"""Multiply-adds of a classifier: what the model as written requires, and what our engine computed of it.

Counted are the linear layers, found on the module tree, and the two products of attention (scores, and values by
scores). Element-wise work, norms, embeddings and recurrent states are not counted, nor experts that are no linear layers.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEY_VALUE = re.compile(r"(^|_)(k|v|key|value)(_proj|_lin)?$")
_FUSED = re.compile(r"^(c_attn|qkv|qkv_proj|Wqkv|query_key_value|in_proj)$")


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Args:
        width: heads × size of a head.
        causal: a token sees itself and those before it.
        window: how many tokens it sees at most, itself included on a causal layer, half of it to each side on
            another; None for all.
    """

    width: int
    causal: bool
    window: int | None = None

    def pairs(self, length: int) -> int:
        """(query, key) pairs of one sequence."""
        place = np.arange(length)
        if self.causal:
            return int(np.minimum(place + 1, self.window or length).sum())
        half = length if self.window is None else self.window // 2
        return int((np.minimum(place + half, length - 1) - np.maximum(place - half, 0) + 1).sum())


@dataclass(frozen=True)
class TokenCounts:
    """What an engine did with some sequences.

    Args:
        tokens: tokens that went through the layers, without padding.
        pruned: of these, how many had keys and values only in the last layer.
        saved_pairs: (query, key) pairs of a causal layer that were not computed, since a prefix was shared.
    """

    tokens: int
    pruned: int = 0
    saved_pairs: int = 0


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a classifier.

    Args:
        per_token: linear layers of all layers, for one token.
        last_layer: of these, those of the last layer.
        last_key_value: of these, those that give keys and values.
        per_sequence: the head's, for one sequence.
        attention: of each layer, in order.
        shapes: `(inputs, outputs)` of the linear layers that see every token → how many there are.
    """

    per_token: int
    last_layer: int
    last_key_value: int
    per_sequence: int
    attention: tuple[Attention, ...]
    shapes: dict[tuple[int, int], int]

    def required(self, lengths: Sequence[int]) -> int:
        """For sequences of these lengths, each token through all layers, and no padding."""
        products = sum(2 * layer.width * layer.pairs(length) for layer in self.attention for length in lengths)
        return self.per_token * sum(lengths) + self.per_sequence * len(lengths) + products

    def executed(self, lengths: Sequence[int], counts: TokenCounts) -> int:
        """What is left of that after sharing and pruning.

        A pruned last layer has one query a sequence. Windows are not looked at where prefixes are shared.
        """
        total = self.per_token * counts.tokens - (self.last_layer - self.last_key_value) * counts.pruned
        total += self.per_sequence * len(lengths)
        for place, layer in enumerate(self.attention):
            if counts.pruned and place == len(self.attention) - 1:
                pairs = sum(min(length, layer.window or length) for length in lengths)
            else:
                pairs = max(0, sum(map(layer.pairs, lengths)) - counts.saved_pairs)
            total += 2 * layer.width * pairs
        return total


def cost_of(model: PreTrainedModel) -> Cost:
    """Read the cost off the module tree; the model may be on the meta device."""
    config = model.config.get_text_config()
    layers, repeats = _layers(model, int(getattr(config, "num_hidden_layers", 0)))
    inside = {id(module) for layer in layers for module in layer.modules()}
    shapes: Counter[tuple[int, int]] = Counter()
    for layer in layers:
        for _, shape in _linears(layer):
            shapes[shape] += repeats
    per_sequence = 0
    backbone, in_head = model.base_model, ("pooler", "classifier", "score", "head")
    of_backbone = {id(module) for module in backbone.modules()} if backbone is not model else set()
    for name, module in model.named_modules():
        outside = None if id(module) in inside else _shape(module)
        if outside is None:
            continue
        if id(module) in of_backbone and not any(part in name for part in in_head):
            shapes[outside] += 1  # such as a projection of the embeddings
        else:
            per_sequence += outside[0] * outside[1]
    heads = getattr(config, "num_attention_heads", None)  # models with a recurrent state have none
    width, fused = 0, 0.0
    if isinstance(heads, int):
        width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        fused = _fused_share(heads, int(getattr(config, "num_key_value_heads", None) or heads))
    last = list(_linears(layers[-1])) if layers else []
    return Cost(
        per_token=sum(inputs * outputs * count for (inputs, outputs), count in shapes.items()),
        last_layer=sum(inputs * outputs for _, (inputs, outputs) in last),
        last_key_value=sum(_key_value(name, shape, fused) for name, shape in last),
        per_sequence=per_sequence,
        attention=tuple(_attention(config, layers, len(layers) * repeats, width)) if width else (),
        shapes=dict(shapes),
    )


def shared_prefixes(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """What a trie over token ids saves at best: `(tokens, (query, key) pairs of a causal layer)`."""
    tokens = pairs = 0
    ordered = sorted(map(tuple, sequences))
    for before, after in itertools.pairwise(ordered):
        depth = 0
        for a, b in zip(before, after, strict=False):
            if a != b:
                break
            depth += 1
        tokens += depth
        pairs += depth * (depth + 1) // 2
    return tokens, pairs


def _layers(model: nn.Module, count: int) -> tuple[list[nn.Module], int]:
    """The list of layers, and how often each runs (ALBERT has one layer, run many times)."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        return [], 1
    stack = next((each for each in stacks if len(each) == count), None) or max(stacks, key=len)
    return list(stack), max(1, count // len(stack))


def _linears(layer: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, module in layer.named_modules():
        shape = _shape(module)
        if shape is not None:
            yield name.rpartition(".")[2], shape


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """`(inputs, outputs)` of a linear layer; transformers' Conv1D stores its weight the other way round."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        inputs, outputs = module.weight.shape  # type: ignore[misc]
        return int(inputs), int(outputs)
    return None


def _fused_share(heads: int, key_value_heads: int) -> float:
    """The share of keys and values in a layer that gives queries, keys and values at once."""
    return 2 * key_value_heads / (heads + 2 * key_value_heads)


def _key_value(name: str, shape: tuple[int, int], fused: float) -> int:
    if _KEY_VALUE.search(name):
        return shape[0] * shape[1]
    return round(shape[0] * shape[1] * fused) if _FUSED.match(name) else 0


def _attention(config: Any, layers: Sequence[nn.Module], count: int, width: int) -> Iterator[Attention]:
    flags = [module.is_causal for layer in layers for module in layer.modules() if hasattr(module, "is_causal")]
    causal = any(flags) if flags else bool(getattr(config, "is_decoder", False))
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    for place in range(count):
        sliding = place < len(kinds) and "sliding" in kinds[place]
        yield Attention(width, causal, window if sliding else None)
