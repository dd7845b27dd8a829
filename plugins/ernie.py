"""ERNIE (1.0 to 3.0): `ErnieForSequenceClassification`."""

from vllm_cls.adapters import Encoder
from vllm_cls.hookspecs import hookimpl


class Ernie(Encoder):
    """BERT's form, with task type embeddings that default to task 0."""

    name = "ernie"
    model_types = ("ernie",)
    tanh_dense = "ernie.pooler.dense"


@hookimpl
def vcls_architectures() -> list[Ernie]:
    return [Ernie()]
