"""A client of `vcls serve`, and of any server that speaks vLLM's pooling API."""

from .client import AsyncClient, Client
from .errors import RejectedError, ServerError, UnreachableError
from .results import Answer, Classification, HeadInfo, ModelInfo, Pooled, Ranked, Score, ServedModel, Tokens, Usage

__all__ = [
    "Answer",
    "AsyncClient",
    "Classification",
    "Client",
    "HeadInfo",
    "ModelInfo",
    "Pooled",
    "Ranked",
    "RejectedError",
    "Score",
    "ServedModel",
    "ServerError",
    "Tokens",
    "UnreachableError",
    "Usage",
]
