"""Turns, agreement, environment, matrix speed: the small parts."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vllm_cls.bench import environment as environment_module
from vllm_cls.bench import peers
from vllm_cls.bench.agreement import agreement
from vllm_cls.bench.environment import commit_of, environment
from vllm_cls.bench.interleave import interleave, ratio
from vllm_cls.bench.matmul import MatrixSpeed
from vllm_cls.bench.shapes import SHAPES, write_model
from vllm_cls.compat.lazy_imports import command_of
from vllm_cls.errors import ConfigError


def test_contenders_take_turns() -> None:
    order: list[str] = []
    told: list[tuple[int, str]] = []

    def turn(name: str, seconds: float) -> float:
        order.append(name)
        return seconds + len(order)

    found = interleave(
        {"a": lambda: turn("a", 0.0), "b": lambda: turn("b", 10.0)}, 3, lambda number, name: told.append((number, name))
    )
    assert order == ["a", "b"] * 3
    assert found == {"a": [1.0, 3.0, 5.0], "b": [12.0, 14.0, 16.0]}
    assert told == [(number, name) for number in range(3) for name in "ab"]


def test_a_ratio_is_of_neighbours() -> None:
    assert ratio([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == 3.0


def test_agreement_of_logits() -> None:
    reference = np.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.4]], dtype=np.float32)
    same = agreement(reference, reference + 1e-6, precision="float32")
    assert same.equal and same.labels_changed == 0
    other = agreement(reference, reference[::-1], precision="float32")
    assert not other.equal
    turned = agreement(reference, reference[:, ::-1], precision="float32")
    assert turned.labels_changed == 100
    assert math.isclose(turned.probability_change, 2 / (1 + math.exp(-3)) - 1, rel_tol=1e-5)
    assert not agreement(reference, reference[:2], precision="float32").equal
    assert not agreement(reference, reference * np.nan, precision="float32").equal
    negated = agreement(reference[:, :1], -reference[:, :1], precision="int8")
    assert math.isclose(negated.labels_changed, 200 / 3)


def test_environment_is_json() -> None:
    found = json.loads(json.dumps(environment(2)))
    assert found["threads"] == 2 and found["cores"] >= 1
    assert {"torch", "transformers", "vllm-cls"} <= found["versions"].keys()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A repository of somebody else's, with a commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("x")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "theirs")
    return tmp_path


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("committed", [False, True])
def test_a_copy_that_is_installed_in_another_repository_has_no_commit(other: Path, committed: bool) -> None:
    copy = other / "venv" / "lib" / "vllm_cls" / "bench" / "environment.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(environment_module.__file__, copy)
    if committed:
        git(other, "add", "-A")
        git(other, "commit", "-qm", "with its packages")
    assert commit_of(copy) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_our_own_tree(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it here, whatever repository the process was started in, or by."""
    ours = other / "ours"
    copy = ours / "vllm_cls" / "bench" / "environment.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(environment_module.__file__, copy)
    git(ours, "init", "-q")
    assert commit_of(copy) is None  # which is nobody's yet
    git(ours, "add", "-A")
    git(ours, "commit", "-qm", "ours")
    monkeypatch.chdir(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    found = commit_of(copy)
    monkeypatch.undo()
    assert found == git(ours, "rev-parse", "--short", "HEAD")
    (ours / "benchmarks" / "results").mkdir(parents=True)
    (ours / "benchmarks" / "results" / "new.json").write_text("{}")
    assert commit_of(copy) == found
    copy.write_text("")
    assert commit_of(copy) == f"{found}+"


def test_what_lies_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    for name in ("vllm_cls.py", "numpy.py", "runpy.py"):
        (tmp_path / name).write_text("raise SystemExit('theirs')")
    done = subprocess.run(command_of("vllm_cls.bench.worker"), cwd=tmp_path, capture_output=True, text=True, input="")
    assert (done.returncode, done.stderr) == (0, "")


def test_matrix_speed_is_measured_for_each_shape() -> None:
    speed = MatrixSpeed({(16, 32): 2, (32, 16): 1}, rows=8, threads=1, dtype="float32", device="cpu")
    assert speed.measure() > 0
    assert speed.forms.keys() == {"16×32", "32×16"}
    speed.close()


def test_peers_by_name() -> None:
    assert peers.parse("openvino:16") == peers.PeerChoice("openvino", 16)
    assert peers.parse("padded").label == "padded"
    with pytest.raises(ConfigError, match="Did you mean 'transformers'"):
        peers.parse("transformer")
    with pytest.raises(ConfigError, match="padded:32"):
        peers.parse("padded:many")


def test_every_peer_says_how_to_install_it() -> None:
    for name in peers.NAMES:
        assert peers.peer(name).name == name
        assert peers.peer(name).install.startswith("pip install ")


def test_an_unknown_shape_is_refused(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'minilm'"):
        write_model("mini-lm", tmp_path)  # type: ignore[arg-type]
    assert {"minilm", "bert-base", "gpt2", "qwen2-0.5b", "qwen2-1.5b", "qwen2-7b"} <= SHAPES.keys()
