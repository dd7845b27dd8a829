"""The contenders of a benchmark: other libraries (peers), one file each, and ours, behind one interface (`base`).

A peer is named as NAME, or NAME:BATCH to fix the texts it takes at once, as in `transformers:1`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from ...errors import ConfigError, nearest
from .base import Peer

_MODULES = {
    "transformers": "transformers_pipeline",
    "padded": "padded",
    "sentence-transformers": "cross_encoder",
    "onnxruntime": "onnx_runtime",
    "openvino": "open_vino",
    "ctranslate2": "c_translate2",
    "vllm": "vllm_peer",
}
OURS = "vllm-cls"
NAMES = tuple(_MODULES)


@dataclass(frozen=True)
class PeerChoice:
    """A peer with a batch size, as `--against` names it."""

    name: str
    batch_size: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.batch_size is None else f"{self.name}:{self.batch_size}"


def parse(text: str) -> PeerChoice:
    """Read `NAME` or `NAME:BATCH`.

    Raises:
        ConfigError: there is no such peer, or the batch is no positive number.
    """
    name, _, batch = text.strip().partition(":")
    if name not in _MODULES:
        raise ConfigError(
            f"there is no peer {name!r} to measure against.{nearest(name, NAMES)} Known: {', '.join(NAMES)}."
        )
    if not batch:
        return PeerChoice(name)
    if not batch.isdigit() or int(batch) < 1:
        raise ConfigError(f"peer {text!r}: {batch!r} is no batch size; write it as {name}:32.")
    return PeerChoice(name, int(batch))


def peer(name: str) -> Peer:
    """The peer of this name, ours included; it need not be installed."""
    module = importlib.import_module(f".{_MODULES.get(name, 'ours')}", __name__)
    found: Peer = module.PEER
    return found


def require(choice: PeerChoice) -> Peer:
    """The peer, if it is installed.

    Raises:
        ConfigError: it is not; the message says how to install it.
    """
    found = peer(choice.name)
    if found.available() is None:
        raise ConfigError(f"{choice.name} is not installed; install it with: {found.install}")
    return found
