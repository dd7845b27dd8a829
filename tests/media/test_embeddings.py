"""Embeddings of a caller: read from tensors and safe files, checked, and never unpickled."""

from __future__ import annotations

import base64
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from vllm_cls.errors import PromptError
from vllm_cls.media.items import Embeddings
from vllm_cls.media.load import load_media
from vllm_cls.media.policy import MediaPolicy

from .samples import PYTHON

DATA = torch.arange(12, dtype=torch.float32).reshape(4, 3) / 7


def items(value: Any, key: str = "image_embeds", policy: MediaPolicy = PYTHON) -> list[Embeddings]:
    (found,) = load_media({key: value}, policy).values()
    return list(found)  # type: ignore[arg-type]


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def torch_saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


WAYS = {
    "tensor": DATA,
    "double": DATA.double(),
    "array": DATA.numpy(),
    "npy": npy(DATA.numpy()),
    "npy 2.0": npy(DATA.numpy(), (2, 0)),
    "columns first": npy(np.asfortranarray(DATA.numpy())),
    "big endian": npy(DATA.numpy().astype(">f4")),
    "base64 of npy": text(npy(DATA.numpy())),
    "safetensors": save({"x": DATA}),
    "base64 of safetensors": text(save({"image_embeds": DATA})),
    "mapping": {"image_embeds": DATA},
    "mapping of base64": {"image_embeds": text(save({"image_embeds": DATA})), "image_grid_thw": None},
    "data URL": "data:application/octet-stream;base64," + text(npy(DATA.numpy())),
    "bytes in a mapping": {"bytes": npy(DATA.numpy()), "path": None},
}


