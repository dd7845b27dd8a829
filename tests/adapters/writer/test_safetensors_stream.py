"""Safetensors files written in pieces are what safetensors' own reader expects, whatever they are made from."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vllm_cls.adapters.writer import file_copies
from vllm_cls.adapters.writer.file_copies import BLOCK, BUFFER_SIZE, can_clone, copy_range, place_file
from vllm_cls.adapters.writer.safetensors_stream import Piece, file_size, layout, read_header, write_file
from vllm_cls.errors import ModelError

MANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64]
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda s: s != "__metadata__"
)
specs = st.dictionaries(
    names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=8
)


def filled(specs: dict) -> dict[str, torch.Tensor]:
    made = {}
    for index, (name, (dtype, shape)) in enumerate(specs.items()):
        made[name] = (torch.arange(torch.Size(shape).numel()) * 3 + index).reshape(shape).to(dtype)
    return made


def pieces_of(path: Path) -> list[Piece]:
    return [Piece(name, stored.dtype, stored) for name, stored in read_header(path)[0].items()]


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and torch.equal(tensor, two[name]), name


@MANY
@given(specs=specs, data=st.data())
def test_renamed_dropped_and_added_tensors_read_back(tmp_path: Path, specs: dict, data: st.DataObject) -> None:
    tensors = filled(specs)
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    target.unlink(missing_ok=True)
    save_file(tensors, source)
    stored, _ = read_header(source)
    kept = data.draw(st.lists(st.sampled_from(sorted(tensors)), unique=True))
    new_names = {name: f"model.{name}" if data.draw(st.booleans()) else name for name in kept}
    if len(set(new_names.values())) < len(kept):
        return
    expected = {new: tensors[old] for old, new in new_names.items()} | {"score\n.weight": torch.randn(3, 5)}
    pieces = [Piece(new, stored[old].dtype, stored[old]) for old, new in new_names.items()]
    pieces.append(Piece("score\n.weight", "F32", expected["score\n.weight"]))
    write_file(target, pieces)
    assert_same(load_file(target), expected)
    assert target.stat().st_size == file_size(pieces)
    for name, piece in read_header(target)[0].items():  # readers map the file, and take each tensor where it lies
        assert piece.start % expected[name].element_size() == 0, name


@MANY
@given(garbage=st.binary(max_size=60), header=st.none() | st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, garbage: bytes, header: object) -> None:
    path = tmp_path / "bad.safetensors"
    text = json.dumps({"a": header}).encode()
    path.write_bytes(garbage if header is None else struct.pack("<Q", len(text)) + text + garbage)
    with pytest.raises(ModelError, match=r"bad\.safetensors"):
        read_header(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8000]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]},
    ],
    ids=["size", "past the end", "before the data", "packed type"],
)
def test_headers_that_lie_are_refused(tmp_path: Path, entry: dict) -> None:
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "bad.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelError, match=r"bad\.safetensors"):
        read_header(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("target", ["BF16", "F16", "F64"])
def test_values_are_converted_as_torch_does(tmp_path: Path, target: str) -> None:
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}[target]
    tensors = {"a": torch.randn(BUFFER_SIZE // 4 + 7), "b": torch.tensor([[float("nan"), float("inf"), 1e-30]])}
    save_file(tensors, tmp_path / "a.safetensors")
    pieces = [Piece(piece.name, target, piece.origin) for piece in pieces_of(tmp_path / "a.safetensors")]
    write_file(tmp_path / "b.safetensors", pieces)
    written = load_file(tmp_path / "b.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(written[name].nan_to_num(7), tensor.to(dtype).nan_to_num(7))


def test_a_value_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    save_file({"big": torch.tensor([1.0, 70000.0])}, tmp_path / "a.safetensors")
    (piece,) = pieces_of(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="big has values that float16 cannot hold"):
        write_file(tmp_path / "b.safetensors", [Piece("big", "F16", piece.origin)])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    pieces = pieces_of(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 500)
    with pytest.raises(ModelError, match=r"a\.safetensors ends \d+ bytes early"):
        write_file(tmp_path / "b.safetensors", pieces)


def test_the_longest_run_keeps_its_place_within_a_block(tmp_path: Path) -> None:
    """So that a filesystem with reflinks can share it; the last tensor, dropped, makes the run's offset odd."""
    save_file({"a": torch.zeros(100, 77), "b": torch.zeros(2 * BUFFER_SIZE), "c": torch.zeros(3)}, tmp_path / "a")
    pieces = [piece for piece in pieces_of(tmp_path / "a") if piece.name != "a"]
    write_file(tmp_path / "b", [*pieces, Piece("score.weight", "F32", torch.ones(5, 2))])
    before, after = read_header(tmp_path / "a")[0]["b"], read_header(tmp_path / "b")[0]["b"]
    assert (before.start - after.start) % BLOCK == 0
    assert before.start != after.start


