"""A contender's process, as seen from the measuring side."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..compat.lazy_imports import command_of
from ..errors import VclsError
from .peers.base import PeerOptions
from .workloads import Text

_ROOT = Path(__file__).resolve().parents[2]


class BenchError(VclsError):
    """A contender failed; the message says which and how."""


class Contender:
    """A subprocess with one model, which runs on request.

    Args:
        label: what it is called in the report.
        python: the interpreter of another virtual environment, for a library that needs its own.
    """

    def __init__(self, label: str, python: str | None = None) -> None:
        self.label = label
        self.version: str | None = None
        self.settings: dict[str, Any] = {}
        self.open_seconds = 0.0
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # Threads that wait for each other sleep, for all alike: on a shared machine those that spin lose much.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true", **os.environ}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if python is not None:  # it has no copy of this package
            environment["PYTHONPATH"] = str(_ROOT)
        self._process = subprocess.Popen(
            command_of("vllm_cls.bench.worker", python or sys.executable),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip

    def begin_open(self, peer: str, opening: PeerOptions) -> None:
        """Start loading a model; others may load at the same time."""
        self._send("open", peer=peer, opening=dataclasses.asdict(opening))

    def end_open(self) -> None:
        """Wait until it is loaded.

        Raises:
            BenchError: the peer cannot run this model.
        """
        opened = self._receive("open")
        self.version, self.open_seconds = opened["version"], opened["seconds"]

    def load(self, name: str, texts: Sequence[Text]) -> None:
        self.call("load", name=name, texts=texts)

    def tune(self, name: str) -> None:
        """Let it find its best settings for these texts."""
        self.settings = self.call("tune", name=name)

    def logits(self, name: str) -> np.ndarray:
        """`(num_texts, num_labels)`."""
        return np.array(self.call("logits", name=name), dtype=np.float32)

    def call(self, op: str, **arguments: Any) -> Any:
        """One request and its answer.

        Raises:
            BenchError: the library failed, or the process died.
        """
        self._send(op, **arguments)
        return self._receive(op)

    def _send(self, op: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise BenchError(f"{self.label}: its process ended before {op!r}: {self._last_words()}") from error

    def _receive(self, op: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self.label}: its process ended during {op!r}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.label}: {answer['error']}")
        return answer["ok"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _last_words(self) -> str:
        """The last lines that it wrote to standard error."""
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {self._process.returncode}"
