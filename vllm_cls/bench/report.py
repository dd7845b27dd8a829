"""The report of a benchmark, as one JSON document.

`useful_share` (strict) and `model_share` are both shares of the matrix speed that was measured in the same rounds:

    useful_share = 2 × multiply-adds executed / seconds / matrix speed
    model_share  = 2 × multiply-adds required / seconds / matrix speed

where the seconds are the wall clock from texts to results, tokenization included; "executed" counts only what the
engine computed for a token that is there (no padding; for pruned tokens of the last layer only their keys and values;
nothing for shared prefixes and duplicates); "required" is what the model as written needs for all tokens through all
layers, each text alone. Pruning and sharing raise the second and not the first. The matrix speed is that of the
model's own linear shapes in the same dtype at the rows of one forward (`matmul`); of an int8 model, in float32.

    outside_forward = 1 − seconds in forwards, of all workers together / (seconds × forwards that may run at once)

is the share of the same seconds in which a place for a forward was empty: tokenization, planning, results, and
workers that waited for the others' last batches.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .environment import environment
from .interleave import ratio

if TYPE_CHECKING:
    from .benchmark import Benchmark, Entry

SCHEMA = 1
_MODEL = (
    "model model_class plugin execution why_not_packed pooling num_labels parameters bytes dtype device "
    "max_num_batched_tokens max_model_len"
).split()


def document(run: Benchmark, gflops: Sequence[float]) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        gflops: the matrix speed of each round.
    """
    by_label = {entry.label: entry for entry in run.entries}
    ours = by_label["vllm-cls"]
    assert ours.contender is not None
    summary = run.workload.summary()
    return {
        "schema": SCHEMA,
        "environment": environment(run.opening.threads, run.opening.device),
        "model": {
            **{name: run.described.get(name) for name in _MODEL},
            "quantization": run.options.quantization or "none",
        },
        "workload": summary,
        "rounds": run.options.rounds,
        "matrix": {
            "gflops": statistics.median(gflops),
            "all_gflops": list(gflops),
            "rows": run.rows,
            "forms": run.forms,
        },
        "ours": ours_section(ours.seconds, ours.details, gflops, run.opening.threads),
        "contenders": [contender_section(entry, by_label, summary) for entry in run.entries],
        "int8": int8_section(ours) if run.options.int8 else None,
    }


def ours_section(
    seconds: Sequence[float], details: Sequence[Mapping[str, Any]], gflops: Sequence[float], threads: int
) -> dict[str, Any]:
    """What the engine did in a run, where its time went, and the shares of the matrix speed.

    Args:
        seconds: of each round.
        details: of each round, as `peers.ours` gives them.
        gflops: the matrix speed of each round.
    """
    last = details[-1]
    stages = {stage: statistics.median(each["seconds"][stage] for each in details) for stage in last["seconds"]}
    outside = [
        1 - each["seconds"]["forward"] / (wall * each["parallel_forwards"])
        for each, wall in zip(details, seconds, strict=True)
    ]
    return {
        "counters": counters(last),
        "stage_seconds": stages,
        "outside_forward": statistics.median(outside),
        "parallel_forwards": last["parallel_forwards"],
        "threads": threads,
        "multiply_adds": {"required": last["required"], "executed": last["executed"]},
        "useful_share": _share(last["executed"], seconds, gflops),
        "model_share": _share(last["required"], seconds, gflops),
    }


def contender_section(entry: Entry, by_label: Mapping[str, Entry], workload: Mapping[str, Any]) -> dict[str, Any]:
    """One contender: how it ran, whether it agreed, and its times; `ratio` is its time by ours."""
    contender, rival = entry.contender, by_label.get(entry.rival)
    found: dict[str, Any] = {
        "name": entry.label,
        "version": contender.version if contender else None,
        "settings": contender.settings if contender else {},
        "open_seconds": contender.open_seconds if contender else None,
        "input": entry.texts,
        "error": entry.error,
        "agreement": None,
        "seconds": list(entry.seconds),
        "counters": counters(entry.details[-1]) if entry.details else {},
    }
    if entry.agreement is not None:
        found["agreement"] = {**dataclasses.asdict(entry.agreement), "equal": entry.agreement.equal}
    if entry.seconds:
        median = statistics.median(entry.seconds)
        found |= {
            "median_seconds": median,
            "texts_per_second": workload["texts"] / median,
            "tokens_per_second": workload["tokens"] / median,
        }
        if rival is not None and rival.seconds:
            found |= {"ratio": ratio(entry.seconds, rival.seconds), "ratio_to": entry.rival}
    return found


def counters(details: Mapping[str, Any]) -> dict[str, int]:
    """The engine's counters among the details of a run; empty for peers."""
    return {name: value for name, value in details.items() if name.startswith("num_")}


def int8_section(ours: Entry) -> dict[str, float]:
    """What int8 changes of the same model's float32 results."""
    assert ours.agreement is not None
    return {
        "labels_changed_percent": ours.agreement.labels_changed,
        "largest_probability_change": ours.agreement.probability_change,
        "largest_logit_change": ours.agreement.logit_difference,
    }


def _share(multiply_adds: float, seconds: Sequence[float], gflops: Sequence[float]) -> float:
    """The median over the rounds of the speed reached by the matrix speed of the same round."""
    return statistics.median(2e-9 * multiply_adds / each / speed for each, speed in zip(seconds, gflops, strict=True))
