"""What turns a model into a classifier. What plugins extend is public; hooks find the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifiers.decision_model import DecisionModel
    from .classifiers.families import Decoder, Encoder
    from .classifiers.reward import as_reward_model
    from .classifiers.seq_cls import as_seq_cls_model
    from .classifiers.token_cls import as_token_cls_model

__all__ = ["DecisionModel", "Decoder", "Encoder", "as_reward_model", "as_seq_cls_model", "as_token_cls_model"]


def __getattr__(name: str) -> Any:
    if name == "as_seq_cls_model":  # torch is loaded only when a class is made
        from .classifiers.seq_cls import as_seq_cls_model

        return as_seq_cls_model
    if name == "as_token_cls_model":
        from .classifiers.token_cls import as_token_cls_model

        return as_token_cls_model
    if name == "DecisionModel":
        from .classifiers.decision_model import DecisionModel

        return DecisionModel
    if name == "as_reward_model":
        from .classifiers.reward import as_reward_model

        return as_reward_model
    if name in __all__:
        from .classifiers import families

        return getattr(families, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
