"""GPT-NeoX (Pythia) and its Japanese sibling."""

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl


class GPTNeoX(Decoder):
    """Causal models whose config says `is_decoder: false`, as an encoder's does that could be a decoder."""

    name = "gpt_neox"
    model_types = ("gpt_neox", "gpt_neox_japanese")


@hookimpl
def vcls_architectures() -> list[GPTNeoX]:
    return [GPTNeoX()]
