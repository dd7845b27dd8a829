"""One text passes few files and few calls of ours: who adds one to the path finds it here, and thinks whether it has to be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vllm_cls.runtime.native.attention import compiled

MOST = {"LLM.classify": (17, 108), "/classify": (31, 214)}


@pytest.fixture(scope="module")
def paths() -> dict[str, Counter[str]]:
    """In a process of its own, where no other test has set up logs."""
    if compiled() is None:
        pytest.skip("without a C compiler attention is torch's, and its path another")
    command = [sys.executable, "-m", "benchmarks.codebase.call_path", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return {way: Counter(found["by_file"]) for way, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize("way", MOST)
def test_one_text_passes_no_more_than(paths: dict[str, Counter[str]], way: str) -> None:
    path, (files, calls) = paths[way], MOST[way]
    assert path.total() > 0
    assert len(path) <= files and path.total() <= calls, path.most_common()


def test_a_step_that_has_no_part_in_a_plain_text_is_not_passed(paths: dict[str, Counter[str]]) -> None:
    assert "vllm_cls/runtime/engine.py" in paths["LLM.classify"]
    unasked = (
        "registry",
        "config",
        "model/loading/",
        "runtime/cuda/",
        "runtime/prefixes/",
        "runtime/loadtime/",
        "media/",
    )
    passed = [
        file
        for path in paths.values()
        for file in path
        if file.startswith(tuple(f"vllm_cls/{each}" for each in unasked))
    ]
    assert passed == []
