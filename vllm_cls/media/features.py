"""What a model reads of images and videos: the tensors that its towers take, and where their tokens stand in a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class MediaInput:
    """What a model's tower reads at once: an image or a video, or all of a prompt's where the model reads them together.

    Two are equal if their modality and key are.

    Args:
        modality: "image" or "video".
        key: of the contents, and of how they were processed.
        tensors: arguments of the model, by name; those that have one a patch or an image go along the first axis.
        num_tokens: that stand for it in a prompt.
        count: images or videos that it is made of.
        features: `(num_tokens, hidden)` that the caller gave in place of pixels, or None.
        told: whether the prompt said how it is processed.
    """

    modality: str
    key: str
    tensors: Mapping[str, torch.Tensor]
    num_tokens: int
    count: int = 1
    features: torch.Tensor | None = None
    told: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MediaInput) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> tuple[str, str]:
        """What tells it from others; whoever keeps something for it keeps this, not its pixels."""
        return self.modality, self.key

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(each.numel() * each.element_size() for each in self.tensors.values())

    @property
    def key_id(self) -> int:
        """Stands for it among token ids, of which none is negative; -1 is left free."""
        digest = hashlib.sha256(f"{self.modality} {self.key}".encode()).digest()
        return -2 - int.from_bytes(digest[:7], "big")


@dataclass(frozen=True)
class MediaSpan:
    """An input's tokens within a prompt: `start` is the first, `stop` is behind the last."""

    input: MediaInput
    start: int
    stop: int


@dataclass(frozen=True)
class SequenceMedia:
    """What a prompt holds beside its text.

    Args:
        spans: in the order of the prompt.
        types: one a token: 0 of text, 1 of an image, 2 of a video, as transformers numbers them.
        key_ids: the prompt's token ids, but for those of media, which their contents tell apart.
        text_types: token types of the model's text part, where its processor gives them, else empty.
    """

    spans: tuple[MediaSpan, ...]
    types: tuple[int, ...]
    key_ids: tuple[int, ...]
    text_types: tuple[int, ...] = field(default=(), compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of its inputs' tensors; each counts once."""
        return sum(each.num_bytes for each in {span.input for span in self.spans})

    def begun(self, length: int) -> SequenceMedia | None:
        """Of the first `length` tokens, which end outside every span; None where these have no media."""
        spans = tuple(each for each in self.spans if each.stop <= length)
        if not spans:
            return None
        return SequenceMedia(spans, self.types[:length], self.key_ids[:length], self.text_types[:length])

    def behind(self, ids: Sequence[int]) -> SequenceMedia:
        """Of the prompt that goes on with `ids`, which are text."""
        nothing = (0,) * len(ids)
        text_types = (*self.text_types, *nothing) if self.text_types else ()
        return SequenceMedia(self.spans, (*self.types, *nothing), (*self.key_ids, *ids), text_types)

    def inputs_from(self, start: int) -> Iterator[MediaInput]:
        """The inputs whose tokens are at `start` or behind it."""
        return (each.input for each in self.spans if each.start >= start)


def placed(
    inputs: Sequence[MediaInput], token_ids: Sequence[int], types: Sequence[int], text_types: Sequence[int] = ()
) -> SequenceMedia:
    """Find the tokens of inputs in a prompt.

    Args:
        inputs: those of one modality in the order of the prompt.
        types: of the tokens, see `SequenceMedia`.

    Raises:
        ValueError: the prompt has other numbers of their tokens.
    """
    ids, spans = list(token_ids), []
    for modality, number in MODALITIES.items():
        places = [place for place, each in enumerate(types) if each == number]
        mine = [each for each in inputs if each.modality == modality]
        if len(places) != sum(each.num_tokens for each in mine):
            raise ValueError(f"{len(places)} tokens of {modality}s for {sum(each.num_tokens for each in mine)} of them")
        first = 0
        for each in mine:
            own = places[first : first + each.num_tokens]
            first += each.num_tokens
            spans.append(MediaSpan(each, own[0], own[-1] + 1))
            for place in own:
                ids[place] = each.key_id
    spans.sort(key=lambda span: span.start)
    return SequenceMedia(tuple(spans), tuple(types), tuple(ids), tuple(text_types))


MODALITIES = {"image": 1, "video": 2}
"""Modalities by name, with the type of their tokens."""
