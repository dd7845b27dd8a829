"""The interface of a peer, and the base of those that run padded batches of token ids."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..workloads import Text

BATCH_SIZES = (4, 8, 16, 32)
_SAMPLE = 64  # texts that settings are tried on


@dataclass(frozen=True)
class PeerOptions:
    """What a peer is opened with.

    Args:
        model: a folder that transformers opens; for ours, whatever the user named.
        threads: to use, on a CPU.
        longest: texts are cut to so many tokens.
        dtype: of the weights, "float32", "bfloat16" or "float16".
        device: "cpu" or "cuda[:N]".
        quantization: None, or as `LLM` has it; a peer gets None or "int8".
        batch_size: texts at once; None takes the peer's default, or its best where it has to be found.
        options: for ours alone, the options of `LLM`.
    """

    model: str
    threads: int
    longest: int
    dtype: str = "float32"
    device: str = "cpu"
    quantization: str | None = None
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """An opened model.

    Attributes:
        settings: how it runs, for the report.
    """

    settings: dict[str, Any]

    def run(self, texts: Sequence[Text]) -> np.ndarray:
        """Logits `(num_texts, num_labels)`, float32, from text, in the order given."""
        raise NotImplementedError

    def tune(self, texts: Sequence[Text]) -> None:
        """Find the settings that are fastest for such texts; not timed."""

    def prepare(self) -> None:
        """Before each timed run; not timed."""

    def details(self) -> dict[str, Any]:
        """Details of the last run, for the report."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Details of the model, for the report."""
        return {}

    def close(self) -> None:
        """Free its resources."""


class Peer(ABC):
    """A library that classifies.

    Attributes:
        name: as the user writes it.
        install: the pip line.
        pairs_only: it takes pairs of texts and nothing else.
        int8: it has 8-bit arithmetic of its own.
    """

    name: str
    install: str
    pairs_only = False
    int8 = False

    @abstractmethod
    def available(self) -> str | None:
        """Its version, or None where it is not installed; imports nothing heavy."""

    @abstractmethod
    def open(self, opening: PeerOptions) -> Session:
        """Load the model.

        Raises:
            VclsError: it cannot run this model; the message says why.
        """

    def check_cpu_float32(self, opening: PeerOptions) -> None:
        """For a library that is measured on CPUs only, in float32 and perhaps in its own int8.

        Raises:
            ConfigError: another device or dtype is asked for.
        """
        if opening.device != "cpu" or opening.dtype != "float32":
            dtypes = "float32 or int8" if self.int8 else "float32"
            raise ConfigError(f"{self.name} is measured on a CPU in {dtypes} only; leave it out of --against.")


class PaddedSession(Session):
    """Texts sorted by length, in padded batches, on one or several workers; subclasses run a batch.

    Args:
        tokenizer: of the model.
        batch_size: None lets `tune` find the best one, and the best split of the threads among workers.
    """

    def __init__(self, tokenizer: Any, opening: PeerOptions) -> None:
        self.tokenizer, self.opening = tokenizer, opening
        self.fixed = opening.batch_size
        self.batch_size, self.workers = opening.batch_size or 8, 1
        self._pool: ThreadPoolExecutor | None = None

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        threads = self.opening.threads // self.workers
        return {"batch_size": self.batch_size, "workers": self.workers, "threads": threads, "sorted": True}

    def batch(self, ids: list[list[int]], types: list[list[int]] | None) -> np.ndarray:
        """Logits of one batch of sequences, not padded yet; called from any of the workers."""
        raise NotImplementedError

    def layout(self, workers: int) -> None:
        """Prepare for this many workers, which share `opening.threads`."""
        self.workers = workers
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = ThreadPoolExecutor(workers)

    def run(self, texts: Sequence[Text]) -> np.ndarray:
        ids, types = encode(self.tokenizer, texts, self.opening.longest)
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

        def one(members: list[int]) -> np.ndarray:
            return self.batch([ids[i] for i in members], types and [types[i] for i in members])

        parts = list(self._pool.map(one, batches)) if self._pool and self.workers > 1 else list(map(one, batches))
        logits = np.concatenate(parts).astype(np.float32)
        logits[order] = logits.copy()
        return logits

    def tune(self, texts: Sequence[Text]) -> None:
        if self.fixed is not None:
            return
        sample = list(texts)[:: max(1, len(texts) // _SAMPLE)]
        found: dict[tuple[int, int], float] = {}
        for workers in dict.fromkeys((1, self.opening.threads)):
            self.layout(workers)
            for self.batch_size in BATCH_SIZES:
                self.run(sample)
                began = time.perf_counter()
                self.run(sample)
                found[workers, self.batch_size] = time.perf_counter() - began
        workers, self.batch_size = min(found, key=lambda each: found[each])
        self.layout(workers)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def load_tokenizer(opening: PeerOptions) -> Any:
    """The model's tokenizer, loaded by transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(opening.model)


def load_model(opening: PeerOptions, **options: Any) -> Any:
    """The model as transformers loads it, on its device, with its threads set."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(opening.threads)
    dtype = getattr(torch, opening.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(opening.model, dtype=dtype, **options)
    return model.to(opening.device).eval()


def encode(tokenizer: Any, texts: Sequence[Text], longest: int) -> tuple[list[list[int]], list[list[int]] | None]:
    """Token ids and, where the model has them, token types of texts or of pairs."""
    first = [each if isinstance(each, str) else each[0] for each in texts]
    second = [each[1] for each in texts if not isinstance(each, str)] or None
    encoding = tokenizer(first, second, truncation=True, max_length=longest, return_attention_mask=False)
    types = encoding["token_type_ids"] if "token_type_ids" in tokenizer.model_input_names else None
    return encoding["input_ids"], types


def padded(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    """`(num_rows, longest)`, int64, filled on the right."""
    out = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def model_inputs(tokenizer: Any, ids: list[list[int]], types: list[list[int]] | None) -> dict[str, np.ndarray]:
    """Padded `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`."""
    inputs = {
        "input_ids": padded(ids, tokenizer.pad_token_id or 0),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
    }
    if types is not None:
        inputs["token_type_ids"] = padded(types, 0)
    return inputs
