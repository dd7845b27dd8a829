"""What a measurement ran on, as plain values for JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

FLAGS = "avx2 fma f16c avx512f avx512_vnni avx512_bf16 avx512_fp16 avx_vnni amx_tile amx_int8 amx_bf16".split()
_LIBRARIES = (
    "vllm-cls torch transformers tokenizers numpy sentence-transformers onnxruntime openvino ctranslate2 vllm torchao"
).split()


def environment(threads: int, device: str = "cpu") -> dict[str, Any]:
    """The machine, the versions, and when.

    Args:
        threads: that the contenders were given.
        device: "cpu" or "cuda[:N]".
    """
    from ..runtime.machine.cores import usable_cores

    name, flags = _cpu()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": name,
        "cpu_flags": flags,
        "cores": usable_cores(),
        "logical_cpus": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "device": device_name(device) or name,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _LIBRARIES if (found := version(name))},
        "commit": commit_of(Path(__file__)),
    }


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: str) -> str | None:
    """The name of a CUDA device; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    name: str = torch.cuda.get_device_name(device)
    return name


def _cpu() -> tuple[str, list[str]]:
    """Model name, and which of the instruction sets that matter here it has."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine(), []
    lines = [line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line]
    fields = {name.strip(): value.strip() for name, value in lines}
    has = set(fields.get("flags", "").split())
    return fields.get("model name", platform.machine()), [flag for flag in FLAGS if flag in has]


_SOURCES = (":(top)", ":(top,exclude)benchmarks/results")
_PLACE = "vllm_cls/bench/environment.py"  # of this file in our repository
# Set by git for what it starts (a hook, a rebase), they name the repository that this was started in.
_OF_GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


def commit_of(file: Path) -> str | None:
    """The commit of our source tree, a + where it was changed, but for results; None where this is no source tree of ours.

    Args:
        file: this one; an installed copy may lie in another repository, which does not have it, or not in this place.
    """
    variables = {name: value for name, value in os.environ.items() if name not in _OF_GIT}

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)

    try:
        if git("ls-files", "--full-name", "--", file.name).stdout.strip() != _PLACE:
            return None
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", *_SOURCES).returncode
    except OSError:
        return None
    return None if head.returncode else head.stdout.strip() + ("+" if changed else "")
