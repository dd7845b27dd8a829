"""What requests of several routes have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from ...errors import nearest
from ...params import PoolingParams
from ..errors import RequestError

_REMOVED = ("softmax", "activation", "normalize")


def _whole(value: Any) -> Any:
    """3.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class CommonRequest(BaseModel):
    """Fields of every route that runs the model; the names are vLLM's."""

    model_config = ConfigDict(extra="forbid", strict=True)
    without_meaning: ClassVar[frozenset[str]] = frozenset()

    model: str | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    request_id: str | None = None
    priority: Whole = 0
    add_special_tokens: bool = True
    use_activation: bool | None = None

    @property
    def pooling_params(self) -> PoolingParams:
        """The options of the model's head."""
        return PoolingParams(use_activation=self.use_activation)

    @property
    def tokenization(self) -> dict[str, Any]:
        """`tokenization_kwargs` of `AsyncLLM`."""
        given = {
            "truncate_prompt_tokens": self.truncate_prompt_tokens,
            "truncation_side": self.truncation_side,
            "add_special_tokens": self.add_special_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def read(cls, given: dict[str, Any]) -> CommonRequest:
        """A request of this form.

        Raises:
            RequestError: a field is unknown or has a bad value.
        """
        for name in given:
            if name in _REMOVED:
                raise RequestError(f"{name!r} was removed; use use_activation, true or false.", name)
            if name not in cls.model_fields and name not in cls.without_meaning:
                raise RequestError(f"There is no field {name!r}.{nearest(name, cls.model_fields)}", name)
        return cls.model_validate({name: each for name, each in given.items() if name not in cls.without_meaning})


class Usage(TypedDict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None
