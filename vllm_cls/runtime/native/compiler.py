"""C files of this folder as libraries, compiled for this processor when they are first needed (0.3 s).

For what torch uses of this processor: `ATEN_CPU_CAPABILITY=avx2` keeps AVX-512 out of these too.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ...compat.disk import cache_folder, keep, read_kept

_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
# By torch's word for the instructions that it uses, which may be fewer than the processor has.
_RESTRICTED = {"AVX2": ("-mno-avx512f",)}
_TIMEOUT = 60  # seconds
# What tells processors apart, without what changes from moment to moment: of x86, of ARM, of others.
_PROCESSOR = re.compile(
    r"^(?:vendor_id|cpu family|model|model name|stepping|flags|Features|CPU \w+|cpu|isa|uarch)\s*:.*$", re.MULTILINE
)


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
        source = Path(__file__).with_name(f"{name}.c")
        command = [compiler, *_FLAGS, *_RESTRICTED.get(torch.backends.cpu.get_cpu_capability(), ()), *flags]
        kept = _kept(name, command)
        with tempfile.TemporaryDirectory(prefix="vllm_cls_", ignore_cleanup_errors=True) as folder:
            made = Path(folder, f"{name}.so")
            content = None if kept is None else read_kept(kept)
            if content is not None:
                made.write_bytes(content)
            else:
                run = [*command, str(source), "-o", str(made)]
                subprocess.run(run, check=True, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
                if kept is not None:
                    keep(made.read_bytes(), kept)
            return ctypes.CDLL(str(made))
    except subprocess.CalledProcessError as failure:
        log_absence(name, f"{compiler} fails: {failure.stderr.strip()[:200]}")
    except (OSError, subprocess.TimeoutExpired) as failure:
        log_absence(name, f"{type(failure).__name__}: {failure}")
    return None


def processor() -> list[str]:
    """Lines that tell this processor from others; none where they are not known.

    Raises:
        OSError: the system does not say.
    """
    return sorted(set(_PROCESSOR.findall(Path("/proc/cpuinfo").read_text(encoding="utf-8"))))


def sources(*names: str) -> list[str]:
    """The texts that libraries are compiled from: their own and those of the headers."""
    here = Path(__file__)
    files = [*(here.with_name(f"{name}.c") for name in names), *sorted(here.parent.glob("*.h"))]
    return [each.read_text("utf-8") for each in files]


def log_absence(name: str, reason: str) -> None:
    """Say why torch does what `name.c` would."""
    logging.getLogger("vllm_cls").info("%s runs without compiled loops, which are faster: %s", name, reason)


def _kept(name: str, command: Sequence[str]) -> Path | None:
    """Where the next process finds the library; None where it is not known whether that would be the same.

    Its name is a digest of all that makes it: the source, the flags, the compiler, the processor.
    """
    try:
        here, folder = processor(), cache_folder()
        compiler = Path(command[0]).resolve()
        of_compiler = compiler.stat()
    except (OSError, RuntimeError):
        return None
    if not here:
        return None
    parts = [*command, compiler, of_compiler.st_size, of_compiler.st_mtime_ns, *here, *sources(name)]
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    return folder / "native" / f"{name}-{digest[:32]}"
