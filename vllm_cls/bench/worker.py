"""The process of one contender: `python -m vllm_cls.bench.worker`, requests and answers as lines of JSON.

A request is `{"op": …, arguments}`, an answer `{"ok": …}` or `{"error": …, "expected": whether its text is for the
user}`. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from ..errors import VclsError
from .workloads import Text


class Worker:
    """One opened model, or the matrix products, and named sets of texts."""

    def __init__(self) -> None:
        self.session: Any = None
        self.matrix: Any = None
        self.texts: dict[str, Sequence[Text]] = {}

    def open(self, peer: str, opening: dict[str, Any]) -> dict[str, Any]:
        """Load a model; its version and the seconds that took."""
        from . import peers
        from .peers.base import PeerOptions

        began = time.perf_counter()
        found = peers.peer(peer)
        self.session = found.open(PeerOptions(**opening))
        return {"version": found.available(), "seconds": time.perf_counter() - began}

    def load(self, name: str, texts: list[Any]) -> None:
        """Keep texts under a name."""
        self.texts[name] = [each if isinstance(each, str) else (each[0], each[1]) for each in texts]

    def tune(self, name: str) -> dict[str, Any]:
        """Find the fastest settings for these texts; returns them."""
        self.session.tune(self.texts[name])
        return dict(self.session.settings)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = self.session.describe()
        return described

    def logits(self, name: str) -> list[list[float]]:
        logits: list[list[float]] = self.session.run(self.texts[name]).tolist()
        return logits

    def run(self, name: str) -> dict[str, Any]:
        """One timed run: its seconds and details."""
        self.session.prepare()
        began = time.perf_counter()
        self.session.run(self.texts[name])
        return {"seconds": time.perf_counter() - began, "details": self.session.details()}

    def open_matrix(self, shapes: list[list[int]], **options: Any) -> None:
        """Make the matrix products; `shapes` holds inputs, outputs and how many."""
        from .matmul import MatrixSpeed

        self.matrix = MatrixSpeed({(inputs, outputs): count for inputs, outputs, count in shapes}, **options)

    def measure(self) -> dict[str, Any]:
        """GFLOP/s, and which form of each shape was the better one."""
        return {"gflops": self.matrix.measure(), "forms": self.matrix.forms}

    def close(self) -> None:
        for each in (self.session, self.matrix):
            if each is not None:
                each.close()


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"ok": getattr(worker, request.pop("op"))(**request)}
        except VclsError as error:
            answer = {"error": str(error), "expected": True}
        except Exception as error:  # of a library: the parent says which contender failed, and how
            traceback.print_exc()
            first = (str(error).strip().splitlines() or ["no message"])[0]
            answer = {"error": f"{type(error).__name__}: {first[:300]}", "expected": False}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    worker.close()


if __name__ == "__main__":
    main()
