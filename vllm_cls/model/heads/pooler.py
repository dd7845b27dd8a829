"""Calibration and activation: logits → the numbers of a result."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...config import PoolerConfig
from ...pooler.activations import Activation


@dataclass(frozen=True)
class Pooler:
    """The pooling, the calibration and the activation of one model.

    Args:
        pooling: "CLS", "LAST", "MEAN" or a plugin's method, for one result a sequence.
        activation: logits → probabilities.
        config: calibration, defaults of requests, STEP's parameters.
    """

    pooling: str
    activation: Activation
    config: PoolerConfig

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """`(logits - logit_mean) / logit_sigma`, float32, same shape."""
        logits = logits.float()
        if self.config.mean is not None:
            logits = logits - self.config.mean
        if self.config.logit_sigma is not None:
            logits = logits / self.config.logit_sigma
        return logits

    def activates(self, use_activation: bool | None) -> bool:
        """Whether the activation applies: by the request's `use_activation`, else the model's, else True."""
        if use_activation is not None:
            return use_activation
        return self.config.use_activation is not False

    def finish(self, logits: torch.Tensor, use_activation: bool | None) -> torch.Tensor:
        """Calibrated logits → what the request asked for, same shape."""
        return self.activation(logits) if self.activates(use_activation) else logits
