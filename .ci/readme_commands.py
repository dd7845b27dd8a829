"""Run what README.md and docs/*.md show, in order, from the root of the repository, after `make demo`.

In a ```console block, lines that begin with "$ " are commands (a trailing backslash continues one) and the rest is
output; a ```python block is a script. Every one of them has to succeed. Blocks of other languages are not run, nor are
commands that begin with `make`, which the caller runs. A `vcls serve` runs beside the commands behind it, until the page
ends: then SIGTERM must end it with 0.

    python .ci/readme_commands.py [FILE ...] [--list]
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS_TO_START = 120
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The argument lists that the blocks of a page stand for."""
    for language, block in BLOCK.findall(text):
        if language == "python":
            yield [sys.executable, "-c", block]
            continue
        for line in re.findall(r"^\$ (.*(?:(?<=\\)\n.*)*)", block, re.MULTILINE):
            if not line.startswith("make"):
                yield ["bash", "-euo", "pipefail", "-c", line]


@contextlib.contextmanager
def servers() -> Iterator[Callable[[list[str]], None]]:
    """Starts servers, each once the one before it answers; in the end they are told to stop, and have to."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        port = re.search(r"--port (\d+)", command[-1])
        started.append(subprocess.Popen([*command[:-1], "exec " + command[-1]], cwd=ROOT, stdin=subprocess.DEVNULL))
        url = f"http://127.0.0.1:{port[1] if port else 8000}/ready"
        deadline = time.monotonic() + SECONDS_TO_START
        while started[-1].poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            time.sleep(0.2)
        raise SystemExit(f"this server does not answer at {url}:\n{command[-1]}")

    try:
        yield start
        for process in started:
            process.terminate()
        codes = [process.wait(timeout=60) for process in started]
        if any(codes):
            raise SystemExit(f"servers that were told to stop ended with {codes}")
    finally:
        for process in started:
            process.kill()


def run(command: list[str], page: Path, start: Callable[[list[str]], None]) -> None:
    """Run a command until it is done, or a server until it answers."""
    began = time.monotonic()
    if command[-1].startswith("vcls serve") and "--help" not in command[-1]:
        start(command)
    else:
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise SystemExit(f"{page.name}: this command failed with exit code {done.returncode}:\n{command[-1]}")
    print(f"  ({time.monotonic() - began:.1f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--list", action="store_true", help="show the commands without running them")
    arguments = parser.parse_args()
    # docs/plugins.md shows parts of tests/third_party, which the tests run.
    pages = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "plugins.md"})]
    number = 0
    for page in arguments.files or pages:
        with servers() as start:
            for command in commands(page.read_text(encoding="utf-8")):
                number += 1
                print(f"$ {command[-1].rstrip()}", flush=True)
                if not arguments.list:
                    run(command, page, start)
    print(f"{number} commands of the documentation {'found' if arguments.list else 'succeeded'}")


if __name__ == "__main__":
    main()
