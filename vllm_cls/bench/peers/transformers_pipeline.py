"""transformers' own pipeline, as its documentation shows it: batches of 32 in the order of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..environment import version
from ..workloads import Text
from .base import Peer, PeerOptions, Session, load_model, load_tokenizer

_BATCH = 32


class _PipelineSession(Session):
    def __init__(self, opening: PeerOptions) -> None:
        from transformers import pipeline

        self.batch_size, self.longest = opening.batch_size or _BATCH, opening.longest
        model, tokenizer = load_model(opening), load_tokenizer(opening)
        self.pipeline: Any = pipeline(
            "text-classification", model=model, tokenizer=tokenizer, device=opening.device, batch_size=self.batch_size
        )
        self.labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.settings = {"batch_size": self.batch_size, "threads": opening.threads, "sorted": False}

    def run(self, texts: Sequence[Text]) -> np.ndarray:
        inputs = [each if isinstance(each, str) else {"text": each[0], "text_pair": each[1]} for each in texts]
        rows = self.pipeline(inputs, top_k=None, function_to_apply="none", truncation=True, max_length=self.longest)
        place = {label: index for index, label in enumerate(self.labels)}
        logits = np.empty((len(rows), len(place)), dtype=np.float32)
        for number, row in enumerate(rows):
            for each in row:
                logits[number, place[each["label"]]] = each["score"]
        return logits


class Transformers(Peer):
    name, install = "transformers", "pip install transformers"

    def available(self) -> str | None:
        return version("transformers")

    def open(self, opening: PeerOptions) -> _PipelineSession:
        return _PipelineSession(opening)


PEER = Transformers()
