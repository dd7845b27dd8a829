"""The process of another rank, and the pipe to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from typing import Any

from . import ranks


class RankProcess:
    """A process that this one starts, and that ends with it.

    Args:
        rank: its number.
        module: run as `python -m`; it begins with `Follower(sys.argv)`.
        files: numbers of open files that it has, too.
    """

    def __init__(self, rank: int, module: str, files: Sequence[int] = ()) -> None:
        self.rank = rank
        self._pipe, theirs = Pipe()
        # As this process finds modules, and nothing else: no folder where it happens to run.
        path = os.pathsep.join(each for each in sys.path if each)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", module, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno(), *files],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    def tell(self, message: Any) -> None:
        """Send it something.

        Raises:
            OSError: it has ended.
        """
        self._pipe.send(message)

    def hear(self, seconds: float) -> tuple[str | None, Any]:
        """What comes within a time, a word and what is said of it; None where it has ended, or says nothing."""
        try:
            if self._pipe.poll(seconds):
                word, value = self._pipe.recv()
                return word, value
        except (EOFError, OSError):
            pass
        return None, None

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ended(self) -> str:
        """How it ended, for people; waits for it."""
        return f"rank {self.rank} (process {self._process.pid}) ended by itself, {_how(self._process.wait())}"

    def kill(self) -> None:
        """End it at once, if it has not."""
        if not self.has_ended:
            self._process.kill()

    def leave(self) -> None:
        """Say no more, by which it ends."""
        self._pipe.close()

    def close(self) -> None:
        """Wait for its end, and make it end if that takes long."""
        try:
            self._process.wait(ranks.END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()


def _how(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"with exit code {code}"
    hint = "; it may have run out of memory" if -code == signal.SIGKILL else ""
    return f"by signal {-code} ({signal.Signals(-code).name}{hint})"
