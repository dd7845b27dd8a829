"""The towers of a model that read images and videos, and what its forward gets of their outputs."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .batch import Batch, ForwardItem, to_device
from .counters import Counters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..media.features import MediaInput

_CACHE_BYTES = 1 << 28
_TOWER_BYTES = 1 << 26  # of pixels that a tower reads at once; of one image at least
_TOKENS = ("pooler_output", "last_hidden_state")  # the first that is there has the tokens of images
_LAYERS = "deepstack_features"
OUTPUTS = "mm_encoder_outputs"


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a tower made of one input: fields of the output that transformers' forward takes, and its class."""

    kind: type[Any]
    fields: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in _tensors(self.fields))


class Towers:
    """Encodes each input once, as long as its output is held by somebody or among the recent ones.

    Args:
        model: the whole model behind the head, which has the towers and takes their outputs.
        counters: count what is encoded.
        max_bytes: of recent outputs.
    """

    def __init__(self, model: PreTrainedModel, counters: Counters, max_bytes: int = _CACHE_BYTES) -> None:
        self.model = model
        self._counters = counters
        self._max_bytes = max_bytes
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self._recent: OrderedDict[tuple[str, str], Encoded] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[tuple[str, str], Encoded] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self.num_bytes = 0

    @property
    def takes_outputs(self) -> bool:
        """Whether the model's forward takes what its towers gave before."""
        return OUTPUTS in self._accepted

    # -- what the towers give ----------------------------------------------------------------------------

    def encode(self, inputs: Iterable[MediaInput]) -> list[Encoded]:
        """Outputs for inputs, in their order; those that are missing run, as many at once as go together."""
        wanted = list(inputs)
        with self._lock, torch.inference_mode():
            known = {each: found for each in wanted if (found := self._alive.get(each.identity)) is not None}
            missing = [each for each in dict.fromkeys(wanted) if each not in known]
            for group in _groups(missing):
                known.update(zip(group, self._run(group), strict=True))
            for each in missing:
                self._alive[each.identity] = known[each]
            for each in known:
                self._remember(each.identity, known[each])
        return [known[each] for each in wanted]

    def clear(self) -> None:
        """Forget what no forward holds."""
        with self._lock:
            self._recent.clear()
            self.num_bytes = 0

    def _remember(self, key: tuple[str, str], encoded: Encoded) -> None:
        if key not in self._recent:
            self._recent[key] = encoded
            self.num_bytes += encoded.num_bytes
        self._recent.move_to_end(key)
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._recent.popitem(last=False)[1].num_bytes

    def _run(self, group: Sequence[MediaInput]) -> list[Encoded]:
        """Outputs of inputs that one call of a tower can read; each by itself where its output does not come apart."""
        if group[0].features is not None:
            return [self._given(each.features) for each in group if each.features is not None]
        read = getattr(self.model, f"get_{group[0].modality}_features")
        names = inspect.signature(read).parameters
        tensors = {name: self._to_model(_behind_each_other(name, group)) for name in group[0].tensors if name in names}
        output = read(**tensors, return_dict=True)
        self._counters.add(num_encoded=len(group))
        fields = {name: output[name] for name in (*_TOKENS, _LAYERS) if output.get(name) is not None}
        fields = {name: fields[name] for name in (_tokens_name(fields), _LAYERS) if name in fields}
        counts = [each.count for each in group]
        if len(group) > 1 and any(len(each) != sum(counts) for each in _by_image(fields)):
            self._counters.add(num_encoded=-len(group))
            return [self._run([each])[0] for each in group]
        return [Encoded(type(output), each) for each in _split(fields, counts)]

    def _given(self, features: torch.Tensor) -> Encoded:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return Encoded(BaseModelOutputWithPooling, {"pooler_output": (self._to_model(features),)})

    def _to_model(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = to_device(tensor, self.model.device)
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor

    # -- what the model's forward gets -------------------------------------------------------------------

    def inputs(self, works: Sequence[ForwardItem], batch: Batch, *, packed: bool, pixels: bool = False) -> Batch:
        """A batch of prompts with media among them.

        Args:
            packed: the batch is one row, and its positions are given; else the model finds them.
            pixels: the model's own forward runs its towers.
        """
        made = dict(batch.inputs)
        read = [each for work in works if work.sequence.media for each in work.media_inputs()]
        if pixels:
            made |= self._pixels(read)
        else:
            encoded = self.encode(read)
            made[OUTPUTS] = {
                modality: _joined([one for each, one in zip(read, encoded, strict=True) if each.modality == modality])
                for modality in dict.fromkeys(each.modality for each in read)
            }
        numbers = self._token_numbers(works, batch, packed)
        made |= {name: value for name, value in numbers.items() if name in self._accepted}
        if packed and hasattr(self.model, "get_rope_index"):
            made["position_ids"] = torch.cat([self._positions(each) for each in works], dim=-1)
        elif not packed:
            grids = self._pixels(read)
            made |= {name: grids[name] for name in _OF_POSITIONS if name in grids and name in self._accepted}
        return replace(batch, inputs=made)

    def _pixels(self, read: Sequence[MediaInput]) -> dict[str, torch.Tensor]:
        names = dict.fromkeys(name for each in read for name in each.tensors)
        return {
            name: self._to_model(_behind_each_other(name, [each for each in read if name in each.tensors]))
            for name in names
            if name in self._accepted
        }

    def _token_numbers(self, works: Sequence[ForwardItem], batch: Batch, packed: bool) -> dict[str, torch.Tensor]:
        """Each token's modality, in the batch's layout, under the names that models have for it."""
        rows = {"mm_token_type_ids": [_types(each) for each in works]}
        if any(each.sequence.media and each.sequence.media.text_types for each in works):
            rows["token_type_ids"] = [_text_types(each) for each in works]
        width = batch.inputs["input_ids"].shape[-1]
        made = {}
        for name, values in rows.items():
            if packed:
                values = [[number for each in values for number in each]]
            made[name] = to_device(
                torch.tensor([[*each, *[0] * (width - len(each))] for each in values]), self.model.device
            )
        return made

    def _positions(self, work: ForwardItem) -> torch.Tensor:
        """Rotary positions `(parts, 1, num_tokens)` of the tokens that a work computes, counted from its first one."""
        sequence, start = work.sequence, work.num_cached_tokens
        device = self.model.device
        if sequence.media is None:
            return torch.tensor(sequence.position_ids[start:], device=device).expand(3, 1, -1)
        index: Any = self.model.get_rope_index
        given = {
            **self._pixels([each.input for each in sequence.media.spans]),
            "input_ids": torch.tensor([sequence.token_ids], device=device),
            "mm_token_type_ids": torch.tensor([sequence.media.types], device=device),
        }
        names = inspect.signature(index).parameters
        positions: torch.Tensor = index(**{name: value for name, value in given.items() if name in names})[0]
        return positions[..., start:]


_OF_POSITIONS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def _types(work: ForwardItem) -> Sequence[int]:
    media = work.sequence.media
    return (0,) * len(work) if media is None else media.types[work.num_cached_tokens :]


def _text_types(work: ForwardItem) -> Sequence[int]:
    media = work.sequence.media
    types = (0,) * len(work.sequence) if media is None or not media.text_types else media.text_types
    return types[work.num_cached_tokens :]


def _groups(inputs: Sequence[MediaInput]) -> Iterable[list[MediaInput]]:
    """Inputs that a tower can read at once: of one modality, whose tensors join along their first axis."""
    groups: dict[Any, list[list[MediaInput]]] = {}
    for each in inputs:
        shapes = tuple(sorted((name, tensor.shape[1:], tensor.dtype) for name, tensor in each.tensors.items()))
        found = groups.setdefault((each.modality, shapes, each.features is None), [[]])
        if found[-1] and _size(found[-1]) + _size([each]) > _TOWER_BYTES:
            found.append([])
        found[-1].append(each)
    return [group for found in groups.values() for group in found]


def _size(inputs: Sequence[MediaInput]) -> int:
    return sum(tensor.numel() * tensor.element_size() for each in inputs for tensor in each.tensors.values())


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Along the first axis, each filled with zeros to the largest: so transformers' processors join images of other sizes."""
    largest = [max(sizes) for sizes in zip(*(each.shape[1:] for each in tensors), strict=True)]
    return torch.cat([_filled(each, largest) for each in tensors])


def _filled(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    missing = [(0, size - own) for size, own in zip(sizes, tensor.shape[1:], strict=True)]
    if not any(each for _, each in missing):
        return tensor
    return torch.nn.functional.pad(tensor, [each for pair in reversed(missing) for each in pair])


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif value is not None:
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _behind_each_other(name: str, inputs: Sequence[MediaInput]) -> torch.Tensor:
    """A tensor of several inputs, as the model's processor would make it of them all: most go along the first axis."""
    tensors = [each.tensors[name] for each in inputs]
    if name in _PLACES:  # among the patches of all
        patches = [each.tensors[_PLACES[name]].shape[:2].numel() for each in inputs]
        starts = [sum(patches[:index]) for index in range(len(inputs))]
        tensors = [torch.where(each < 0, each, each + start) for each, start in zip(tensors, starts, strict=True)]
    in_one_image = name.startswith("pixel_values") and _SIZES_IN_ONE_IMAGE in inputs[0].tensors
    return torch.cat(tensors, dim=-1) if in_one_image else _stacked(tensors)


_PLACES = {"image_token_pooling": "pixel_values", "video_token_pooling": "pixel_values_videos"}  # Molmo 2
_SIZES_IN_ONE_IMAGE = "target_sizes"  # MiniCPM-V: patches of all images side by side


def _tokens_name(fields: Mapping[str, Any]) -> str:
    return next((name for name in _TOKENS if name in fields), _TOKENS[0])


def _by_image(fields: Mapping[str, Any]) -> list[Any]:
    """What has one part an image: the output itself, and of each layer that goes on beside it (Qwen3-VL) its own."""
    return [fields[_tokens_name(fields)], *fields.get(_LAYERS, ())]


def _split(fields: Mapping[str, Any], counts: Sequence[int]) -> list[dict[str, Any]]:
    """The fields of each input, where these are of so many images."""
    if len(counts) == 1:
        return [dict(fields)]
    made, start = [], 0
    for count in counts:
        here = slice(start, start + count)
        start += count
        name = _tokens_name(fields)
        one: dict[str, Any] = {name: _part(fields[name], here)}
        if _LAYERS in fields:
            one[_LAYERS] = [_part(layer, here) for layer in fields[_LAYERS]]
        made.append(one)
    return made


def _part(value: Any, here: slice) -> Any:
    """A part that holds no more memory than it is long."""
    return value[here].clone() if isinstance(value, torch.Tensor) else tuple(each.clone() for each in value[here])


def _joined(parts: Sequence[Encoded]) -> Any:
    """One output of several."""
    name = _tokens_name(parts[0].fields)
    fields: dict[str, Any] = {name: _together([each.fields[name] for each in parts])}
    if _LAYERS in parts[0].fields:
        layers = zip(*(each.fields[_LAYERS] for each in parts), strict=True)
        fields[_LAYERS] = [_together(list(layer)) for layer in layers]
    return parts[0].kind(**fields)


def _together(values: Sequence[Any]) -> Any:
    if all(isinstance(each, torch.Tensor) for each in values):
        return torch.cat(list(values))
    return tuple(one for each in values for one in ([each] if isinstance(each, torch.Tensor) else each))
