"""Sentence Transformers' `CrossEncoder.predict`: sorted by length, padded batches of 32, pairs of texts only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..environment import version
from ..workloads import Text
from .base import Peer, PeerOptions, Session

_BATCH = 32


class _CrossEncoderSession(Session):
    def __init__(self, opening: PeerOptions) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(opening.threads)
        self.batch_size = opening.batch_size or _BATCH
        self.model: Any = CrossEncoder(
            opening.model,
            device=opening.device,
            max_length=opening.longest,
            model_kwargs={"dtype": getattr(torch, opening.dtype)},
        )
        self.settings = {"batch_size": self.batch_size, "threads": opening.threads, "sorted": True}

    def run(self, texts: Sequence[Text]) -> np.ndarray:
        import torch

        logits = self.model.predict(
            [list(each) for each in texts],
            batch_size=self.batch_size,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        return np.asarray(logits, dtype=np.float32).reshape(len(texts), -1)


class SentenceTransformers(Peer):
    name, install = "sentence-transformers", "pip install sentence-transformers"
    pairs_only = True

    def available(self) -> str | None:
        return version("sentence-transformers")

    def open(self, opening: PeerOptions) -> _CrossEncoderSession:
        return _CrossEncoderSession(opening)


PEER = SentenceTransformers()
