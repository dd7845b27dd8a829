"""One forward of one batch: token sequences → hidden states → pooled states → logits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..architecture import Architecture
from ..pooler.methods import PoolingMethod, all_tokens
from . import attention
from .batch import Batch, Layout, TokenSequence, packed_batch, padded_batch
from .rope import RopeRule, reset_grown_frequencies, rope_rule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Mode:
    """How sequences share a forward, decided by the self-check when the model is loaded.

    Args:
        form: "packed", "padded", "equal" (padded, of equal lengths only) or "single".
        whole: the model's own forward gives the logits, since its head cannot run on pooled states.
        reason: why this form and not a faster one; "" for packed.
        packed_limit: longer sequences run alone, because packing was not checked beyond it (None: no limit).
    """

    form: str
    whole: bool = False
    reason: str = ""
    packed_limit: int | None = None


class Runner:
    """Runs batches of one model. Not safe to use from two threads at once; the engine sees to that.

    Args:
        model: the classifier, in eval mode, on its device.
        architecture: says where its backbone is.
        head: pooled states `(n, hidden)` → logits `(n, num_labels)`, or None.
        pool: the pooling method.
        mode: how sequences share a forward.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        head: Callable[[torch.Tensor], torch.Tensor] | None,
        pool: PoolingMethod,
        mode: Mode,
    ) -> None:
        self.model = model
        self.backbone = architecture.backbone(model)
        self.head = head
        self.pool = pool
        self.mode = mode
        self.head_dtype = model.dtype
        self.num_forwards = 0
        self.num_tokens = 0
        text = self.backbone.config.get_text_config()
        self.pad_token_id = getattr(text, "pad_token_id", None) or 0
        self.rope: RopeRule = rope_rule(self.backbone.config)
        self._stock = self.backbone.config._attn_implementation

    @property
    def device(self) -> torch.device:
        return self.model.device

    def key(self, index: int, length: int) -> Hashable:
        """Sequences may share a forward only if their keys are equal."""
        alone = ("alone", index)
        rope = self.rope.key(length)
        limit = self.mode.packed_limit
        if self.mode.form == "single" or rope < 0 or (limit is not None and length > limit):
            return alone
        return (rope, length if self.mode.form == "equal" else 0)

    @torch.inference_mode()
    def hidden(self, sequences: Sequence[TokenSequence]) -> tuple[torch.Tensor, Layout]:
        """Hidden states `(num_rows, hidden)` and where each sequence's rows are."""
        if self._packs(sequences):
            self._use_attention(attention.NAME)
            batch = packed_batch(sequences, self.device)
            with attention.packing(batch.layout.lengths.tolist()):
                output = self._forward(self.backbone, batch)
        else:
            batch = self._padded(sequences)
            output = self._forward(self.backbone, batch)
        hidden = output[0]
        return hidden.reshape(-1, hidden.shape[-1]), batch.layout

    def states(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Pooled states `(num_sequences, hidden)`, float32."""
        hidden, layout = self.hidden(sequences)
        return self.pool(hidden, layout.starts, layout.lengths).float()

    @torch.inference_mode()
    def logits(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Logits `(num_sequences, num_labels)`, float32."""
        if self.mode.whole or self.head is None:
            logits: torch.Tensor = self._forward(self.model, self._padded(sequences)).logits
            return logits.float()
        return self.head(self.states(sequences).to(self.head_dtype)).float()

    @torch.inference_mode()
    def token_logits(self, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
        """Logits of every token: one `(num_tokens, num_labels)` a sequence, float32."""
        assert self.head is not None
        hidden, layout = self.hidden(sequences)
        return [
            self.head(rows.to(self.head_dtype)).float() for rows in all_tokens(hidden, layout.starts, layout.lengths)
        ]

    def _packs(self, sequences: Sequence[TokenSequence]) -> bool:
        limit = self.mode.packed_limit
        return self.mode.form == "packed" and (limit is None or max(map(len, sequences)) <= limit)

    def _padded(self, sequences: Sequence[TokenSequence]) -> Batch:
        self._use_attention(self._stock)
        return padded_batch(sequences, self.device, self.pad_token_id)

    def _use_attention(self, name: str) -> None:
        if self.backbone.config._attn_implementation != name:
            self.backbone.set_attn_implementation(name)

    def _forward(self, module: PreTrainedModel, batch: Batch):  # type: ignore[no-untyped-def]  # a ModelOutput
        if self.rope.alone:
            reset_grown_frequencies(module)
        self.num_forwards += 1
        self.num_tokens += batch.inputs["input_ids"].numel()
        return module(**batch.inputs, **self._options(module))

    def _options(self, module: PreTrainedModel) -> dict[str, bool]:
        return {"use_cache": False} if hasattr(module.config.get_text_config(), "use_cache") else {}
