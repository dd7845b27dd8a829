"""Show a few rows that `vcls classify` wrote, one line each, the rarer errors first where there are true labels.

    python examples/show_predictions.py demo/predictions.jsonl [--rows 6]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=6)
    arguments = parser.parse_args()
    with arguments.file.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    step = max(1, len(rows) // arguments.rows)
    for row in rows[:: step][: arguments.rows]:
        text = " ".join(row["text"].split())
        print(f"{row['label']:>10} {row['score']:.3f}  {text if len(text) <= 80 else text[:79] + '…'}")


if __name__ == "__main__":
    main()
