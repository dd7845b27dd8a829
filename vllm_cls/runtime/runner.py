"""One forward of one batch: token sequences → hidden states → pooled states → logits."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ..architecture import Architecture
from ..pooler.methods import PoolingMethod, all_tokens, cls_pool, every_token, last_pool
from .adapter import AdapterRows, LoRAAdapter
from .attention import packed_attention
from .attention.positions import restart_positions
from .attention.rope import RopeRule, reset_grown_frequencies, rope_rule
from .batch import (
    Batch,
    ForwardItem,
    PooledRowLayout,
    SequenceForm,
    media_of,
    packed_batch,
    padded_batch,
    pooled_spans,
    to_device,
)
from .context import running
from .counters import Counters
from .machine.device import main_device, parts_of
from .native import attention as native
from .row import PackedRow, RowKernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..pooler.sequences import SequenceScorer
    from .cuda.varlen import Varlen
    from .towers import Towers

_TOWERS = ("vision", "audio", "vq_")  # how a config names its parts for them


@dataclass(frozen=True)
class Mode:
    """How sequences share a forward, decided by the self-check when the model is loaded.

    Args:
        form: "packed", "padded", "equal" (padded, of equal lengths only) or "single".
        whole: the model's own forward gives the logits, since its head cannot run on pooled states.
        pruned: the last layer runs for the pooled positions alone.
        shared: prompts with the same first tokens share their keys and values.
        bytes_a_token: of these, all layers together.
        reason: why this form and not a faster one; "" for packed.
        checked_up_to: longer sequences run alone, because sharing was not checked beyond it (None: no limit).
    """

    form: str
    whole: bool = False
    pruned: bool = False
    shared: bool = False
    bytes_a_token: int = 0
    reason: str = ""
    checked_up_to: int | None = None


class RecordedForwards(Protocol):
    """Forwards that were recorded for some sizes of batches."""

    def states(self, works: Sequence[ForwardItem]) -> torch.Tensor | None:
        """As `Runner.states`; None where none was recorded for such a batch."""


class Runner:
    """Runs batches of one model; packed ones from several threads at once.

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
        self.architecture = architecture
        self.device = main_device(model)
        self.backbone = architecture.backbone(model)
        self.sequence_form = SequenceForm(architecture, self.backbone.config)
        self.options = forward_options(self.backbone)
        self.head = head
        self.pool = pool
        self.mode = mode
        self.head_dtype = model.dtype
        self.counters = Counters()
        self.is_spread = bool(parts_of(model))  # over processes or devices: forwards come in one order
        self.kernel: Varlen | None = None  # over whole rows; the self-check decides
        self.graphs: RecordedForwards | None = None
        self.scorer: SequenceScorer | None = None  # where label texts are scored
        self.media_form = ""  # how prompts with images or videos run; chosen when the first one comes
        self.shares_media = False
        self.masks_by_row = False  # of rows with media
        self.skipped_pad: int | None = None  # the pad token before which its head looks for a prompt's last token
        text = self.backbone.config.get_text_config()
        self.pad_token_id = getattr(text, "pad_token_id", None) or 0
        self.rope: RopeRule = rope_rule(self.backbone.config)
        self._stock = self.backbone.config._attn_implementation
        self._suits_c = False
        self._default_kernel: RowKernel | None = native if self.device.type == "cpu" else None
        self._one_at_a_time = threading.Lock()
        restart_positions(self.backbone)

    @property
    def attention_kernel(self) -> str | None:
        """What runs the attention of packed rows, as far as it can; None where rows are padded."""
        if self.mode.form != "packed":
            return None
        if self.kernel is not None:
            return self.kernel.name
        return native.name if self._suits_c and native.compiled() is not None else "sdpa, sequence by sequence"

    @property
    def parallel(self) -> bool:
        """Whether several threads may run batches at once: nothing of the model changes from batch to batch."""
        unchanged = self.mode.form == "packed" and self.mode.checked_up_to is None and self.rope.switch is None
        return unchanged and not self.is_spread

    @property
    def pools_one(self) -> bool:
        """Whether pooling reads one token's state of each sequence."""
        return self.pool in (cls_pool, last_pool)

    @property
    def shares(self) -> bool:
        """Whether prompts can go on from each other's keys and values: only what is pooled at its end can."""
        return self.mode.shared and self.mode.form == "packed" and self.pool is last_pool

    @functools.cached_property
    def towers(self) -> Towers:
        """What reads images and videos."""
        from .towers import Towers

        return Towers(self.architecture.media_backbone(self.model), self.counters)

    @property
    def packs_media(self) -> bool:
        """Whether prompts with images or videos share rows with others."""
        return self.media_form == "packed"

    def key(self, index: int, length: int, has_media: bool = False) -> Hashable:
        """Sequences may share a forward only if their keys are equal."""
        if has_media and not self.packs_media:
            return ("media", index if self.media_form != "padded" else "")
        group = self.sharing_key(length)
        if group is None or self.mode.form == "single":
            return ("alone", index)
        return (group, length if self.mode.form == "equal" else 0)

    def sharing_key(self, length: int) -> int | None:
        """Prompts may share keys and values only if their keys are equal; None shares with no other."""
        limit = self.mode.checked_up_to
        if limit is not None and length > limit:
            return None
        key = 0 if self.rope.switch is None else self.rope.key(length)
        return None if key < 0 else key

    @torch.inference_mode()
    def hidden(
        self, works: Sequence[ForwardItem], *, pooled_only: bool = False, probe: bool = False
    ) -> tuple[torch.Tensor, PooledRowLayout, PackedRow | None]:
        """Hidden states `(num_rows, hidden)`, where each sequence's rows are, and the row if they were packed.

        Args:
            pooled_only: states of other than the pooled positions may be left at zero.
            probe: the row says afterwards whether every mask was causal.
        """
        limit = self.mode.checked_up_to
        packed = self.mode.form == "packed" and (self.media_form == "packed" or not any(map(media_of, works)))
        if packed and (limit is None or all(len(each.sequence) <= limit for each in works)):
            batch, row = self._packed(works)
            row.causal = True if probe else None
            places = batch.layout.places(self.pool) if pooled_only else None
            if places is not None:
                row.pooled = to_device(places, self.device)
                counts = batch.layout.counts
                row.pooled_spans = pooled_spans(
                    row.spans, places.tolist(), counts
                )  # of the host, which waits for no device
            output = self._forward(self.backbone, batch, works, row)
            self._suits_c |= row.suits_c
        else:
            batch, row = self._padded(works), None
            output = self._forward(self.backbone, batch, works)
        hidden = output[0]
        return hidden.reshape(-1, hidden.shape[-1]), batch.layout, row

    @torch.inference_mode()
    def keep(self, works: Sequence[ForwardItem]) -> None:
        """Run prompts for their keys and values alone."""
        batch, row = self._packed(works)
        if self.mode.pruned:
            row.pooled = torch.empty(0, dtype=torch.long, device=self.device)
        self._forward(self.backbone, batch, works, row)

    @torch.inference_mode()
    def states(self, works: Sequence[ForwardItem]) -> torch.Tensor:
        """Pooled states `(num_sequences, hidden)`, float32."""
        recorded = None
        if self.graphs is not None and not any(map(media_of, works)):
            recorded = self.graphs.states(works)
        return self.eager_states(works) if recorded is None else recorded

    @torch.inference_mode()
    def eager_states(self, works: Sequence[ForwardItem]) -> torch.Tensor:
        """As `states`, never from a recorded forward."""
        hidden, layout, row = self.hidden(works, pooled_only=self.mode.pruned)
        if row is not None and row.pooled is not None:
            return hidden[row.pooled].float()
        places = layout.places(self.pool)
        if places is not None:  # an index on the host would have to be waited for
            return hidden[to_device(places, self.device)].float()
        return self.pool(hidden, layout.starts, layout.lengths).float()

    @torch.inference_mode()
    def logits(self, works: Sequence[ForwardItem]) -> torch.Tensor:
        """Logits `(num_sequences, num_labels)`, float32, of works with one adapter or none.

        Of a token classifier, `(num_tokens, num_labels)`.
        """
        adapter = works[0].sequence.adapter
        if self.mode.whole or self.head is None:
            batch = self._padded(works)
            batch.inputs.pop("decoder_input_ids", None)  # its own forward makes them
            logits: torch.Tensor = self._forward(adapter.model if adapter else self.model, batch, works).logits.float()
            if self.pool is every_token:
                return every_token(logits.flatten(0, 1), batch.layout.starts, batch.layout.lengths)
            return logits
        return self._logits_of(adapter, self.states(works))

    @torch.inference_mode()
    def mixed_logits(self, works: Sequence[ForwardItem]) -> torch.Tensor | list[torch.Tensor]:
        """As `logits`; of works with several adapters, whose numbers of labels may differ, one row each."""
        if len({each.sequence.adapter for each in works}) == 1:
            return self.logits(works)
        return [rows[0] for rows in self._headed(self.states(works).split(1), works)]

    @torch.inference_mode()
    def token_logits(self, works: Sequence[ForwardItem]) -> list[torch.Tensor]:
        """Logits of a sequence's `pooled_at`, or of every token: one `(n, num_labels)` a sequence, float32."""
        if self.mode.whole or self.head is None:  # of a token classifier; no other one's forward says it
            return _chosen(self.logits(works).split([len(each) for each in works]), works)
        return self._headed(self.token_states(works), works)

    @torch.inference_mode()
    def token_states(self, works: Sequence[ForwardItem]) -> list[torch.Tensor]:
        """States of a sequence's `pooled_at`, or of every token: one `(n, hidden)` a sequence."""
        given = all(each.sequence.pooled_at is not None for each in works)
        hidden, layout, _ = self.hidden(works, pooled_only=given and self.mode.pruned)
        if layout.given is not None:
            return list(hidden[to_device(layout.given, self.device)].split(list(layout.counts)))
        return _chosen(all_tokens(hidden, layout.starts, layout.lengths), works)

    def _headed(self, states: Sequence[torch.Tensor], works: Sequence[ForwardItem]) -> list[torch.Tensor]:
        """Each sequence's states `(n, hidden)` through the head of its adapter, or the model's: `(n, num_labels)`."""
        logits = list(states)
        places: dict[LoRAAdapter | None, list[int]] = {}
        for index, work in enumerate(works):
            places.setdefault(work.sequence.adapter, []).append(index)
        for adapter, members in places.items():
            rows = self._logits_of(adapter, torch.cat([states[index] for index in members]))
            parts = rows.split([len(states[index]) for index in members])
            for index, part in zip(members, parts, strict=True):
                logits[index] = part
        return logits

    def _logits_of(self, adapter: LoRAAdapter | None, states: torch.Tensor) -> torch.Tensor:
        head = self.head if adapter is None else adapter.head
        assert head is not None
        with self._one_at_a_time:  # a replayed head holds the states it runs on
            return head(states.to(self.head_dtype)).float()

    def _packed(self, works: Sequence[ForwardItem]) -> tuple[Batch, PackedRow]:
        self._use_attention(packed_attention.NAME)
        batch = packed_batch(works, self.device)
        kernel, positions = self.kernel or self._default_kernel, batch.inputs["position_ids"][0]
        by_row = self.masks_by_row and any(map(media_of, works))
        return batch, PackedRow(batch.spans, kernel=kernel, positions=positions, masks_by_row=by_row)

    def _with_media(
        self, module: PreTrainedModel, batch: Batch, works: Sequence[ForwardItem], *, packed: bool
    ) -> tuple[PreTrainedModel, Batch]:
        """What runs a batch with images or videos, and what it gets; in the backbone's place the whole model behind the head."""
        inputs = self.towers.inputs(works, batch, packed=packed, pixels=self.media_form == "pixels")
        return self.towers.model if module is self.backbone else module, inputs

    def _padded(self, works: Sequence[ForwardItem]) -> Batch:
        self._use_attention(self._stock)
        return padded_batch(works, self.device, self.pad_token_id)

    def _use_attention(self, name: str) -> None:
        if self.backbone.config._attn_implementation != name:
            self.backbone.set_attn_implementation(self._outside_towers(name))

    def _outside_towers(self, name: str) -> str | dict[str, str]:
        """An attention for all of the backbone but its towers, which read no row of tokens."""
        config = self.backbone.config
        if not any(key.startswith(_TOWERS) for key in config.sub_configs):
            return name
        reads_tokens = (config.get_text_config(), config.get_text_config(decoder=True))
        parts = {key: getattr(config, key, None) for key in config.sub_configs}
        return {
            "": name,
            **{key: name if any(part is each for each in reads_tokens) else self._stock for key, part in parts.items()},
        }

    def _forward(  # type: ignore[no-untyped-def]  # a ModelOutput
        self, module: PreTrainedModel, batch: Batch, works: Sequence[ForwardItem], row: PackedRow | None = None
    ):
        """A forward of these, within their row, their adapters, and the precision that they ask for."""
        if any(map(media_of, works)):
            module, batch = self._with_media(module, batch, works, packed=row is not None)
        if self.rope.alone:
            reset_grown_frequencies(module)
        adapters = [each.sequence.adapter for each in works]
        rows = AdapterRows(adapters) if any(adapters) else None
        options = self.options if module is self.backbone else forward_options(module)
        num_tokens = batch.inputs["input_ids"].numel()
        self.counters.add(num_forwards=1, num_tokens=num_tokens, num_sequences=len(works))
        with running(row=row, adapters=rows, exact=works[0].sequence.exact), self.counters.timed("forward"):
            output = module(**batch.inputs, **options)
        if row is not None and row.num_pruned:
            self.counters.add(num_pruned_tokens=row.num_pruned)
        return output


def _chosen(rows: Sequence[torch.Tensor], works: Sequence[ForwardItem]) -> list[torch.Tensor]:
    """Of the rows of all tokens of each work, none of which was computed earlier, those of its `pooled_at`."""
    places = [work.sequence.pooled_at for work in works]
    return [each if wanted is None else each[list(wanted)] for each, wanted in zip(rows, places, strict=True)]


def forward_options(module: PreTrainedModel) -> dict[str, bool]:
    """Keyword arguments of a model's forward beside its inputs."""
    if module.config.is_encoder_decoder and "use_cache" not in inspect.signature(module.forward).parameters:
        return {}  # T5Gemma's classifier says it itself
    return {"use_cache": False} if hasattr(module.config.get_text_config(), "use_cache") else {}
