"""Scores of pairs of texts: which pairs there are, as prompts, and documents in the order of their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError, nearest, shown
from ..inputs.media_parts import without_media
from ..inputs.pair_template import PairForm, PairTemplate
from ..inputs.tokenization import PromptProcessor
from ..outputs import ClassificationRequestOutput, ScoringOutput, ScoringRequestOutput

if TYPE_CHECKING:
    from ..inputs.media_reader import MediaReader

Side = str | Mapping[str, Any]
"""Of a pair: a text, or as vLLM has it `{"content": parts}`, of texts, images and videos as in messages."""


@dataclass(frozen=True)
class ScoreOptions:
    """How the pairs of one request are written.

    Args:
        chat_template: Jinja, in place of the model's own score template (vLLM's name).
        instruction: for the template's place of that name.
        max_tokens_per_query: the query's first tokens that are kept; 0 keeps all.
        max_tokens_per_doc: the document's.
    """

    chat_template: str | None = None
    instruction: str | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None

    def with_params(self, params: Any) -> ScoreOptions:
        """With what `PoolingParams.extra_kwargs` says, which is vLLM's way to give these options to `LLM.score`.

        Raises:
            ConfigError: it has a key that means nothing here, or contradicts what was given.
        """
        given = dict(getattr(params, "extra_kwargs", None) or {})
        template_kwargs = dict(given.pop("chat_template_kwargs", None) or {})
        if "instruction" in template_kwargs:
            given["instruction"] = template_kwargs.pop("instruction")
        known = [field.name for field in dataclasses.fields(self)]
        for name in (*given, *template_kwargs):
            if name not in known or name in template_kwargs:
                raise ConfigError(f"PoolingParams.extra_kwargs has no {name!r}.{nearest(str(name), known)}")
            if getattr(self, name) not in (None, given[name]):
                raise ConfigError(
                    f"{name} is given twice: {getattr(self, name)!r} and {given[name]!r} in extra_kwargs."
                )
        return dataclasses.replace(self, **given)

    def processor(self, processor: PromptProcessor) -> PromptProcessor:
        """The model's processor with this request's template.

        Raises:
            ConfigError: the template carries no pair, or takes no instruction.
        """
        if self.chat_template is not None:
            template = PairTemplate.checked(processor.tokenizer, "chat_template", self.chat_template)
            processor = dataclasses.replace(processor, pairs=PairForm(template))
        if processor.pairs.refused is not None:
            raise ConfigError(processor.pairs.refused)
        takes = processor.pairs.template is not None and processor.pairs.template.takes_instruction
        if self.instruction is not None and not takes:
            raise ConfigError(
                f"instruction={self.instruction!r}: the prompt of this model's pairs has no place for one; leave it out, or "
                "give a template with {{ instruction }}.",
                "instruction",
            )
        return processor

    def prompt_with_media(self, query: Side, document: Side, processor: PromptProcessor) -> dict[str, Any]:
        """One pair as a prompt; images and videos in the order in which the model's pairs have the two sides.

        Raises:
            PromptError: a side is neither a text nor parts, or the model reads no images.
        """
        texts, data = zip(*(_read(each, processor.media) for each in (query, document)), strict=True)
        turned = processor.pairs.template is not None and processor.pairs.template.document_first
        first, second = reversed(data) if turned else data
        both = {name: [*first.get(name, ()), *second.get(name, ())] for name in {**first, **second}}
        made = self.prompt(*texts)
        return {**made, "multi_modal_data": both} if both else made

    def prompt(self, query: str | None, document: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One pair as a prompt, with the fields of its row."""
        fields = dict(fields or {})
        if self.instruction is not None:
            fields["instruction"] = self.instruction
        return {
            "prompt": query,
            "text_pair": document,
            "fields": fields,
            "max_tokens_per_query": self.max_tokens_per_query or 0,
            "max_tokens_per_doc": self.max_tokens_per_doc or 0,
        }


def pairs(text_1: Side | Sequence[Side], text_2: Side | Sequence[Side]) -> list[tuple[Side, Side]]:
    """The pairs that a request means: 1 text to N, or N to N.

    Raises:
        ConfigError: the numbers do not fit.
    """
    first, second = ([each] if isinstance(each, str | Mapping) else list(each) for each in (text_1, text_2))
    if len(first) not in (1, len(second)) or not second:
        raise ConfigError(f"score takes 1:1, 1:N or N:N texts; got {len(first)} and {len(second)}.")
    return list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))


def _read(side: Side, media: MediaReader | None) -> tuple[str, dict[str, list[Any]]]:
    """The text of one side, with places for what it holds of images and videos, and these."""
    if not isinstance(side, Mapping):
        return side, {}
    if side.keys() != {"content"} or not isinstance(side["content"], list | tuple):
        raise PromptError(f"one side of a pair is a text or {{'content': [parts]}}; got {shown(dict(side))}.")
    (message,), data = without_media([{"role": "user", "content": side["content"]}])
    parts = message["content"]
    texts: list[Any] = [each.get("text") for each in parts if isinstance(each, Mapping) and each.get("type") == "text"]
    number = len(texts) + sum(map(len, data.values()))
    if number < len(parts) or not all(isinstance(each, str) for each in texts):
        raise PromptError(f"a part of a pair is a text, an image or a video; got {shown(parts)}.")
    if not data:
        return "\n".join(texts), {}
    if media is None:
        raise PromptError("this model reads texts alone; leave images and videos out.")
    return "".join(each["text"] if each["type"] == "text" else media.place(each["type"]) for each in parts), data


def scored(output: ClassificationRequestOutput) -> ScoringRequestOutput:
    """The score that a classification with one label is."""
    return ScoringRequestOutput(
        output.request_id,
        ScoringOutput(output.outputs.probs[0]),
        output.prompt_token_ids,
        num_cached_tokens=output.num_cached_tokens,
        truncated=output.truncated,
    )


def check_num_labels(num_labels: int, what: str = "score", param: str | None = None) -> None:
    """Raise `ConfigError`, of the argument `param`, unless the model has one score to give."""
    if num_labels != 1:
        raise ConfigError(f"{what} needs a model with num_labels 1; this one has {num_labels}. Use classify.", param)


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking: its place in the request, itself, its score."""

    index: int
    document: Side
    relevance_score: float


def rank(
    documents: Sequence[Side], outputs: Sequence[ScoringRequestOutput], top_n: int | None = None
) -> list[RankedDocument]:
    """Documents by falling score, those with equal scores in the order given; the first `top_n`, or all for None and 0.

    Raises:
        ConfigError: `top_n` is no number of documents.
    """
    given: Any = top_n
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 0):
        raise ConfigError(f"top_n={top_n!r} must be 0 (all documents) or a number of them.")
    ranked = [
        RankedDocument(index, document, output.outputs.score)
        for index, (document, output) in enumerate(zip(documents, outputs, strict=True))
    ]
    ranked.sort(key=lambda each: -each.relevance_score)
    return ranked[: top_n or None]
