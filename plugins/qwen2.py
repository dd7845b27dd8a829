"""Qwen2 and Qwen2.5 (text)."""

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl


class Qwen2(Decoder):
    """Rotary positions, grouped queries, `score` on the last token; transformers has the class."""

    name = "qwen2"
    model_types = ("qwen2",)


@hookimpl
def vcls_architectures() -> list[Qwen2]:
    return [Qwen2()]
