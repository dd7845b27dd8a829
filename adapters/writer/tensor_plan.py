"""Plans the weight files of a converted checkpoint: their tensors, and where each one is copied from."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_cls.checkpoint.files import unwrapped
from vllm_cls.errors import ModelError

from .safetensors_stream import CODES, DTYPES, FLOATS, Computed, Piece, Stored, file_size, read_header

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from vllm_cls.architecture import ConversionPlan

    from .merging import Change
    from .tensor_names import TensorNames


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file to make.

    Args:
        pieces: the tensors in it.
        copy_of: the file of the source that it equals byte for byte, or None.
    """

    pieces: tuple[Piece, ...]
    copy_of: Path | None = None

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return self.copy_of.stat().st_size if self.copy_of else file_size(self.pieces)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class TensorPlan:
    """The weight files of a conversion, and what differs from the source.

    Args:
        files: by name.
        dropped: tensors of the source that the classifier has no use for.
        renamed: how many tensors get another name.
        dtype: torch's name of the floating type that takes most of the bytes.
        warnings: messages on dropped tensors.
    """

    files: Mapping[str, WeightFile]
    dropped: list[str]
    renamed: int
    dtype: str
    warnings: list[str]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.size for file in self.files.values())

    @property
    def index(self) -> dict[str, Any] | None:
        """The content of `model.safetensors.index.json`, or None for a single file."""
        if len(self.files) == 1:
            return None
        file_of = {piece.name: name for name, file in self.files.items() for piece in file.pieces}
        size = sum(file.num_bytes for file in self.files.values())
        return {"metadata": {"total_size": size}, "weight_map": dict(sorted(file_of.items()))}


def plan_tensors(plan: ConversionPlan) -> TensorPlan:
    """Decide the weight files of a conversion; reads headers only and writes nothing.

    Raises:
        ModelError: the result would lack a tensor or lose one, a shape is wrong, or the head is not finite.
    """
    import torch

    from .merging import changes
    from .tensor_names import LoadOptions, plan_names

    shards = _read_shards(plan)
    stored = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    head = {name: tensor.detach().to(torch.float32) for name, tensor in (plan.head_tensors or {}).items()}
    for name, tensor in head.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the new head's {name} holds NaN or infinite values; it is not written.")
    requested = _torch_dtype(plan.dtype)
    opening = LoadOptions(
        plan.classifier_class,
        plan.config,
        requested or getattr(torch, _main_dtype(stored.values())),
        plan.checkpoint.name,
        plan.checkpoint.class_names,
        plan.moved,
    )
    names = plan_names(opening, {name: _meta(tensor.dtype, tensor.shape) for name, tensor in stored.items()}, head)
    dtypes = names.dtypes if requested is not None else {}
    changed = changes(plan.adapter, names, head)
    files = _split(plan, shards, names, head, dtypes, changed)
    return TensorPlan(
        files={_file_name(index, len(files)): file for index, file in enumerate(files, 1)},
        dropped=names.dropped,
        renamed=sum(old != new for old, new in names.written.items()),
        dtype=_main_dtype(piece for file in files for piece in file.pieces),
        warnings=[names.warning] if names.warning else [],
    )


@dataclass(frozen=True)
class _Shard:
    """A weight file of the source.

    Args:
        tensors: by their names, without the wrappers that the model was saved in.
        as_is: its names and its metadata are those that transformers reads.
    """

    path: Path
    tensors: Mapping[str, Stored]
    as_is: bool


def _read_shards(plan: ConversionPlan) -> list[_Shard]:
    checkpoint = plan.checkpoint
    headers = [(path, *read_header(path)) for path in checkpoint.shards]
    plain = unwrapped([name for _, tensors, _ in headers for name in tensors])
    shards = []
    for path, tensors, metadata in headers:
        as_is = metadata.get("format") == "pt" and all(plain[name] == name for name in tensors)
        shards.append(_Shard(path, {plain[name]: tensor for name, tensor in tensors.items()}, as_is))
    counts = Counter(plain[name] for _, tensors, _ in headers for name in tensors)
    if not counts:
        raise ModelError(f"{checkpoint.name} has no weights in safetensors.")
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ModelError(f"{checkpoint.name} holds {twice[0]} in several files; remove those that do not belong to it.")
    if any(getattr(config, "quantization_config", None) for config in configs_within(plan.config)):
        raise ModelError(f"{checkpoint.name} is stored quantized; convert an unquantized copy of it.")
    return shards


