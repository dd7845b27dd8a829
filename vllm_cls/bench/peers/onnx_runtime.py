"""ONNX Runtime: exported, fused by its own optimizer for transformers where that knows the model, best settings."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..environment import version
from .base import PaddedSession, Peer, PeerOptions, load_model, load_tokenizer, model_inputs

_OPSET = 18


class _OnnxSession(PaddedSession):
    def __init__(self, opening: PeerOptions) -> None:
        super().__init__(load_tokenizer(opening), opening)
        self._folder = tempfile.TemporaryDirectory(prefix="vcls-onnx-")
        path = Path(self._folder.name) / "model.onnx"
        self.names = [
            name
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in self.tokenizer.model_input_names
        ]
        config = self._export(path)
        self.path = str(_quantized(path) if opening.quantization else _fused(path, config))
        self.layout(1)

    def layout(self, workers: int) -> None:
        import onnxruntime

        super().layout(workers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.opening.threads // workers
        options.add_session_config_entry("session.force_spinning_stop", "1")  # let the next contender have the cores
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def batch(self, ids: list[list[int]], types: list[list[int]] | None) -> np.ndarray:
        inputs = model_inputs(self.tokenizer, ids, types)
        logits: np.ndarray = self.session.run(None, {name: inputs[name] for name in self.names})[0]
        return logits

    def close(self) -> None:
        super().close()
        self._folder.cleanup()

    def _export(self, path: Path) -> Any:
        """Trace the model; with SDPA attention its masks would not survive."""
        import torch

        from .tracing import Traceable, example

        model = load_model(self.opening, attn_implementation="eager")
        inputs = example(self.names, self.tokenizer.pad_token_id or 0)
        axes = {name: {0: "texts", 1: "tokens"} for name in self.names}
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Traceable(model, self.names),
                inputs,
                str(path),
                input_names=self.names,
                output_names=["logits"],
                dynamic_axes={**axes, "logits": {0: "texts"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        return model.config


def _fused(path: Path, config: Any) -> Path:
    """Attention, GELU and norms as single operators, for BERT-like models and GPT-2; other models unchanged."""
    from onnxruntime.transformers import optimizer

    kind = {"bert": "bert", "roberta": "bert", "xlm-roberta": "bert", "distilbert": "bert", "gpt2": "gpt2"}.get(
        config.model_type
    )
    if kind is None:
        return path
    model = optimizer.optimize_model(
        str(path), kind, num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
    )
    out = path.with_name("fused.onnx")
    model.save_model_to_file(str(out), use_external_data_format=False)
    return out


def _quantized(path: Path) -> Path:
    """Dynamic int8, a scale for each column of a weight, as ONNX Runtime's guide has it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, out = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(out), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return out


class OnnxRuntime(Peer):
    name, install = "onnxruntime", "pip install onnxruntime onnx"
    int8 = True

    def available(self) -> str | None:
        return version("onnxruntime") if version("onnx") else None

    def open(self, opening: PeerOptions) -> _OnnxSession:
        self.check_cpu_float32(opening)
        return _OnnxSession(opening)


PEER = OnnxRuntime()
