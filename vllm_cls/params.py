"""What a single request may ask for (vLLM's PoolingParams and LoRARequest's place)."""

from __future__ import annotations

from typing import Any

from .errors import ConfigError, nearest

_REMOVED = ("softmax", "activation", "normalize")


class PoolingParams:
    """Options of one request.

    Args:
        use_activation: False gives logits, True probabilities, None what the model's pooler says.
        step_tag_id: token id that marks a step, for STEP pooling.
        returned_token_ids: columns kept, for STEP pooling.

    Raises:
        ConfigError: for `softmax`, `activation` and `normalize`, names that vLLM removed, and any other.
    """

    __slots__ = ("returned_token_ids", "step_tag_id", "use_activation")

    def __init__(
        self,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: list[int] | None = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            if name in _REMOVED:
                raise ConfigError(f"PoolingParams({name}=…) was removed; use use_activation=True or False.")
            raise ConfigError(f"PoolingParams has no field {name!r}.{nearest(name, self.__slots__)}")
        if use_activation not in (None, True, False):
            raise ConfigError(f"PoolingParams.use_activation={use_activation!r} is not True, False or None.")
        self.use_activation = use_activation
        self.step_tag_id = step_tag_id
        self.returned_token_ids = returned_token_ids

    def __repr__(self) -> str:
        return f"PoolingParams({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"
