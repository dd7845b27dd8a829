"""Heads as values, which the core and the adapters exchange: of one layer, of label texts, of a class's own parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LinearHead:
    """A head that is linear in the pooled state, with what an LM head may add.

    `logits = combine @ cap(weight @ state + bias) + offset`, where `cap(x) = softcap * tanh(x / softcap)`.

    Args:
        weight: `(num_rows, hidden)`, float32.
        bias: `(num_rows,)` or None.
        softcap: the LM head's soft cap (Gemma 2), or None.
        combine: `(num_labels, num_rows)`, or None where the rows are the labels.
        offset: `(num_labels,)`, only beside `combine`, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    combine: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @property
    def num_labels(self) -> int:
        return (self.weight if self.combine is None else self.combine).shape[0]

    @property
    def plain(self) -> bool:
        """Whether it is a matrix and nothing else, which every decoder class of transformers can hold."""
        return self.bias is None and self.softcap is None and self.combine is None

    def rescaled(self, scale: float, offset: torch.Tensor | None) -> LinearHead:
        """The head whose logits are `scale * logits + offset`.

        Args:
            offset: `(num_labels,)`; None adds nothing, and makes no bias where there was none.
        """
        import torch

        if self.softcap is None and self.combine is None:
            return replace(self, weight=self.weight * scale, bias=rescaled_bias(self.bias, scale, offset))
        combine = self.combine if self.combine is not None else torch.eye(self.num_labels)
        return replace(self, combine=combine * scale, offset=rescaled_bias(self.offset, scale, offset))


def rescaled_bias(bias: torch.Tensor | None, scale: float, offset: torch.Tensor | None) -> torch.Tensor | None:
    """`bias * scale + offset`, where None is nothing."""
    if bias is None:
        return offset
    return bias * scale if offset is None else bias * scale + offset


@dataclass(frozen=True)
class SequenceHead:
    """A head whose labels are texts of several tokens: a label's logit is the log-probability of its text.

    `logits = scale * log p(text | prompt) + offset`, by the model's own LM head,
    `cap(lm_scale * (W @ state + b))`; a label's texts add up their probabilities.

    Args:
        texts: token ids of each label's texts, in the order of the labels' indices.
        weight: name of the LM head's weight in the checkpoint; None where it is the input embeddings.
        bias: name of its bias, or None.
        lm_scale: of the LM head's logits.
        softcap: of the LM head's logits, or None.
        scale: of the labels' logits.
        offset: one a label, added to its logit; empty for none.
    """

    texts: tuple[tuple[tuple[int, ...], ...], ...]
    weight: str | None
    bias: str | None = None
    lm_scale: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    offset: tuple[float, ...] = ()

    def rescaled(self, scale: float, offset: Sequence[float]) -> SequenceHead:
        """The head whose logits are `scale * logits + offset`; an empty offset adds nothing."""
        before = [each * scale for each in self.offset] or [0.0] * len(self.texts)
        after = [one + other for one, other in zip(before, offset or [0.0] * len(before), strict=True)]
        return replace(self, scale=self.scale * scale, offset=tuple(after) if any(after) else ())


@dataclass(frozen=True)
class Head:
    """A head that is ready to be loaded or written.

    One of `linear`, `tensors` and `sequences` is set, and none for a head that is already in the checkpoint.

    Args:
        method: the name of its source ("tokens", "fit", …).
        linear: the head as a linear map of the pooled state.
        tensors: the head's parameters under the classifier class's own names.
        sequences: the head as texts that the language model itself scores.
        on_features: `linear` takes the output of the class's own inner head layers (a trained
            pooler), not the pooled state itself.
        description: how it was made, a paragraph for the model card.
        report: measurements made with it (accuracy …).
        trained: in the class that it is in, so that what this class pools counts; a head that is made reads what we pool.
    """

    method: str
    linear: LinearHead | None = None
    tensors: Mapping[str, torch.Tensor] | None = None
    sequences: SequenceHead | None = None
    on_features: bool = False
    description: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False
