"""A GGUF file as a model: transformers' own logits, and nothing of its progress where nobody watches."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.decision import DecisionConfig
from transformers.pipelines import DecisionPipeline

from vllm_cls import LLM, convert

from ..models import gguf_file

OPTIONS = ["--head", "tokens", "--label-tokens", "bad= bad,good= good"]
COMMAND = [sys.executable, "-c", "from vllm_cls.cli.main import main; main()"]
PYTHON = "import sys, vllm_cls; vllm_cls.LLM(sys.argv[1], convert='none')"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, *gguf_file.write(path)


def test_a_head_of_a_gguf_files_words(model: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, lm, tokenizer = model
    report = convert(str(path), tmp_path / "out", head="tokens", label_tokens="bad= bad,good= good")
    assert report.format == "transformers"
    ids = tokenizer.convert_tokens_to_ids(["Ġbad", "Ġgood"])
    for text in ("The film was good", "a boring end"):
        with torch.no_grad():
            expected = lm(tokenizer(text, return_tensors="pt").input_ids).logits[0, -1, ids]
        assert LLM(str(tmp_path / "out")).classify(text)[0].outputs.logits == pytest.approx(expected.tolist(), abs=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "tiny.gguf"' in card and "made from `tiny.gguf`" in card


def test_settings_of_decisions_beside_the_file(model: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, lm, tokenizer = model
    (tmp_path / "linked.gguf").symlink_to(path)
    settings = DecisionConfig(labels={"noul": ["1", "0"]}, chat_template="{{ state }} {{ question.instructions }}:")
    settings.save_pretrained(tmp_path)
    request = {"state": "The film", "questions": {"good": {"type": "noul", "instructions": "Is it good?"}}}
    expected = DecisionPipeline(model=lm, tokenizer=copy.deepcopy(tokenizer), decision_config=settings)(request)
    with LLM(str(tmp_path / "linked.gguf")) as llm:  # which says what it is for
        assert llm.decide(request)[0]["good"]["noul"] == pytest.approx(expected["good"]["noul"], abs=1e-4)
        names = {file.name for file in llm.checkpoint_files if file.parent == tmp_path}
    assert names == {"decision.json", "decision_template.jinja"}


def fresh(cache: Path) -> dict[str, str]:
    """An environment whose cache is empty, so that the file is read."""
    return {**os.environ, "VLLM_CLS_CACHE": str(cache)}


@pytest.mark.parametrize("quiet", [True, False])
def test_a_command_draws_nothing_where_stderr_is_no_terminal(
    model: tuple[Path, Any, Any], tmp_path: Path, quiet: bool
) -> None:
    command = [*COMMAND, "convert", str(model[0]), str(tmp_path / "out"), *OPTIONS, *(["--quiet"] if quiet else [])]
    done = subprocess.run(command, env=fresh(tmp_path / "cache"), capture_output=True, text=True)
    assert done.returncode == 0 and ("wrote" in done.stdout) is not quiet
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines == [] if quiet else all(line.startswith("warning: ") for line in lines)


def test_nor_does_python(model: tuple[Path, Any, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PYTHON, str(model[0])]
    done = subprocess.run(command, env=fresh(tmp_path / "cache"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "drawn"),
    [(PYTHON, True), (f"import vllm_cls.cli.options as o; o.configure_output(o.State()); {PYTHON}", False)],
)
def test_a_terminal_sees_it_where_bars_are_wanted(
    model: tuple[Path, Any, Any], tmp_path: Path, code: str, drawn: bool
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model[0])], env=fresh(tmp_path / "cache"), stderr=theirs
    )
    seen = b""
    # Our end of theirs stays open: what a terminal holds when its last writer goes may be lost.
    while True:
        ended = process.poll() is not None  # before the look, so that what was written last is seen
        if select.select([ours], [], [], 0.2)[0]:
            seen += os.read(ours, 4096)
        elif ended:
            break
    os.close(theirs)
    os.close(ours)
    assert process.wait() == 0
    assert (b"GGUF" in seen) is drawn, seen
