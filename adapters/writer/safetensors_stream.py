"""Reads and writes safetensors files as streams: headers are parsed, tensors are copied in chunks.

A file is 8 bytes (the header's length, little-endian), a JSON header, and the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_cls.errors import ModelError

from .file_copies import BLOCK, BUFFER_SIZE, copy_range, read_chunks, write_all

if TYPE_CHECKING:
    from io import FileIO

    import torch

# Safetensors' code → torch's name and bytes an element. Types of packed weights (F4, F6, scales) are not here.
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "C64": ("complex64", 8),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
CODES = {name: code for code, (name, _) in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")
_LONGEST_HEADER = 100_000_000  # the format's own limit, bytes


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type, shape and offset.

    Args:
        dtype: safetensors' code.
        start: offset of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Computed:
    """A tensor that is made when it is written, in the type that it is written in."""

    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Piece:
    """A tensor to write as `name` in `dtype` (safetensors' code): from a file, from memory, or computed when it is written."""

    name: str
    dtype: str
    origin: Stored | Computed | torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.origin.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]

    @property
    def as_stored(self) -> bool:
        """Whether its bytes are the origin's."""
        return isinstance(self.origin, Stored) and self.origin.dtype == self.dtype


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a file by name, and the file's metadata.

    Raises:
        ModelError: it is no safetensors file, or holds a type that cannot be converted.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", None) or {}
        found = {name: _stored(path, 8 + length, entry) for name, entry in entries.items()}
        for name, tensor in found.items():
            if not 8 + length <= tensor.start <= tensor.start + tensor.nbytes <= size:
                raise ValueError(f"{name} lies outside the file")
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}). Fetch it again.") from error
    return found, metadata


def _stored(path: Path, data_start: int, entry: dict[str, Any]) -> Stored:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPES:
        raise ModelError(f"{path} holds weights of type {dtype}, which are packed; convert an unquantized copy.")
    if math.prod(shape) * DTYPES[dtype][1] != end - begin:
        raise ValueError(f"a tensor of shape {shape} and type {dtype} in {end - begin} bytes")
    return Stored(path, dtype, shape, data_start + begin, end - begin)


def layout(pieces: Sequence[Piece]) -> tuple[list[Piece], bytes]:
    """The order that pieces take in a file, and the file's first bytes, up to the tensors' own.

    Large types come first, so that every tensor is aligned to its type (readers map the file); within a
    type they keep the order they have on disk, so that long runs are copied at once.
    """
    ordered = sorted(pieces, key=_place)
    entries: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    longest, longest_run = 0, 0  # offset - start of the longest run, and its bytes
    for run in runs(ordered):
        origin, nbytes = run[0].origin, sum(piece.nbytes for piece in run)
        if isinstance(origin, Stored) and run[0].as_stored and nbytes > longest_run:
            longest, longest_run = offset - origin.start, nbytes
        for piece in run:
            entries[piece.name] = {
                "dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [offset, offset + piece.nbytes]
            }  # fmt: skip
            offset += piece.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    # More spaces put the longest run at the same place within a block as in its own file: it can then be reflinked.
    shift = -(8 + len(text) + longest) % BLOCK
    if longest_run >= BUFFER_SIZE and shift % 8 == 0:
        text += b" " * shift
    return ordered, struct.pack("<Q", len(text)) + text


def _place(piece: Piece) -> tuple[int, int, str, int, str]:
    size = -DTYPES[piece.dtype][1]
    if isinstance(piece.origin, Stored):
        return size, 0, str(piece.origin.path), piece.origin.start, piece.name
    return size, 1, "", 0, piece.name


def runs(ordered: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group pieces whose bytes follow each other in one file and are written as they are."""
    run: list[Piece] = []
    for piece in ordered:
        if run and not _follows(run[-1], piece):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _follows(before: Piece, piece: Piece) -> bool:
    one, two = before.origin, piece.origin
    if not (isinstance(one, Stored) and isinstance(two, Stored) and before.as_stored and piece.as_stored):
        return False
    return one.path == two.path and one.start + one.nbytes == two.start


def file_size(pieces: Sequence[Piece]) -> int:
    """Bytes of the file that `write_file` makes of these."""
    return len(layout(pieces)[1]) + sum(piece.nbytes for piece in pieces)


def write_file(path: Path, pieces: Sequence[Piece]) -> None:
    """Write a safetensors file; one buffer's worth of one tensor is in memory at a time.

    Raises:
        ModelError: a source file ends early, or a value does not fit the type it is converted to.
    """
    ordered, head = layout(pieces)
    readers: dict[Path, FileIO] = {}
    try:
        with open(path, "xb", buffering=0) as writer:
            write_all(writer, memoryview(head))
            for run in runs(ordered):
                origin = run[0].origin
                if not isinstance(origin, Stored):
                    tensor = origin.make() if isinstance(origin, Computed) else origin
                    write_all(writer, _memory(tensor.detach().cpu().contiguous()))
                    continue
                if origin.path not in readers:
                    readers[origin.path] = open(origin.path, "rb", buffering=0)  # noqa: SIM115  # closed below
                if run[0].as_stored:
                    copy_range(readers[origin.path], writer, origin.start, sum(piece.nbytes for piece in run))
                else:
                    _convert(readers[origin.path], writer, run[0], origin)
    finally:
        for reader in readers.values():
            reader.close()


def _convert(reader: FileIO, writer: FileIO, piece: Piece, origin: Stored) -> None:
    """Append one tensor in another floating type, a buffer at a time."""
    import torch

    source, target = (getattr(torch, DTYPES[code][0]) for code in (origin.dtype, piece.dtype))
    for chunk in read_chunks(reader, origin.start, origin.nbytes):
        values = torch.frombuffer(chunk, dtype=source)
        converted = values.to(target)
        if not bool(torch.isfinite(converted).all()) and bool((torch.isinf(converted) & torch.isfinite(values)).any()):
            raise ModelError(
                f"{piece.name} has values that {DTYPES[piece.dtype][0]} cannot hold; take --dtype bfloat16 or float32."
            )
        write_all(writer, _memory(converted))


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data
