"""What the requests and the responses of several routes hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict

_OF_OPENAI = frozenset(
    "frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata modalities n parallel_tool_calls "
    "presence_penalty prompt_cache_key reasoning_effort response_format safety_identifier seed service_tier stop store stream "
    "stream_options temperature tool_choice tools top_logprobs top_p verbosity".split()
)
_OF_VLLM = frozenset(
    "allowed_token_ids bad_words data_parallel_rank ignore_eos kv_transfer_params late_chunking_params min_p min_tokens "
    "prompt_logprobs repetition_penalty return_token_ids skip_special_tokens vllm_xargs".split()
)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def marked(name: str, **schema: Any) -> WithJsonSchema:
    """A schema that `openapi` completes with what it knows under `name`: the model's limits, the server's settings."""
    return WithJsonSchema({**schema, "x-limit": name})


WHOLE = BeforeValidator(_whole)
"""On an `int`: 3.0 too."""
TokenId = Annotated[int, WHOLE, marked("token_id", type="integer", minimum=0)]
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]
"""Options that only requests with images or videos may have: none."""
RequestId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
CacheSalt = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")]
_Length = Annotated[
    int,
    Field(ge=-1),
    WHOLE,
    WithJsonSchema({"anyOf": [{"const": -1}, {"type": "integer", "minimum": 1, "x-limit": "length"}]}),
]


def _complete(schema: dict[str, Any], model: type[BaseRequest]) -> None:
    schema.update(model.schema_extra)
    for name in sorted(model.ignored_fields - set(schema["properties"])):
        schema["properties"][name] = {"description": "Accepted, without effect."}


class BaseRequest(BaseModel):
    """A JSON object whose fields are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_complete)
    ignored_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of vLLM's and OpenAI's requests that are accepted and ignored."""
    schema_extra: ClassVar[Mapping[str, Any]] = {}
    """What the JSON schema says on top of the fields'."""

    params: ClassVar[Mapping[str | None, str]] = {}
    """The names of fields in errors: of a prompt (None), of the two sides of a pair ("query" and "document")."""

    model: str | None = None

    def param_names(self) -> Mapping[str | None, str]:
        """`params`, by what this request gives."""
        return self.params


class CommonRequest(BaseRequest):
    """Fields of every route that runs the model; the names are vLLM's."""

    ignored_fields: ClassVar[frozenset[str]] = _OF_OPENAI | _OF_VLLM

    user: str | None = None
    truncate_prompt_tokens: _Length | None = None
    truncation_side: Literal["left", "right"] | None = None
    padding: Literal["max_length", "do_not_pad"] | None = Field(None, description="Without effect on the result.")
    request_id: RequestId | None = None
    priority: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), WHOLE] = 0
    mm_processor_kwargs: EmptyObject | None = None
    cache_salt: CacheSalt | None = None
    use_activation: bool | None = None
    head_name: Annotated[str, marked("head_name")] | None = None
    add_special_tokens: bool = True


class ResponseHeader(TypedDict):
    """The first fields of a response."""

    id: str
    object: str
    created: int
    model: str


class UsageInfo(TypedDict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None