def test_small_files_are_not_padded_to_blocks(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "a")
    assert len(layout(pieces_of(tmp_path / "a"))[1]) < 200


@given(start=st.integers(0, 9000), before=st.integers(0, 9000), nbytes=st.integers(0, 2 * BUFFER_SIZE + 9000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_copied(tmp_path: Path, start: int, before: int, nbytes: int) -> None:
    content = random.randbytes(3 * BUFFER_SIZE)
    (tmp_path / "a").write_bytes(content)
    nbytes = min(nbytes, len(content) - start)
    with open(tmp_path / "a", "rb", buffering=0) as reader, open(tmp_path / "b", "wb", buffering=0) as writer:
        writer.write(bytes(before))
        copy_range(reader, writer, start, nbytes)
        writer.write(b"end")
    assert (tmp_path / "b").read_bytes() == bytes(before) + content[start : start + nbytes] + b"end"


def test_a_reflink_is_asked_for_whole_blocks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def clone(writer: Any, _: int, extent: bytes) -> bool:
        descriptor, start, nbytes, position = struct.unpack("qQQQ", extent)
        asked.append((start, nbytes, position))
        os.pwrite(writer.fileno(), os.pread(descriptor, nbytes, start), position)
        return True

    content = random.randbytes(4 * BUFFER_SIZE)
    (tmp_path / "a").write_bytes(content)
    monkeypatch.setattr(file_copies, "_clone", clone)
    with open(tmp_path / "a", "rb", buffering=0) as reader, open(tmp_path / "b", "wb", buffering=0) as writer:
        writer.write(bytes(BLOCK + 100))
        copy_range(reader, writer, 5 * BLOCK + 100, 2 * BUFFER_SIZE + 7)
        writer.write(b"end")
    assert (tmp_path / "b").read_bytes()[BLOCK + 100 :] == content[5 * BLOCK + 100 :][: 2 * BUFFER_SIZE + 7] + b"end"
    ((start, nbytes, position),) = asked
    assert (start % BLOCK, nbytes % BLOCK, position % BLOCK) == (0, 0, 0) and nbytes > 2 * BUFFER_SIZE - 2 * BLOCK


def test_whole_blocks_are_reflinked_where_the_filesystem_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.randbytes(4 * BUFFER_SIZE)
    (tmp_path / "a").write_bytes(content)
    if not can_clone(tmp_path / "a", tmp_path):
        pytest.skip("this filesystem has no reflinks")
    copied = []
    monkeypatch.setattr(file_copies, "copy_bytes", lambda reader, writer, start, nbytes: copied.append(nbytes))
    with open(tmp_path / "a", "rb", buffering=0) as reader, open(tmp_path / "b", "wb", buffering=0) as writer:
        writer.seek(BLOCK)
        copy_range(reader, writer, 2 * BLOCK, 3 * BUFFER_SIZE)
    assert sum(copied) == 0
    assert (tmp_path / "b").read_bytes()[BLOCK:] == content[2 * BLOCK : 2 * BLOCK + 3 * BUFFER_SIZE]


def test_a_hard_link_across_filesystems_becomes_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "a").write_bytes(b"content")
    place_file(tmp_path / "a", tmp_path / "linked", link=True)
    assert (tmp_path / "linked").samefile(tmp_path / "a")
    monkeypatch.setattr(os, "link", refuse)
    place_file(tmp_path / "a", tmp_path / "copied", link=True)
    assert (tmp_path / "copied").read_bytes() == b"content" and not (tmp_path / "copied").samefile(tmp_path / "a")


def test_links_go_to_the_file_behind_a_symbolic_link(tmp_path: Path) -> None:
    """A hub cache keeps symbolic links; one copied as such would break when the cache is cleaned."""
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "link").symlink_to("blob")
    place_file(tmp_path / "link", tmp_path / "linked", link=True)
    assert not (tmp_path / "linked").is_symlink() and (tmp_path / "linked").samefile(tmp_path / "blob")