@pytest.mark.parametrize("value", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("key", ["image_embeds", "video_embeds"])
def test_ways_to_give_them(key: str, value: Any) -> None:
    if isinstance(value, dict):
        value = {name.replace("image", key[:5]): each for name, each in value.items()}
    elif isinstance(value, str) and "data" not in value and key != "image_embeds":
        value = text(save({key: DATA}))
    (item,) = items(value, key)
    assert item.data.dtype == torch.float32 and torch.equal(item.data, DATA) and item.grid_thw is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    for value in (DATA.to(dtype), save({"x": DATA.to(dtype)})):
        assert torch.equal(items(value)[0].data, DATA.to(dtype).float())


def test_several_items() -> None:
    stacked = torch.stack([DATA, DATA + 1])
    for value in (stacked, [DATA, DATA + 1], npy(stacked.numpy())):
        first, second = items(value)
        assert torch.equal(first.data, DATA) and torch.equal(second.data, DATA + 1)
        assert first.content_hash == items(DATA)[0].content_hash != second.content_hash


def test_grids_part_the_tokens() -> None:
    grids = torch.tensor([[1, 2, 2], [1, 6, 2]])  # 4 and 12 patches, four a token
    for value in (
        {"image_embeds": DATA, "image_grid_thw": grids},
        {"image_embeds": text(npy(DATA.numpy())), "image_grid_thw": [[1, 2, 2], [1, 6, 2]]},
        save({"image_embeds": DATA, "image_grid_thw": grids}),
        save({"image_embeds": DATA, "grid_thw": grids.int()}),
    ):
        first, second = items(value)
        assert torch.equal(first.data, DATA[:1]) and torch.equal(second.data, DATA[1:])
        assert first.grid_thw is not None and first.grid_thw.tolist() == [[1, 2, 2]]
        assert second.grid_thw is not None and second.grid_thw.tolist() == [[1, 6, 2]]
    (alone,) = items({"image_embeds": DATA, "image_grid_thw": [1, 4, 4]})
    assert alone.grid_thw is not None and alone.grid_thw.tolist() == [[1, 4, 4]]
    assert alone.content_hash != items(DATA)[0].content_hash


class Harmful:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize(
    "data",
    [
        torch_saved(DATA),
        torch_saved(DATA, _use_new_zipfile_serialization=False),
        torch_saved(Harmful()),
        pickle.dumps(Harmful()),
        pickle.dumps(Harmful(), protocol=0),
        npy(np.array([Harmful()], dtype=object)),
    ],
    ids=["torch.save", "torch.save, old", "torch.save of code", "pickle", "pickle 0", "npy of objects"],
)
@pytest.mark.parametrize("way", [bytes, text])
def test_pickles_are_refused(data: bytes, way: Any) -> None:
    with pytest.raises(PromptError, match=r"pickle|neither \.npy nor safetensors"):
        items(way(data))


def test_a_pickle_is_told_what_to_send() -> None:
    with pytest.raises(
        PromptError, match=r"^image_embeds: it is a pickle, .*give \.npy or safetensors, such as base64 of"
    ):
        items(text(torch_saved(DATA)))


def lying(shape: str) -> bytes:
    data = npy(DATA.numpy())
    return data.replace(b"(4, 3), }" + b" " * (len(shape) - 6), f"{shape}, }}".encode(), 1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.full((2, 3), float("nan")), "not finite"),
        (torch.tensor([[1.0, float("inf")]]), "not finite"),
        (torch.tensor([[1e300, 1.0]], dtype=torch.float64), "not finite"),
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(1, 1, 1, 1), r"shape \(1, 1, 1, 1\)"),
        (torch.ones(0, 3), r"shape \(0, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), "of torch.int64 are not numbers"),
        (torch.ones(2, 3, dtype=torch.bool), "of torch.bool"),
        (np.ones((2, 3), dtype=complex), "array of complex128"),
        (np.array([["a"]]), "array of <U1"),
        (lying("(10000000, 30000000)"), r"header says float32 \(10000000, 30000000\)"),
        (lying("(4, 300)"), r"header says float32 \(4, 300\)"),
        (npy(DATA.numpy())[:-1], "there are 47 bytes"),
        (npy(DATA.numpy())[:20], "cannot be read"),
        (save({"x": DATA})[:-1], "neither"),
        (save({"x": DATA, "y": DATA + 1}), "name them 'image_embeds'"),
        ("no base64!", "not base64"),
        ("", "it is empty"),
        (7, "cannot be 7"),
        ({"image_embeds": DATA, "grid": [1, 1, 1]}, "takes 'image_embeds' and 'image_grid_thw'"),
        ({"image_grid_thw": [1, 1, 1]}, "takes 'image_embeds'"),
        ({"image_embeds": DATA, "image_grid_thw": [[1, 2, 2], [1, 2, 2]]}, None),
        ({"image_embeds": DATA, "image_grid_thw": [[1, 1, 1], [1, 1, 2]]}, "do not fit the grids"),
        ({"image_embeds": DATA, "image_grid_thw": [[1, 1, 3], [1, 1, 5]]}, "do not fit the grids"),
        ({"image_embeds": DATA, "image_grid_thw": [[1, 2, 2], [1, 2, 1], [1, 1, 2]]}, None),
        ({"image_embeds": DATA, "image_grid_thw": [1.0, 2.0, 2.0]}, "torch.float32"),
        ({"image_embeds": DATA, "image_grid_thw": [1, 2]}, r"shape \(1, 2\)"),
        ({"image_embeds": DATA, "image_grid_thw": [0, 2, 2]}, "no counts of patches"),
        ({"image_embeds": DATA, "image_grid_thw": [1 << 40, 1 << 40, 2]}, "no counts of patches"),
        ({"image_embeds": torch.stack([DATA, DATA]), "image_grid_thw": [1, 2, 2]}, "2 items, and 1 grids"),
    ],
)
def test_what_cannot_be_embeddings(value: Any, said: str | None) -> None:
    if said is None:  # two and three items of equal shares
        assert [len(each.data) for each in items(value)] in ([2, 2], [2, 1, 1])
        return
    with pytest.raises(PromptError, match=said):
        items(value)


def test_too_many_bytes() -> None:
    with pytest.raises(PromptError, match="more than the 40 bytes"):
        items(DATA, policy=MediaPolicy(max_bytes=40))
    with pytest.raises(PromptError, match="more than the 40 bytes"):
        items(text(save({"x": DATA})), policy=MediaPolicy(max_bytes=40))
