"""transformers as a careful user runs it: sorted by length, padded batches of 32."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..environment import version
from .base import PaddedSession, Peer, PeerOptions, load_model, load_tokenizer, model_inputs

_BATCH = 32


class _PaddedTransformersSession(PaddedSession):
    def __init__(self, opening: PeerOptions) -> None:
        super().__init__(load_tokenizer(opening), opening)
        self.model: Any = load_model(opening)
        self.options = {"use_cache": False} if hasattr(self.model.config.get_text_config(), "use_cache") else {}

    def batch(self, ids: list[list[int]], types: list[list[int]] | None) -> np.ndarray:
        import torch

        with torch.inference_mode():
            inputs = {
                name: torch.from_numpy(value).to(self.opening.device)
                for name, value in model_inputs(self.tokenizer, ids, types).items()
            }
            logits: np.ndarray = self.model(**inputs, **self.options).logits.float().cpu().numpy()
        return logits


class Padded(Peer):
    name, install = "padded", "pip install transformers"

    def available(self) -> str | None:
        return version("transformers")

    def open(self, opening: PeerOptions) -> _PaddedTransformersSession:
        return _PaddedTransformersSession(dataclasses.replace(opening, batch_size=opening.batch_size or _BATCH))


PEER = Padded()
