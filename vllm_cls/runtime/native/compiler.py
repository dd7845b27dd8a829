"""C files of this folder as libraries: compiled for this processor when they are first needed (0.3 s), kept nowhere."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_TIMEOUT = 60  # seconds


def library(name: str, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The library that `name.c` makes, or None where it cannot be made here; the log says why.

    Args:
        flags: of the compiler, beside those for all.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log_absence(name, "there is no C compiler")
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="vllm_cls_", ignore_cleanup_errors=True) as folder:
            made = Path(folder, f"{name}.so")
            source = Path(__file__).with_name(f"{name}.c")
            command = [compiler, *_FLAGS, *flags, str(source), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
            return ctypes.CDLL(str(made))
    except subprocess.CalledProcessError as failure:
        log_absence(name, f"{compiler} fails: {failure.stderr.strip()[:200]}")
    except (OSError, subprocess.TimeoutExpired) as failure:
        log_absence(name, f"{type(failure).__name__}: {failure}")
    return None


def log_absence(name: str, reason: str) -> None:
    """Say why torch does what `name.c` would."""
    logging.getLogger("vllm_cls").info("%s runs without compiled loops, which are faster: %s", name, reason)
