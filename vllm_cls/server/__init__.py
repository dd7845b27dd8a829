"""The HTTP server: vLLM's classification API over an `AsyncLLM`.

app = create_app(llm)            # an ASGI app of its own, or to mount in another
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import ServerSettings

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .app import create_app  # FastAPI takes long to import

    return create_app
