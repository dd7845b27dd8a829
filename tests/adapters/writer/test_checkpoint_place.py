"""A checkpoint appears whole or not at all, and destroys nothing that it was not told to."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from vllm_cls.adapters.writer import checkpoint_writer
from vllm_cls.adapters.writer.checkpoint_writer import vcls_write_checkpoint
from vllm_cls.errors import ModelError

from .checkpoint_cases import BERT, QWEN2, SCORE, assert_opens, qwen_plan, save


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source")


def test_an_existing_folder_is_replaced_only_when_asked(qwen: Path) -> None:
    out = qwen.parent / "out"
    vcls_write_checkpoint(qwen_plan(qwen))
    (out / "old").touch()
    with pytest.raises(ModelError, match="exists; choose another folder, or pass --overwrite"):
        vcls_write_checkpoint(qwen_plan(qwen))
    assert (out / "old").exists()
    vcls_write_checkpoint(qwen_plan(qwen, overwrite=True))
    assert not (out / "old").exists()
    assert sorted(os.listdir(qwen.parent)) == ["out", "source"]


def test_overwriting_spares_what_is_no_model(qwen: Path) -> None:
    out = qwen.parent / "out"
    out.mkdir()
    vcls_write_checkpoint(qwen_plan(qwen, overwrite=True))  # an empty folder may be replaced
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(ModelError, match="holds no model"):
        vcls_write_checkpoint(qwen_plan(qwen, overwrite=True))
    assert os.listdir(out) == ["thesis.tex"]
    shutil.rmtree(out)
    out.touch()
    with pytest.raises(ModelError, match="is a file"):
        vcls_write_checkpoint(qwen_plan(qwen, overwrite=True))


@pytest.mark.parametrize("where", [".", "..", "inner", "../link", "../link/inner"])
def test_the_source_is_never_written_to(qwen: Path, where: str) -> None:
    (qwen.parent / "link").symlink_to(qwen)
    (qwen.parent / "config.json").touch()
    with pytest.raises(ModelError, match="lies in or around the model"):
        vcls_write_checkpoint(qwen_plan(qwen, out=qwen / where, overwrite=True))
    assert (qwen / "model.safetensors").is_file()


def test_a_folder_that_holds_the_sources_weights_behind_links_is_spared(qwen: Path) -> None:
    blobs = qwen.parent / "blobs"
    blobs.mkdir()
    (blobs / "config.json").touch()
    (qwen / "model.safetensors").rename(blobs / "weights")
    (qwen / "model.safetensors").symlink_to(blobs / "weights")
    with pytest.raises(ModelError, match="lies in or around"):
        vcls_write_checkpoint(qwen_plan(qwen, out=blobs, overwrite=True))
    vcls_write_checkpoint(qwen_plan(qwen))
    assert not (qwen.parent / "out" / "model.safetensors").is_symlink()


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_half_way_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, overwrite: bool
) -> None:
    source = save(hf.Qwen2ForCausalLM, QWEN2, tmp_path / "source", max_shard_size="5KB")
    if overwrite:
        save(hf.BertModel, BERT, tmp_path / "out")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    place, calls = checkpoint_writer.place_file, []

    def fail(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise error
        place(*args, **options)

    monkeypatch.setattr(checkpoint_writer, "place_file", fail)
    with pytest.raises(type(error)):
        vcls_write_checkpoint(qwen_plan(source, overwrite=overwrite))
    assert len(calls) == 3
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_failed_exchange_puts_the_old_folder_back(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = save(hf.BertModel, BERT, qwen.parent / "out")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ModelError, match="cannot be written: Input/output error"):
        vcls_write_checkpoint(qwen_plan(qwen, overwrite=True))
    assert sorted(os.listdir(qwen.parent)) == ["out", "source"]
    hf.BertModel.from_pretrained(out)


def test_a_folder_that_appears_meanwhile_is_spared(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, write = qwen.parent / "out", checkpoint_writer.write_file

    def race(*args: Any) -> None:
        out.mkdir()
        (out / "theirs").touch()
        write(*args)

    monkeypatch.setattr(checkpoint_writer, "write_file", race)
    with pytest.raises(ModelError, match="made by something else"):
        vcls_write_checkpoint(qwen_plan(qwen))
    assert os.listdir(out) == ["theirs"] and sorted(os.listdir(qwen.parent)) == ["out", "source"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.adapters.writer import test_checkpoint_place as t
from pathlib import Path
write = t.checkpoint_writer.write_file
def killed(path, pieces):
    write(path, pieces)
    os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
t.checkpoint_writer.write_file = killed
t.vcls_write_checkpoint(t.qwen_plan(Path({source!r}), overwrite=True))
"""


def test_a_killed_conversion_leaves_no_half_checkpoint(qwen: Path) -> None:
    save(hf.BertModel, BERT, qwen.parent / "out")
    before = {path.name: path.read_bytes() for path in (qwen.parent / "out").iterdir()}
    code = KILLED.format(root=str(Path(__file__).parents[3]), source=str(qwen))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert {path.name: path.read_bytes() for path in (qwen.parent / "out").iterdir()} == before
    (left,) = [name for name in os.listdir(qwen.parent) if name not in ("out", "source")]
    assert left.startswith(".out.tmp-")
    vcls_write_checkpoint(qwen_plan(qwen, overwrite=True))  # what is left does not stand in the way
    assert_opens(qwen.parent / "out", hf.Qwen2ForSequenceClassification, qwen, hf.Qwen2ForCausalLM, SCORE)


def test_a_disk_without_room_is_noticed_before_anything_is_written(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(checkpoint_writer, "can_clone", lambda *_: False)
    monkeypatch.setattr(checkpoint_writer, "write_file", lambda *_: pytest.fail("it was written"))
    with pytest.raises(ModelError, match=r"out has 0\.00 GB free\. The weights take 0\.00 GB"):
        vcls_write_checkpoint(qwen_plan(qwen))
    assert os.listdir(qwen.parent) == ["source"]


def test_a_disk_that_fills_up_is_said_so(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_file", full)
    with pytest.raises(ModelError, match=r"the disk of \S*out filled up; .* The weights take 0\.00 GB"):
        vcls_write_checkpoint(qwen_plan(qwen))
    assert os.listdir(qwen.parent) == ["source"]


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(qwen: Path) -> None:
    (qwen.parent / "file").touch()
    with pytest.raises(ModelError, match="cannot be written"):
        vcls_write_checkpoint(qwen_plan(qwen, out=qwen.parent / "file" / "out"))
