"""A client of `vcls serve`, and of any server that speaks vLLM's pooling API."""

from .client import AsyncClient, Client
from .errors import RejectedError, ServerError, UnreachableError
from .results import (
    Classification,
    DecisionAnswers,
    HeadInfo,
    ModelInfo,
    PairScore,
    PooledResult,
    Ranked,
    Response,
    ServedModelInfo,
    Tokens,
    Usage,
)

# Their names in 0.1.
Answer = Response
Pooled = PooledResult
Score = PairScore
ServedModel = ServedModelInfo

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "DecisionAnswers",
    "HeadInfo",
    "ModelInfo",
    "PairScore",
    "PooledResult",
    "Ranked",
    "RejectedError",
    "Response",
    "ServedModelInfo",
    "ServerError",
    "Tokens",
    "UnreachableError",
    "Usage",
]
