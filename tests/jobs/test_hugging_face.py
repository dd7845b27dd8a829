"""Inputs in a repository of Hugging Face (`hf://`), by its API as a server of this machine gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("huggingface_hub")
REPOSITORY = "datasets/me/set"
READ = """
import json, sys
from vllm_cls.errors import JobError
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.readers import read_rows

for url in sys.argv[1:]:
    try:
        sources = find_sources(url)
        print(json.dumps([[each.name for each in sources], [row.fields for row in read_rows(sources)]]))
    except JobError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a server, and the files of its one repository by their paths."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(self.path).partition("?")[0]
            if path == f"/api/{REPOSITORY}":
                self.answer(200, json.dumps({"id": "me/set", "sha": "0" * 40}).encode())
            elif path.startswith(f"/api/{REPOSITORY}/tree/main"):
                found = [{"type": "file", "oid": "1" * 40, "size": len(files[each]), "path": each} for each in files]
                folder = {"type": "directory", "oid": "2" * 40, "size": 0, "path": "data"}
                self.answer(200, json.dumps([folder, *found]).encode())
            elif path.startswith(f"/{REPOSITORY}/resolve/main/") and path.partition("/main/")[2] in files:
                self.answer(200, files[path.partition("/main/")[2]])
            else:
                self.answer(404, b"{}")

        def answer(self, status: int, body: bytes) -> None:
            asked = self.headers.get("Range")
            if asked and status == 200:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                status, body = 206, body[int(first) : int(last or len(body)) + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", files
        server.shutdown()


def read(address: str, *urls: str) -> list[Any]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", READ, *urls]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_of_a_repository(hub: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    address, files = hub
    pq.write_table(pa.table({"text": ["c"]}), tmp_path / "c.parquet")
    lines = {"data/a.jsonl": b'{"text": "a"}\n', "data/b c.jsonl": b'{"text": "b"}\n'}
    files |= {**lines, "data/c.parquet": (tmp_path / "c.parquet").read_bytes()}
    root = f"hf://{REPOSITORY}/data"
    one, several, table, absent = read(
        address, f"{root}/a.jsonl", f"{root}/*.jsonl", f"{root}/c.parquet", f"{root}/no.jsonl"
    )
    assert one == [[f"{root}/a.jsonl"], [{"text": "a"}]]
    assert several == [[f"{root}/a.jsonl", f"{root}/b c.jsonl"], [{"text": "a"}, {"text": "b"}]]
    assert table == [[f"{root}/c.parquet"], [{"text": "c"}]]
    assert absent.startswith(f"there is no file '{root}/no.jsonl'")
    (away,) = read("http://127.0.0.1:1", f"{root}/a.jsonl")
    assert away == f"{root}/a.jsonl cannot be read: [Errno 111] Connection refused."
