"""CTranslate2: its encoder for BERT-like models, then the model's own head in torch; float32 or int8, best settings."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..environment import version
from .base import PaddedSession, Peer, PeerOptions, load_model, load_tokenizer

_TYPES = ("bert", "distilbert", "roberta", "camembert")


class _CTranslate2Session(PaddedSession):
    def __init__(self, opening: PeerOptions) -> None:
        import torch

        from ...pooler.heads import ReplayedHead

        super().__init__(load_tokenizer(opening), opening)
        model: Any = load_model(opening)
        if model.config.model_type not in _TYPES:
            raise ConfigError(
                f"ctranslate2 has no encoder for {model.config.model_type}; it is measured for {', '.join(_TYPES)} only."
            )
        pooler = getattr(model.base_model, "pooler", None)
        self.head = ReplayedHead(model, pooler).eval()
        self.torch = torch
        self._folder = tempfile.TemporaryDirectory(prefix="vcls-ct2-")
        self.path = self._convert(model)
        self.layout(1)

    def _convert(self, model: Any) -> str:
        from ctranslate2.converters import TransformersConverter

        bare, out = Path(self._folder.name) / "bare", Path(self._folder.name) / "converted"
        model.base_model.save_pretrained(bare)
        self.tokenizer.save_pretrained(bare)
        config = json.loads((bare / "config.json").read_text())  # the converter asks for what transformers 5 dropped
        (bare / "config.json").write_text(json.dumps({**config, "position_embedding_type": "absolute"}))
        TransformersConverter(str(bare)).convert(str(out))
        shutil.rmtree(bare)
        return str(out)

    def layout(self, workers: int) -> None:
        import ctranslate2

        super().layout(workers)
        self.encoder = ctranslate2.Encoder(
            self.path,
            device="cpu",
            inter_threads=workers,
            intra_threads=self.opening.threads // workers,
            compute_type=self.opening.quantization or "float32",
        )

    def batch(self, ids: list[list[int]], types: list[list[int]] | None) -> np.ndarray:
        options = {"token_type_ids": types} if types is not None else {}
        states = np.array(self.encoder.forward_batch(ids, **options).last_hidden_state)[:, 0]
        with self.torch.inference_mode():
            logits: np.ndarray = self.head(self.torch.from_numpy(states)).numpy()
        return logits

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


class CTranslate2(Peer):
    name, install = "ctranslate2", "pip install ctranslate2"
    int8 = True

    def available(self) -> str | None:
        return version("ctranslate2")

    def open(self, opening: PeerOptions) -> _CTranslate2Session:
        self.check_cpu_float32(opening)
        return _CTranslate2Session(opening)


PEER = CTranslate2()
