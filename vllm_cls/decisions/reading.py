"""Requests → prompts with marks; the logits at the marks → answers. Both are transformers' own, but for the model."""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .heads import DecisionHead, places_of, read_spans
from .images import MEDIA, ImageReader, TemplateWithImages
from .settings import reason_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from transformers.decision import DecisionConfig, Question


@dataclass(frozen=True)
class DecisionPrompt:
    """One prompt of a request.

    Args:
        token_ids: as the model reads them.
        questions: that it asks.
        reads: the tokens that each is answered from, as spans.
        num_tokens: of the prompt as it was rendered, those behind the last that is read included.
        media: what was read of its images, whose tokens are among `token_ids`; None without any.
    """

    token_ids: tuple[int, ...]
    questions: Sequence[Question]
    reads: Sequence[Sequence[range]]
    num_tokens: int
    media: Any = None

    @functools.cached_property
    def places(self) -> tuple[int, ...]:
        """The indices of the tokens that are read, span after span."""
        return tuple(place for spans in self.reads for place in places_of(spans))

    @property
    def ends_at_mark(self) -> bool:
        """Whether it is answered at its last token alone."""
        return self.places == (len(self.token_ids) - 1,)


@dataclass(frozen=True)
class DecisionReader:
    """Makes prompts of requests and answers of what the model gives for them, by a model's settings.

    Args:
        settings: labels, temperatures and template.
        tokenizer: a copy of the model's, which has the marks as tokens.
        head: reads the marks.
        causal: nothing behind the last token that is read changes an answer, so it is left out.
        images: reads them; None where the model reads texts alone.
    """

    settings: DecisionConfig
    tokenizer: PreTrainedTokenizerBase
    head: DecisionHead
    causal: bool
    images: ImageReader | None = None
    _lock: AbstractContextManager[Any] = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        settings: DecisionConfig,
        tokenizer: PreTrainedTokenizerBase,
        head: DecisionHead,
        *,
        causal: bool,
        images: ImageReader | None = None,
    ) -> DecisionReader:
        """A reader with a tokenizer of its own, which has the marks as tokens.

        transformers asks for the whole vocabulary at every request, to see that they are there: it is made once.
        """
        from transformers import AddedToken
        from transformers.decision.template_utils import MARK, SPLIT

        own: Any = copy.deepcopy(tokenizer)
        own.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in (MARK, SPLIT)])
        vocabulary = own.get_vocab()
        own.get_vocab = lambda: vocabulary
        return cls(settings, own, head, causal, images)

    def read(self, request: Mapping[str, Any] | str) -> list[DecisionPrompt]:
        """The prompts of one request.

        Raises:
            PromptError: the request, its questions or its state are not as they have to be.
        """
        from jinja2 import TemplateError

        try:
            request, processor = self._with_images(request)
            with self._lock:
                prepared = self.settings.prepare_inputs(request, processor)
            return [self._prompt(inputs, questions) for inputs, questions in prepared]
        except PromptError:
            raise
        except (TemplateError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise PromptError(reason_of(error)) from error

    def _with_images(self, request: Any) -> tuple[Any, Any]:
        """A request whose images are read, where it has any, and what renders it."""
        request = json.loads(request) if isinstance(request, str) else request
        assets = request.get("assets") if isinstance(request, Mapping) else None
        if not assets or self.images is None:  # transformers refuses images then
            return request, self.tokenizer
        if not isinstance(assets, Mapping):
            raise PromptError("assets map names, which stand for images in the request's texts, to images.", "assets")
        read = {name: self._image(name, value) for name, value in assets.items()}
        return {**request, "assets": read}, TemplateWithImages(self.tokenizer, self.images)

    def _image(self, name: Any, value: Any) -> Any:
        assert self.images is not None
        if not isinstance(name, str) or not name:
            raise PromptError(f"assets: {name!r} is no name of an image; give a text.", "assets")
        if isinstance(value, Mapping) and isinstance(value.get("data_base64"), str):  # System One's form
            data = value["data_base64"]
            value = data if data.startswith("data:") else {"base64": data}
        try:
            return self.images.image(value)
        except PromptError as error:
            raise PromptError(f"assets, {name}: {error}", "assets") from error

    def _prompt(self, inputs: Mapping[str, Any], questions: Sequence[Question]) -> DecisionPrompt:
        ids, marks = inputs["input_ids"][0].tolist(), inputs["marks"].tolist()
        reads, media = self.head.reads(questions, marks), inputs.get(MEDIA)
        end = max(span.stop for spans in reads for span in spans)
        kept = ids[:end] if self.causal and media is None else ids
        return DecisionPrompt(tuple(kept), questions, reads, len(ids), media)

    def answers(self, prompt: DecisionPrompt, rows: torch.Tensor) -> dict[str, Any]:
        """The answers to a prompt's questions by name, in the System One form.

        Args:
            rows: `(num_places, width)` float32, what the model gives at the prompt's `places`.
        """
        import torch

        rows = rows.to(getattr(self.head, "device", rows.device))  # a model's head is the model
        parts = rows.split([len(places_of(spans)) for spans in prompt.reads])
        found = {}
        with torch.inference_mode():
            for question, spans, part in zip(prompt.questions, prompt.reads, parts, strict=True):
                scores = self.head.scores(question, read_spans(prompt.token_ids, spans, part)).float()
                warped = self.settings.logits_processors[question.type](None, scores)
                found[question.name] = question.answer(warped.softmax(-1).tolist())
        return found