def configs_within(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and those inside it."""
    yield config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None:
            yield from configs_within(inner)


def _torch_dtype(name: str | None) -> torch.dtype | None:
    import torch

    if name in (None, "auto"):
        return None
    if CODES.get(str(name)) not in FLOATS:
        raise ModelError(f"weights cannot be written as {name!r}; use one of float32, bfloat16, float16.")
    dtype: torch.dtype = getattr(torch, str(name))
    return dtype


@functools.cache
def _meta(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor without memory, shared by all of its kind: a mixture of experts has tens of thousands."""
    import torch

    return torch.empty(shape, dtype=getattr(torch, DTYPES[dtype][0]), device="meta")


def _main_dtype(tensors: Iterable[Stored | Piece]) -> str:
    """torch's name of the floating type that most bytes have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.nbytes * (tensor.dtype in FLOATS)
    return DTYPES[sizes.most_common(1)[0][0]][0] if sizes.total() else "float32"


def _split(
    plan: ConversionPlan,
    shards: Sequence[_Shard],
    names: TensorNames,
    head: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    changed: Mapping[str, Change],
) -> list[WeightFile]:
    """The files: those of the source, less what is dropped, plus the head.

    A file is split only where it is larger than `max_shard_size`. The head goes into a model's only file,
    unless that one is to be a hard link; else it gets a file of its own.
    """
    files: list[WeightFile] = []
    for shard in shards:
        pieces = [
            _piece(plan, name, names.written[name], tensor, _new_dtype(tensor, dtypes.get(name)), changed.get(name))
            for name, tensor in shard.tensors.items()
            if name in names.written
        ]
        same = [(piece.name, piece.as_stored) for piece in pieces] == [(name, True) for name in shard.tensors]
        if same and shard.as_is and shard.path.stat().st_size <= plan.max_shard_size:
            files.append(WeightFile(tuple(pieces), shard.path))
        else:
            files += [WeightFile(part) for part in _parts(pieces, plan.max_shard_size)]
    added = tuple(Piece(name, "F32", tensor) for name, tensor in head.items())
    if not added:
        return files
    together = sum(piece.nbytes for piece in added) + sum(file.num_bytes for file in files)
    if len(files) == 1 and together <= plan.max_shard_size and not (plan.link and files[0].copy_of):
        return [WeightFile((*files[0].pieces, *added))]
    return [*files, WeightFile(added)]


def _piece(plan: ConversionPlan, source: str, name: str, tensor: Stored, dtype: str, change: Change | None) -> Piece:
    """A tensor of the source to write, as it is or changed."""
    if change is None:
        return Piece(name, dtype, tensor)
    return Piece(name, dtype, Computed(tensor.shape, functools.partial(_changed, plan, source, dtype, change)))


def _changed(plan: ConversionPlan, source: str, dtype: str, change: Change) -> torch.Tensor:
    """A changed tensor, in the type that it is written in.

    Raises:
        ModelError: that cannot hold it.
    """
    import torch

    tensor = change(plan.checkpoint.tensor(source)).to(getattr(torch, DTYPES[dtype][0]))
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{source} with the adapter has values that {DTYPES[dtype][0]} cannot hold.")
    return tensor


def _new_dtype(tensor: Stored, held: torch.dtype | None) -> str:
    """Safetensors' code to write a tensor with, when the class holds it as `held`; None keeps its own."""
    if held is None or tensor.dtype not in FLOATS:
        return tensor.dtype
    return CODES[str(held).removeprefix("torch.")]


def _parts(pieces: Sequence[Piece], most: int) -> list[tuple[Piece, ...]]:
    """Pieces in groups of at most `most` bytes; a tensor larger than that is alone."""
    parts: list[list[Piece]] = []
    room = 0
    for piece in sorted(pieces, key=lambda piece: piece.origin.start if isinstance(piece.origin, Stored) else 0):
        if not parts or piece.nbytes > room:
            parts.append([])
            room = most
        parts[-1].append(piece)
        room -= piece.nbytes
    return [tuple(part) for part in parts]


def _file_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index:05d}-of-{count:05d}.safetensors"
