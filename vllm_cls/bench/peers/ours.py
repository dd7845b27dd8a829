"""Ours, opened like a peer: `LLM.classify` on texts, or labels for their tokens, with what the engine counted."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...llm import LLM
from ...outputs import RequestOutput
from ...params import PoolingParams
from ...runtime.counters import Counters
from ..environment import version
from ..flops import Cost, TokenCounts, cost_of, shared_prefixes
from ..workloads import Text
from .base import Peer, PeerOptions, Session

_CUT = {"truncate_prompt_tokens": -1}


class _OurSession(Session):
    def __init__(self, opening: PeerOptions) -> None:
        options: dict[str, Any] = {
            "dtype": opening.dtype, "device": opening.device, "quantization": opening.quantization,
            **opening.options, "num_threads": opening.threads,
        }  # fmt: skip
        self.llm = LLM(opening.model, **options)
        self.settings = {"threads": opening.threads}
        self._counted = Counters()
        self._cost: Cost | None = None

    def run(self, texts: Sequence[Text]) -> np.ndarray:
        before = self._counters()
        outputs, logits = self._labelled(texts) if self.llm.task == "token_classify" else self._classified(texts)
        self._counted = self._counters() - before
        self._sequences = [each.prompt_token_ids for each in outputs]
        return logits

    def _classified(self, texts: Sequence[Text]) -> tuple[Sequence[RequestOutput[Any]], np.ndarray]:
        """`(num_texts, num_labels)`."""
        outputs = self.llm.classify(texts, use_tqdm=False, tokenization_kwargs=_CUT)
        return outputs, np.array([each.outputs.logits for each in outputs], dtype=np.float32)

    def _labelled(self, texts: Sequence[Text]) -> tuple[Sequence[RequestOutput[Any]], np.ndarray]:
        """`(num_tokens, num_labels)`, the tokens of all texts; of a process reward model, those that end a step."""
        params = PoolingParams(use_activation=False)
        outputs = self.llm.encode(
            texts, params, pooling_task="token_classify", use_tqdm=False, tokenization_kwargs=_CUT
        )
        return outputs, np.concatenate([each.outputs.data.float().numpy() for each in outputs])

    def prepare(self) -> None:
        """Reset state between runs: no prefixes of the call before, no garbage to collect."""
        self.llm.reset_prefix_cache()
        gc.collect()

    def details(self) -> dict[str, Any]:
        """Counts of the last run, and its multiply-adds: required by the model as written, and executed."""
        lengths = [len(ids) for ids in self._sequences]
        found: dict[str, Any] = {
            f.name: getattr(self._counted, f.name) for f in dataclasses.fields(Counters) if f.name.startswith("num_")
        }
        found["seconds"] = dict(self._counted.seconds)
        found["parallel_forwards"] = self.llm._open.engine.num_parallel
        cost = self.cost
        found["required"] = found["executed"] = cost.required(lengths)
        if self._counted.num_tokens:
            found["executed"] = cost.executed(lengths, self._counts(lengths))
        return found

    def describe(self) -> dict[str, Any]:
        """`vcls inspect`'s values, and the linear layers as `[inputs, outputs, how many]`."""
        return {**self.llm.describe(), "shapes": [[*shape, count] for shape, count in self.cost.shapes.items()]}

    @property
    def cost(self) -> Cost:
        """Of the model as transformers writes it, whatever the engine made of its layers."""
        if self._cost is None:
            import torch

            model: Any = self.llm.model
            with torch.device("meta"):
                self._cost = cost_of(type(model)(copy.deepcopy(model.config)))
        return self._cost

    def close(self) -> None:
        self.llm.close()

    def _counters(self) -> Counters:
        return self.llm.counters

    def _counts(self, lengths: Sequence[int]) -> TokenCounts:
        """What the counters say was computed; where prefixes were shared, the trie says which pairs that saved."""
        total = sum(lengths)
        tokens = min(self._counted.num_tokens, total)
        most, pairs = shared_prefixes(self._sequences)
        saved = round(pairs * min(1.0, (total - tokens) / most)) if most else 0
        return TokenCounts(tokens, min(self._counted.num_pruned_tokens, tokens), saved)


class Ours(Peer):
    name, install = "vllm-cls", "pip install vllm-cls"
    int8 = True

    def available(self) -> str | None:
        return version("vllm-cls")

    def open(self, opening: PeerOptions) -> _OurSession:
        return _OurSession(opening)


PEER = Ours()
