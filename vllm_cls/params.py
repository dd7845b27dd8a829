"""The options of one request: vLLM's PoolingParams and LoRARequest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, nearest

_REMOVED = ("softmax", "activation", "normalize")


class PoolingParams:
    """Options of one request.

    Args:
        use_activation: False gives logits, True probabilities, None what the model's pooler says.
        step_tag_id: token id that marks a step, for STEP pooling.
        returned_token_ids: columns kept, for STEP pooling.
        extra_kwargs: options of `LLM.score`: `max_tokens_per_query`, `max_tokens_per_doc`, and `chat_template_kwargs`
            with an `instruction`.
        head_name: of a model with several heads, the one whose result is asked for; None is the first.
        dimensions: so many numbers of an embedding, the first ones; they are brought to unit length where the whole would be.

    Raises:
        ConfigError: for `softmax`, `activation` and `normalize`, names that vLLM removed, and any other.
    """

    __slots__ = ("dimensions", "extra_kwargs", "head_name", "returned_token_ids", "step_tag_id", "use_activation")

    def __init__(
        self,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: list[int] | None = None,
        extra_kwargs: dict[str, Any] | None = None,
        head_name: str | None = None,
        dimensions: int | None = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            if name in _REMOVED:
                raise ConfigError(f"PoolingParams({name}=…) was removed; use use_activation=True or False.")
            raise ConfigError(f"PoolingParams has no field {name!r}.{nearest(name, self.__slots__)}")
        if use_activation not in (None, True, False):
            raise ConfigError(f"PoolingParams.use_activation={use_activation!r} is not True, False or None.")
        number: Any = dimensions
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ConfigError(f"PoolingParams.dimensions={dimensions!r} is not a whole number from 1 on.")
        self.use_activation = use_activation
        self.step_tag_id = step_tag_id
        self.returned_token_ids = returned_token_ids
        self.extra_kwargs = extra_kwargs
        self.head_name = head_name
        self.dimensions = dimensions

    def __repr__(self) -> str:
        return f"PoolingParams({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


@dataclass(frozen=True)
class LoRARequest:
    """A LoRA adapter for a request (vLLM's fields).

    Args:
        lora_name: what it is called.
        lora_int_id: 1 or more.
        lora_path: the folder of a PEFT adapter.

    Raises:
        ConfigError: a field is empty or of another type.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        name: Any = self.lora_name
        number: Any = self.lora_int_id
        if not isinstance(name, str) or not name:
            raise ConfigError(f"LoRARequest.lora_name={name!r} is not a name.")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"LoRARequest.lora_int_id={number!r} is not a whole number from 1 on.")
        if not self.lora_path or not str(self.lora_path).strip():
            raise ConfigError(f"LoRARequest({self.lora_name!r}) has no lora_path; give the adapter's folder.")
        object.__setattr__(self, "lora_path", str(self.lora_path))
