"""What the vision tower would have given: tensors, arrays, or bytes of .npy or safetensors. Never a pickle."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import PromptError, shown
from .items import Embeddings
from .policy import Allowance
from .sources import from_base64, is_encoded, read_bytes

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FORMS = "give .npy or safetensors, such as base64 of safetensors.torch.save({'image_embeds': tensor})"


def from_value(value: Any, key: str, allowance: Allowance) -> list[Embeddings]:
    """The items that a value holds: one for each image or video of it.

    Args:
        value: a tensor or an array `(num_tokens, hidden)` or `(num_items, num_tokens, hidden)`, bytes or base64 text of one;
            or a mapping of `key` to one of these and `image_grid_thw`, or `video_grid_thw`, to the grids of the items.
        key: `image_embeds` or `video_embeds`.

    Raises:
        PromptError: it is none of these, or its shape, type or numbers are wrong.
    """
    names = _grid_names(key)
    if isinstance(value, Mapping) and not is_encoded(value):
        unknown = [name for name in value if name not in (key, *names)]
        if key not in value or unknown:
            raise PromptError(f"it takes {key!r} and {names[0]!r}; got {shown(sorted(map(str, value)))}.")
        parts = {name: _tensor(each, name, allowance) for name, each in value.items() if each is not None}
    else:
        parts = _tensors(value, key, allowance)
    grids = next((parts[name] for name in names if name in parts), None)
    return _items(_checked(parts[key], allowance), None if grids is None else _grid(grids, names[0]))


def _grid_names(key: str) -> tuple[str, str]:
    return f"{key.removesuffix('_embeds')}_grid_thw", "grid_thw"


def _tensors(value: Any, key: str, allowance: Allowance) -> dict[str, torch.Tensor]:
    """The tensors of a value by their names; a single one is named `key`."""
    if isinstance(value, torch.Tensor):
        return {key: value.detach().cpu()}
    if isinstance(value, np.ndarray):
        return {key: _from_numpy(value)}
    if isinstance(value, str) and not value.startswith(("data:", "http:", "https:", "file:")):
        value = from_base64(value, allowance.policy)
    if not is_encoded(value):
        raise PromptError(f"it cannot be {shown(value)}; give a tensor, an array or base64 of one.")
    found = _from_bytes(read_bytes(value, allowance))
    if len(found) == 1:
        return {key: next(iter(found.values()))}
    if key not in found or not found.keys() <= {key, *_grid_names(key)}:
        raise PromptError(f"the tensors are {shown(sorted(found))}; name them {key!r} and {_grid_names(key)[0]!r}.")
    return found


def _tensor(value: Any, name: str, allowance: Allowance) -> torch.Tensor:
    if isinstance(value, (list, tuple)):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PromptError(f"the numbers under {name!r} are no tensor: {error}.") from error
    return _tensors(value, name, allowance)[name]


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise PromptError(f"an array of {array.dtype} is not one of numbers that a model reads; give float32.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _from_bytes(data: bytes) -> dict[str, torch.Tensor]:
    if data.startswith(b"\x93NUMPY"):
        return {"": _from_numpy(_npy(data))}
    if data.startswith((b"PK\x03\x04", b"\x80")):
        raise PromptError(f"it is a pickle, or an archive of torch.save or numpy.savez, which can run code; {_FORMS}.")
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except Exception as error:  # its own class of errors is not public
        raise PromptError(f"it is neither .npy nor safetensors; {_FORMS}.") from error


def _npy(data: bytes) -> np.ndarray:
    """numpy's own reader makes room for what the header promises; here it must be there."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        rest = memoryview(data)[file.tell() :]
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are pickles")
        if len(rest) != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise ValueError(f"its header says {dtype} {shape}, and there are {len(rest)} bytes")
        return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C").copy()
    except (ValueError, EOFError, OverflowError, MemoryError) as error:
        raise PromptError(f"the .npy cannot be read: {error}.") from error


def _checked(data: torch.Tensor, allowance: Allowance) -> torch.Tensor:
    if data.dtype not in _FLOATS:
        raise PromptError(
            f"values of {data.dtype} are not numbers of a vision tower; give float32, float16 or bfloat16."
        )
    if data.ndim not in (2, 3) or not data.numel():
        raise PromptError(
            f"a tensor of shape {tuple(data.shape)}; give (num_tokens, hidden), or (num_items, num_tokens, hidden)."
        )
    if data.numel() * 4 > allowance.policy.max_bytes:
        raise PromptError(f"more than the {allowance.policy.max_bytes:,} bytes allowed.")
    data = data.float()
    if not torch.isfinite(data).all():
        raise PromptError("there are numbers that are not finite (NaN or infinity).")
    return data


def _grid(grid: torch.Tensor, name: str) -> torch.Tensor:
    grid = grid[None] if grid.ndim == 1 else grid
    if (
        grid.dtype.is_floating_point
        or grid.dtype == torch.bool
        or grid.ndim != 2
        or grid.shape[1] != 3
        or not len(grid)
    ):
        raise PromptError(f"{name} of {grid.dtype} and shape {tuple(grid.shape)}; give whole numbers, (num_items, 3).")
    if not ((grid > 0) & (grid < 1 << 20)).all():
        raise PromptError(f"{name} has numbers that are no counts of patches: {grid.tolist()}.")
    return grid.long()


def _items(data: torch.Tensor, grid: torch.Tensor | None) -> list[Embeddings]:
    if data.ndim == 3:
        parts = list(data)
        if grid is not None and len(grid) != len(parts):
            raise PromptError(f"{len(parts)} items, and {len(grid)} grids.")
    elif grid is None or len(grid) == 1:
        parts = [data]
    else:
        parts = list(data.split(_tokens(len(data), grid)))
    grids = [None] * len(parts) if grid is None else [grid[place : place + 1] for place in range(len(parts))]
    return [_hashed(part.contiguous(), each) for part, each in zip(parts, grids, strict=True)]


def _tokens(total: int, grid: torch.Tensor) -> list[int]:
    """Tokens of each item: its share of the patches, of which a token always has the same number."""
    patches = [int(each) for each in grid.prod(dim=1)]
    a_token, rest = divmod(sum(patches), total)
    if rest or any(each % a_token for each in patches):
        raise PromptError(f"{total} tokens, which do not fit the grids {grid.tolist()}.")
    return [each // a_token for each in patches]


def _hashed(data: torch.Tensor, grid: torch.Tensor | None) -> Embeddings:
    digest = hashlib.blake2b(
        f"embeddings {tuple(data.shape)} {None if grid is None else grid.tolist()}".encode(), digest_size=16
    )
    digest.update(data.numpy().data)
    return Embeddings(data, grid, digest.hexdigest())
