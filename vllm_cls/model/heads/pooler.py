"""Calibration and activation: logits → the numbers of a result."""

from __future__ import annotations

import functools
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

    @functools.cached_property
    def calibrated(self) -> Activation:
        """`(logits - logit_mean) / logit_sigma`, float32, same shape."""
        mean, sigma = self.config.mean, self.config.logit_sigma
        if mean is None and sigma is None:
            return torch.Tensor.float
        return functools.partial(_standardized, mean=mean, sigma=sigma)

    @functools.cached_property
    def activates_unasked(self) -> bool:
        """Whether requests that do not say get what the activation gives."""
        return self.activates(None)

    def activates(self, use_activation: bool | None) -> bool:
        """Whether the activation applies: by the request's `use_activation`, else the model's, else True."""
        if use_activation is not None:
            return use_activation
        return self.config.use_activation is not False

    def finish(self, logits: torch.Tensor, use_activation: bool | None) -> torch.Tensor:
        """Calibrated logits → the result that the request asked for, same shape."""
        return self.activation(logits) if self.activates(use_activation) else logits


def _standardized(logits: torch.Tensor, mean: float | None, sigma: float | None) -> torch.Tensor:
    logits = logits.float()
    if mean is not None:
        logits = logits - mean
    return logits if sigma is None else logits / sigma
