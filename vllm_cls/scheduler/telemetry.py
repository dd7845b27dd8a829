"""What a running engine tells whoever watches it: the server's metrics, or nobody."""

from __future__ import annotations

from typing import Protocol


class Telemetry(Protocol):
    """Called as things happen, from the event loop and from the engine's threads: be quick, safe from any, and raise nothing.

    What is the case right now (`AsyncLLM.load`, `.queued_tokens`, `.is_alive`) is asked for, not told.
    """

    def request_queued(self, prompts: int, tokens: int) -> None:
        """A request was tokenized and waits for the device: so many prompts, of so many tokens together."""

    def stage(self, name: str, began: float, ended: float) -> None:
        """A request was in a stage; told from the task of the request, one stage after the other.

        Args:
            name: "tokenize" (waiting for a thread included), "queue" (until its first prompt begins to run), "compute" (until
                its last answer is there), or "respond" (the server's).
            began: on the clock `time.perf_counter`, as `ended`.
        """

    def batch(self, sequences: int, tokens: int, budget: int, tokens_saved: int) -> None:
        """What was waiting ran.

        Args:
            sequences: that were asked for, identical ones counted each.
            tokens: of these, as if each ran alone.
            budget: the most tokens that run together: `tokens / budget` is the fill, above 1 for a single longer prompt.
            tokens_saved: of these, not computed: shared beginnings and identical prompts.
        """

    def rejected(self, reason: str) -> None:
        """A request got no answer: "queue_full", "deadline", "cancelled" or "dead"."""

    def truncated(self, count: int) -> None:
        """So many prompts of a request were cut."""

    def predicted(self, label: str) -> None:
        """A text got this label, the most probable of several."""


class NullTelemetry:
    """Tells nobody."""

    def request_queued(self, prompts: int, tokens: int) -> None:
        pass

    def stage(self, name: str, began: float, ended: float) -> None:
        pass

    def batch(self, sequences: int, tokens: int, budget: int, tokens_saved: int) -> None:
        pass

    def rejected(self, reason: str) -> None:
        pass

    def truncated(self, count: int) -> None:
        pass

    def predicted(self, label: str) -> None:
        pass
