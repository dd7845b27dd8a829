"""The tables of docs/performance.md, made of results/*.json, so that no number is typed.

python benchmarks/table.py            # prints them
python benchmarks/table.py --write    # puts them between the markers of docs/performance.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"
BEST = ("openvino", "ctranslate2", "onnxruntime")

Document = Mapping[str, Any]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args(given)
    text = render(options.results)
    if not options.write:
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def render(folder: Path) -> str:
    """All tables for which there are results, as markdown."""
    parts = []
    for name, (title, make) in TABLES.items():
        path = folder / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"### {title}", *ran_on(found["results"]), make(found["results"])]
    return "\n\n".join(parts) + "\n" if parts else "No results yet.\n"


def ran_on(documents: Sequence[Document]) -> list[str]:
    """Which commands ran, where and with what; once for all that ran alike."""
    ran: dict[str, list[str]] = {}
    for each in documents:
        ran.setdefault(_environment(each), []).append(f"`{each['command']}`")
    return [f"{', '.join(dict.fromkeys(commands))}: {where}." for where, commands in ran.items()]


def _environment(document: Document) -> str:
    ran = document["environment"]
    libraries = ", ".join(f"{name} {version}" for name, version in ran["versions"].items() if name != "vllm-cls")
    device = ran["device"] if ran["device"] == ran["cpu"] else f"{ran['device']}, {ran['cpu']}"
    flags = " ".join(ran["cpu_flags"])
    return (
        f"{device} ({flags}), {ran['threads']} threads, {ran['date'][:10]}, commit {ran['commit']}, "
        f"{document.get('statistic', 'medians')} of {document['rounds']} rounds; {libraries}"
    )


def products(documents: Sequence[Document]) -> str:
    kernels = list(dict.fromkeys(name for each in documents for layer in each["layers"] for name in layer["gflops"]))
    rows = [
        [each["shape"], each["instructions"], f"{layer['layer']} ({layer['inputs']} → {layer['outputs']})"]
        + [f"{layer['gflops'][name]:.0f}" if name in layer["gflops"] else "–" for name in kernels]
        for each in documents
        for layer in each["layers"]
    ]
    return _table(("shape", "instructions", "product", *kernels), rows)


def throughput(documents: Sequence[Document]) -> str:
    rows = []
    for each in documents:
        best = min((c for c in each["contenders"] if c["name"] in BEST and c["seconds"]), key=_median, default=None)
        rows.append([
            each["shape"], each["precision"], _speed(each),
            *(_ratio(each, name) for name in ("transformers", "transformers:1", "sentence-transformers", "padded")),
            f"{best['ratio']:.2f} ({best['name']}, {best['settings']['batch_size']} texts)" if best else "–",
            f"{each['ours']['useful_share']:.0%}", f"{each['ours']['model_share']:.0%}", f"{each['ours']['outside_forward']:.1%}",
        ])  # fmt: skip
    names = (
        "shape",
        "",
        "tokens/s",
        "pipeline, 32",
        "pipeline, 1",
        "CrossEncoder",
        "padded, sorted",
        "best of the others",
    )
    return _table([*names, "useful share", "model share", "outside the forward"], rows)


def prefix(documents: Sequence[Document]) -> str:
    rows = []
    for each in documents:
        on, off = _named(each, "vllm-cls"), _named(each, "sharing off")
        if on is None or off is None or not off["seconds"] or not on["counters"].get("num_tokens"):
            continue
        tokens = off["counters"]["num_tokens"] / on["counters"]["num_tokens"]
        speeds = [f"{off['ratio']:.2f}", f"{tokens:.2f}", f"{off['ratio'] / tokens:.2f}", _ratio(each, "padded")]
        rows.append([each["shape"], _speed(each), *speeds])
    return _table(
        ["shape", "tokens/s", "against sharing off", "ratio of tokens", "reached of it", "padded, sorted"], rows
    )


def against(*names: str) -> Callable[[Sequence[Document]], str]:
    """A table of ours beside these."""

    def make(documents: Sequence[Document]) -> str:
        rows = [
            [_model(each), each["workload"]["description"], _speed(each)]
            + [_ratio(each, name) for name in names]
            + [f"{each['ours']['useful_share']:.0%}"]
            for each in documents
        ]
        return _table(["model", "texts", "tokens/s", *names, "useful share"], rows)

    return make


def _model(document: Document) -> str:
    name = str(document["title"].split(",")[0])
    return f"{name}, int8" if document.get("precision") == "int8" else name


def int8_accuracy(documents: Sequence[Document]) -> str:
    rows = []
    for each in documents:
        changed = each["int8"]
        rows.append([
            each["title"].split(",")[0], f"{each['workload']['texts']:,}", f"{changed['labels_changed_percent']:.2f} %",
            f"{changed['largest_probability_change']:.4f}", _close(each), _ratio(each, "vllm-cls float32"),
        ])  # fmt: skip
    return _table(
        ["model", "texts", "labels changed", "largest change of a probability", "run again", "× as fast as float32"],
        rows,
    )


def _close(document: Document) -> str:
    counters = document["ours"]["counters"]
    return f"{counters['num_close_calls'] / counters['num_prompts']:.1%}"


def latency(documents: Sequence[Document]) -> str:
    rows = []
    for each in documents:
        ours = _named(each, "vllm-cls")
        if ours is not None and ours["seconds"]:
            peers = [_ratio(each, name) for name in ("transformers:1", "openvino:1", "onnxruntime:1", "ctranslate2:1")]
            load = f"{each['environment']['load_average'][0]:.0f}"
            rows.append([each["shape"], str(each["tokens"]), f"{1000 * _median(ours):.1f} ms", *peers, load])
    names = [
        "model",
        "tokens",
        "LLM.classify",
        "transformers",
        "openvino",
        "onnxruntime",
        "ctranslate2",
        "load average",
    ]
    return _table(names, rows)


def startup(documents: Sequence[Document]) -> str:
    rows = []
    for each in documents:
        seconds = {name: f"{found['median_seconds']:.1f} s" for name, found in each["contenders"].items()}
        shape, size, cache = each["title"].split(", ")
        rows.append([
            shape, size, cache.removeprefix("page cache "), *seconds.values(),
            *(f"{each['contenders'][name]['ratio']:.2f}" for name in list(seconds)[:2]),
        ])  # fmt: skip
    names = list(documents[0]["contenders"])
    return _table(["shape", "folder", "page cache", *names, *(f"{name}, ratio" for name in names[:2])], rows)


TABLES: dict[str, tuple[str, Callable[[Sequence[Document]], str]]] = {
    "products": ("Matrix products by kernel (GFLOP/s of one thread, 512 rows)", products),
    "throughput": ("Mixed lengths (a peer's time by ours)", throughput),
    "lengths": ("By length distribution", against("transformers", "padded")),
    "prefix": ("A shared prefix", prefix),
    "long": ("Long texts", against("transformers", "padded")),
    "rerank": ("One query, many documents", against("transformers", "padded", "sentence-transformers")),
    "latency": ("One text alone (a peer's time by ours)", latency),
    "int8_accuracy": ("What int8 changes", int8_accuracy),
    "startup": ("From the start of a process to its first answer (ratios to transformers' pipeline)", startup),
    "vllm_cpu": ("vLLM on a CPU", against("vllm", "padded:8")),
    "gpu": ("On a GPU, bfloat16", against("transformers", "padded", "vllm")),
}


def _named(document: Document, name: str) -> Mapping[str, Any] | None:
    return next((each for each in document["contenders"] if each["name"] == name), None)


def _ratio(document: Document, name: str) -> str:
    found = _named(document, name)
    return f"{found['ratio']:.2f}" if found is not None and "ratio" in found else "–"


def _speed(document: Document) -> str:
    ours = _named(document, "vllm-cls")
    return f"{ours['tokens_per_second']:,.0f}" if ours is not None and ours["seconds"] else "–"


def _median(contender: Mapping[str, Any]) -> float:
    return float(contender["median_seconds"])


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
