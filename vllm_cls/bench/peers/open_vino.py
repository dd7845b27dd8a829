"""OpenVINO: converted from PyTorch, float32 throughout, one stream a worker, best settings."""

from __future__ import annotations

import threading
import warnings

import numpy as np

from ...errors import ConfigError
from ..environment import version
from .base import PaddedSession, Peer, PeerOptions, load_model, load_tokenizer, model_inputs


class _OpenVinoSession(PaddedSession):
    def __init__(self, opening: PeerOptions) -> None:
        import openvino
        import torch

        from .tracing import Traceable, example

        super().__init__(load_tokenizer(opening), opening)
        known = ("input_ids", "attention_mask", "token_type_ids")
        self.names = [name for name in known if name in self.tokenizer.model_input_names]
        inputs = example(self.names, self.tokenizer.pad_token_id or 0)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = openvino.convert_model(Traceable(load_model(opening), self.names), example_input=inputs)
        self.layout(1)

    def layout(self, workers: int) -> None:
        import openvino

        super().layout(workers)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.opening.threads,
            "NUM_STREAMS": workers,
        }
        self.compiled = openvino.compile_model(self.model, "CPU", settings)
        self._requests = threading.local()

    def batch(self, ids: list[list[int]], types: list[list[int]] | None) -> np.ndarray:
        inputs = model_inputs(self.tokenizer, ids, types)
        if not hasattr(self._requests, "own"):
            self._requests.own = self.compiled.create_infer_request()
        result = self._requests.own.infer([inputs[name] for name in self.names], share_inputs=True)
        return np.array(result[0])


class OpenVino(Peer):
    name, install = "openvino", "pip install openvino"

    def available(self) -> str | None:
        return version("openvino")

    def open(self, opening: PeerOptions) -> _OpenVinoSession:
        if opening.quantization:
            raise ConfigError("openvino's int8 needs NNCF and calibration data; it is measured in float32 only.")
        self.check_cpu_float32(opening)
        return _OpenVinoSession(opening)


PEER = OpenVino()
