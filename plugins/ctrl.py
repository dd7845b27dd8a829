"""CTRL: a decoder whose head is called `classifier`."""

from vllm_cls.adapters import Decoder
from vllm_cls.hookspecs import hookimpl


class CTRL(Decoder):
    """Sinusoidal positions, `classifier` on the last token; transformers has the class."""

    name = "ctrl"
    model_types = ("ctrl",)
    final_linear = "classifier"


@hookimpl
def vcls_architectures() -> list[CTRL]:
    return [CTRL()]
