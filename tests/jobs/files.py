"""Files for tests of jobs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.readers import read_rows
from vllm_cls.jobs.rows import InputRow


def write(path: Path, data: bytes | str) -> Path:
    """A file with `data`, compressed as its name says."""
    raw = data.encode() if isinstance(data, str) else data
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(raw)
        raw = sink.getvalue().to_pybytes()
    path.write_bytes(raw)
    return path


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rows_of(*paths: Path, format: str | None = None) -> list[InputRow]:
    return list(read_rows(find_sources(paths, format)))


def fields_of(*paths: Path) -> list[dict[str, Any]]:
    """The fields of all rows, none of which is bad."""
    rows = rows_of(*paths)
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.fields for row in rows]
