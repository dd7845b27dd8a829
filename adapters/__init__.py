"""What turns a model into a classifier. `as_seq_cls_model` is the public one; the rest is found through hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .families import Decoder, Encoder
    from .seq_cls import as_seq_cls_model

__all__ = ["Decoder", "Encoder", "as_seq_cls_model"]


def __getattr__(name: str) -> Any:
    if name == "as_seq_cls_model":  # torch is loaded only when a class is made
        from .seq_cls import as_seq_cls_model

        return as_seq_cls_model
    if name in __all__:
        from . import families

        return getattr(families, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
