"""Show a few rows that `vcls classify` wrote, spread over the file: predicted label, probability, true label, text.

python examples/show_predictions.py demo/predictions.jsonl [--rows 6]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

WIDTH = 70


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=6)
    arguments = parser.parse_args()
    with arguments.file.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    print(f"{'predicted':<10} {'score':<6} {'true':<10} text")
    for row in rows[:: max(1, len(rows) // arguments.rows)][: arguments.rows]:
        text = " ".join(row["text"].split())
        text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
        print(f"{row['label']:<10} {row['score']:<6.3f} {row.get('input_label', '–'):<10} {text}")


if __name__ == "__main__":
    main()
