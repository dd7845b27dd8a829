"""GPT-2 and what shares its class."""

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl


class GPT2(Decoder):
    """Learned positions, `score` on the last token; transformers has the class."""

    name = "gpt2"
    model_types = ("gpt2", "gpt-sw3")


@hookimpl
def vcls_architectures() -> list[GPT2]:
    return [GPT2()]
