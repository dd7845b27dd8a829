"""docs/throughput.svg: throughput by length distribution, from results/lengths.json.

python benchmarks/lengths.py && python benchmarks/plot.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "lengths.json"
PICTURE = Path(__file__).parent.parent / "docs" / "throughput.svg"
NAMES = {
    "vllm-cls": "vllm-cls", "padded": "transformers, 32 sorted by length", "transformers": "transformers pipeline, 32",
}  # fmt: skip
COLOURS = {"vllm-cls": "#1b6ca8", "padded": "#8fb8d8", "transformers": "#c9c9c9"}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="what lengths.py wrote")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args(given)
    if not options.results.exists():
        print(f"skipped: {options.results} is not there; run benchmarks/lengths.py first")
    elif importlib.util.find_spec("matplotlib") is None:
        print("skipped: matplotlib is not installed; install it with: pip install matplotlib")
    else:
        draw(json.loads(options.results.read_text(encoding="utf-8"))["results"], options.out)
        print(f"wrote {options.out}")


def draw(documents: list[dict[str, Any]], out: Path) -> None:
    """Bars for each distribution, in tokens a second, one picture a shape."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vllm-cls"  # the same picture for the same numbers
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(each["shape"] for each in documents))
    figure, axes = pyplot.subplots(len(shapes), 1, figsize=(9, 3.6 * len(shapes)), squeeze=False, layout="constrained")
    for shape, axis in zip(shapes, axes[:, 0], strict=True):
        members = [each for each in documents if each["shape"] == shape]
        for number, (name, label) in enumerate(NAMES.items()):
            speeds = [_speed(each, name) / 1000 for each in members]
            places = [place + (number - 1) * 0.27 for place in range(len(members))]
            axis.bar(places, speeds, width=0.26, label=label, color=COLOURS[name])
        axis.set_xticks(range(len(members)), [_distribution(each) for each in members])
        axis.set_ylabel("thousand tokens a second")
        ran = members[0]["environment"]
        axis.set_title(f"{shape}, float32, {ran['device']}, {ran['threads']} threads", loc="left", fontsize=10, pad=24)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(NAMES))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def _speed(document: dict[str, Any], name: str) -> float:
    found = next((each for each in document["contenders"] if each["name"] == name and each["seconds"]), None)
    return float(found["tokens_per_second"]) if found else 0.0


def _distribution(document: dict[str, Any]) -> str:
    median, sigma = document["median"], document["sigma"]
    return f"all {median}\ntokens" if sigma == 0 else f"median {median}\nσ {sigma:g}"


if __name__ == "__main__":
    main()
