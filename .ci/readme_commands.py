"""Run what README.md and docs/*.md show, in order, from the root of the repository, after `make demo`.

In a ```console block, lines that begin with "$ " are commands (a trailing backslash continues one) and the rest is
output; a ```python block is a script. Every one of them has to succeed. Blocks of other languages are not run, nor are
commands that begin with `make`, which the caller runs.

    python .ci/readme_commands.py [FILE ...] [--list]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--list", action="store_true", help="show the commands without running them")
    arguments = parser.parse_args()
    # docs/plugins.md shows parts of tests/third_party, which the tests run.
    pages = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "plugins.md"})]
    number = 0
    for page in arguments.files or pages:
        for command in commands(page.read_text(encoding="utf-8")):
            number += 1
            print(f"$ {command[-1].rstrip()}", flush=True)
            if arguments.list:
                continue
            began = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                raise SystemExit(f"{page.name}: this command failed with exit code {done.returncode}:\n{command[-1]}")
            print(f"  ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{number} commands of the documentation {'found' if arguments.list else 'succeeded'}")


if __name__ == "__main__":
    main()
