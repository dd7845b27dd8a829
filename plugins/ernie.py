"""ERNIE (1.0 to 3.0): `ErnieForSequenceClassification`."""

from vllm_cls.adapters import Encoder
from vllm_cls.hookspecs import hookimpl


class Ernie(Encoder):
    """BERT's structure, with task type embeddings, which default to task 0."""

    name = "ernie"
    model_types = ("ernie",)
    tanh_dense = "ernie.pooler.dense"


@hookimpl
def vcls_architectures() -> list[Ernie]:
    return [Ernie()]
