"""The HTTP server: vLLM's classification API over an `AsyncLLM`.

app = create_app(llm)            # an ASGI app of its own, or to mount in another
run_batch("my-classifier", "requests.jsonl", "answers.jsonl")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .settings import ServerSettings

if TYPE_CHECKING:
    from .app import create_app, open_app
    from .batch import run_batch

__all__ = ["ServerSettings", "create_app", "open_app", "run_batch"]

_MODULES = {"create_app": "app", "open_app": "app", "run_batch": "batch"}  # FastAPI takes long to import


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
