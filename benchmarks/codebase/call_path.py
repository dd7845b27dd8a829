"""How much of our code one text passes through: files, and calls of our functions, by `LLM.classify` and by `/classify`.

    python -m benchmarks.codebase.call_path [--list] [--shape tiny-bert] [--results FOLDER]

Counted in every thread by `sys.setprofile`, after a warm-up, of one text in one call, the shortest of five; the request
comes to the app in process, without a socket. A call is the start of a function, a lambda or a generator; that a generator
or a coroutine goes on is none, and neither is a comprehension, which some versions of Python run in a frame of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import torch

from vllm_cls import LLM
from vllm_cls.bench.environment import environment
from vllm_cls.bench.shapes import SHAPES, write_model
from vllm_cls.server import create_app

TEXT = "a text like any other"
WARM_UP = 3  # calls
TRIES = 5  # of which the shortest counts: on a busy machine a thread may wait once more for another
SETTLES = 0.1  # seconds after an answer in which other threads finish what belongs to it
OPTIONS: dict[str, Any] = {"device": "cpu", "num_threads": 1}  # the same path on every machine
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")
PACKAGES = ("vllm_cls", "vllm_cls.adapters", "vllm_cls.plugins", "vllm_cls.cli")


class Calls:
    """Counts the calls of our functions by file, in this thread and in those that start from now on, while it is `on`."""

    def __init__(self) -> None:
        specs = [importlib.util.find_spec(name) for name in PACKAGES]
        self._folders = [Path(path) for spec in specs if spec for path in spec.submodule_search_locations or ()]
        self._names: dict[str, str | None] = {}
        self._on = False
        self._seen: list[FrameType] = []
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def end(self) -> None:
        """Let go of the calls, and of the threads."""
        threading.setprofile(None)
        sys.setprofile(None)
        self._seen.clear()

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if self._on and event == "call":
            self._seen.append(frame)  # held, so that no other frame gets its id

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """What is called within, which is there at the end."""
        found: Counter[str] = Counter()
        self._seen.clear()
        self._on = True
        try:
            yield found
        finally:
            self._on = False
        frames = {id(frame): frame for frame in self._seen}
        found.update(name for name in map(self._name, frames.values()) if name)

    def _name(self, frame: FrameType) -> str | None:
        """The file of a call, if it is one of ours, from the folder in which the package is."""
        path = frame.f_code.co_filename
        if frame.f_code.co_name in COMPREHENSIONS:
            return None
        if path not in self._names:
            inside = [folder for folder in self._folders if folder in Path(path).parents]
            self._names[path] = str(Path(path).relative_to(inside[0].parent)) if inside else None
        return self._names[path]


def by_python(llm: LLM, calls: Calls) -> Counter[str]:
    """The path of a text through `LLM.classify`."""
    for _ in range(WARM_UP):
        llm.classify(TEXT)
    tries = []
    for _ in range(TRIES):
        with calls.counting() as found:
            llm.classify(TEXT)
        tries.append(found)
    return min(tries, key=Counter.total)


async def by_http(llm: LLM, calls: Calls) -> Counter[str]:
    """The path of a text through `/classify`."""
    app = create_app(llm)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(WARM_UP):
                await ask(client)
            tries = []
            for _ in range(TRIES):
                with calls.counting() as found:
                    await ask(client)
                tries.append(found)
    return min(tries, key=Counter.total)


async def ask(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify", json={"input": TEXT})
    answer.raise_for_status()
    await asyncio.sleep(SETTLES)


def measure(shape: str) -> dict[str, Counter[str]]:
    """The calls by file, each way."""
    calls = Calls()
    with tempfile.TemporaryDirectory() as folder, LLM(str(write_model(shape, Path(folder))), **OPTIONS) as llm:
        try:
            return {"LLM.classify": by_python(llm, calls), "/classify": asyncio.run(by_http(llm, calls))}
        finally:
            calls.end()


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny-bert")
    parser.add_argument("--list", action="store_true", help="the files too, with the calls in each")
    parser.add_argument("--results", type=Path, help="a folder to write call_path.json in; else nothing is written")
    options = parser.parse_args(given)
    paths = measure(options.shape)
    found = {way: {"files": len(path), "calls": path.total()} for way, path in paths.items()}
    whole = {way: {**numbers, "by_file": dict(paths[way].most_common())} for way, numbers in found.items()}
    print(json.dumps(whole if options.list else found, indent=1))
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        command, ran_on = " ".join(["python", *sys.argv]), environment(torch.get_num_threads())
        content = {"command": command, "environment": ran_on, "shape": options.shape, "results": whole}
        path = options.results / "call_path.json"
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
