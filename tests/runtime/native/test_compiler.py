"""What was compiled is kept for the next process, and taken only as it was kept."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_cls.compat import disk
from vllm_cls.runtime.native import attention, compiler

pytestmark = pytest.mark.skipif(
    attention.compiled() is None or not Path("/proc/cpuinfo").exists(), reason="nothing is kept here"
)


class Compilations:
    """How many there were, in a cache that is empty at first."""

    def __init__(self, cache: Path, patch: pytest.MonkeyPatch) -> None:
        self.count, self.cache = 0, cache
        self.last: list[str] = []
        plain = subprocess.run

        def run(command: list[str], **kwargs: Any) -> Any:
            self.count += 1
            self.last = command
            return plain(command, **kwargs)

        patch.setenv("VLLM_CLS_CACHE", str(cache))
        patch.setattr(compiler.subprocess, "run", run)

    def of(self, *flags: str) -> int:
        """How many it takes to have the library."""
        before = self.count
        assert isinstance(compiler.library("int8", flags), ctypes.CDLL)
        return self.count - before

    @property
    def files(self) -> list[Path]:
        return sorted((self.cache / "native").iterdir())


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compilations:
    return Compilations(tmp_path / "cache", monkeypatch)


def test_it_compiles_once(compilations: Compilations) -> None:
    assert [compilations.of(), compilations.of(), compilations.of()] == [1, 0, 0]
    (file,) = compilations.files
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700


def test_what_makes_another_library_has_another_name(
    compilations: Compilations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert [compilations.of(), compilations.of("-O2"), compilations.of("-O2")] == [1, 1, 0]
    plain = Path.read_text
    with monkeypatch.context() as patch:  # another processor, another source
        patch.setattr(Path, "read_text", lambda self, *args, **kwargs: plain(self, *args, **kwargs) + "\nflags : x\n")
        assert [compilations.of(), compilations.of()] == [1, 0]
    (tmp_path / "cc").write_text(f'#!/bin/sh\nexec {shutil.which("cc") or shutil.which("gcc")} "$@"\n')
    (tmp_path / "cc").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [compilations.of(), compilations.of()] == [1, 0]
    assert len(compilations.files) == 4


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's instructions")
def test_where_torch_keeps_to_avx2_so_do_these(
    compilations: Compilations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offered: list[set[str]] = []
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        compiler.library("int8")
        *command, _, _, _ = compilations.last
        macros = subprocess.run([*command, "-dM", "-E", "-"], input="", capture_output=True, text=True, check=True)
        offered.append(set(re.findall(r"__AVX\w+__", macros.stdout)))
    assert not any("512" in name for name in offered[1])
    assert offered[1] == {name for name in offered[0] if "512" not in name}
    assert len(compilations.files) == 2


def _linked(file: Path) -> None:
    file.rename(file.with_suffix(".other"))
    file.symlink_to(file.with_suffix(".other"))


def _a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _another_ones(file: Path) -> None:
    other = file.with_name(f"attention-{'0' * 32}")
    disk.keep(b"not a library", other)
    other.replace(file)


BAD: dict[str, Callable[[Path], object]] = {
    "damaged": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-5000]),
    "empty": lambda file: file.write_bytes(b""),
    "another one's name": _another_ones,
    "others may write": lambda file: file.chmod(0o622),
    "a link": _linked,
    "a pipe": _a_pipe,
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD.keys())
def test_what_was_not_kept_so_is_compiled_anew(spoil: Callable[[Path], object], compilations: Compilations) -> None:
    assert compilations.of() == 1
    (file,) = compilations.files
    spoil(file)
    assert [compilations.of(), compilations.of()] == [1, 0]
    assert file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600


def test_what_is_another_users_is_compiled_anew(compilations: Compilations, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compilations.of() == 1
    owner = os.geteuid()
    monkeypatch.setattr(disk.os, "geteuid", lambda: owner + 1)
    assert compilations.of() == 1


def test_without_a_place_to_keep_it(compilations: Compilations, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations.cache.write_text("a file where a folder should be")
    assert [compilations.of(), compilations.of()] == [1, 1]
    for name in ("VLLM_CLS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert compilations.of() == 1
