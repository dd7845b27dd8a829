"""From a label for each token to spans of the text, as transformers' TokenClassificationPipeline makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import AGGREGATIONS
from ..errors import ConfigError, PromptError, nearest
from ..inputs.tokenization import Tokenized
from ..outputs import Span, TokenClassificationOutput, TokenClassificationRequestOutput
from ..params import PoolingParams
from .tensors import finish_row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from ..model.loaded_model import LoadedModel
    from ..runtime.engine import Result

_OF_WORDS = ("first", "average", "max")


@dataclass(frozen=True)
class _Token:
    """A token of the text; `scores` `(num_labels,)` are its probabilities, `continues` the word before it."""

    word: str
    scores: NDArray[np.float32]
    start: int
    end: int
    continues: bool


@dataclass(frozen=True)
class SpanFinder:
    """Finds the spans of texts.

    Args:
        tokenizer: of the model, a fast one.
        aggregation: "none" gives each token; "simple" joins neighbours of one label, told apart by `B-` and `I-`;
            "first", "average" and "max" give each word one label before that: that of its first token, of its
            tokens' mean probabilities, or of its surest token.
        ignored: labels whose spans are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    aggregation: str
    ignored: frozenset[str]

    def spans(self, tokenized: Tokenized, probs: NDArray[np.float32], labels: Mapping[int, str]) -> list[Span]:
        """The spans of one text, in their order.

        Args:
            probs: `(num_tokens, num_labels)`.
            labels: by index.

        Raises:
            PromptError: the prompt is no plain text.
        """
        tokens = list(self._tokens(tokenized, probs))
        words = _words(tokens) if self.aggregation in _OF_WORDS else [[each] for each in tokens]
        spans = [self._labelled(each, labels) for each in words]
        if self.aggregation != "none":
            spans = [self._joined(each) for each in _neighbours(spans)]
        return [each for each in spans if each.label not in self.ignored]

    def _tokens(self, tokenized: Tokenized, probs: NDArray[np.float32]) -> Iterator[_Token]:
        places = tokenized.places
        if places is None:
            raise PromptError("spans are found in one plain text; this prompt is a pair, a chat or token ids.")
        tokenizer: Any = self.tokenizer
        ids = tokenized.sequence.token_ids
        marks = bool(getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        for index, word in enumerate(tokenizer.convert_ids_to_tokens(ids)):
            if places.special[index]:
                continue
            start, end = places.offsets[index]
            written = places.text[start:end]
            if ids[index] == tokenizer.unk_token_id:
                word, continues = written, False
            elif marks:  # a token that goes on has its mark, "##", before what is written
                continues = len(word) != len(written)
            else:  # which takes punctuation into the word before it; so does the pipeline
                continues = start > 0 and " " not in places.text[start - 1 : start + 1]
            yield _Token(word, probs[index], start, end, continues)

    def _labelled(self, tokens: Sequence[_Token], labels: Mapping[int, str]) -> Span:
        """One label for a token, or for the tokens of a word."""
        if self.aggregation == "average":
            scores = np.mean([each.scores for each in tokens], axis=0)
        elif self.aggregation == "max":
            scores = max(tokens, key=lambda each: float(each.scores.max())).scores
        else:
            scores = tokens[0].scores
        best = int(scores.argmax())
        word = self._text(tokens) if self.aggregation in _OF_WORDS else tokens[0].word
        return Span(str(labels[best]), float(scores[best]), tokens[0].start, tokens[-1].end, word)

    def _joined(self, spans: Sequence[Span]) -> Span:
        score = float(np.mean([each.score for each in spans]))
        return Span(spans[0].label.split("-", 1)[-1], score, spans[0].start, spans[-1].end, self._text(spans))

    def _text(self, parts: Sequence[_Token] | Sequence[Span]) -> str:
        tokenizer: Any = self.tokenizer
        text: str = tokenizer.convert_tokens_to_string([each.word for each in parts])
        return text


def _words(tokens: Sequence[_Token]) -> list[list[_Token]]:
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _neighbours(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans that follow each other with one label; `B-` begins another one."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and not span.label.startswith("B-") and _kind(span.label) == _kind(groups[-1][-1].label):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def span_finder(loaded: LoadedModel, aggregation: str, ignore_labels: Sequence[str]) -> SpanFinder:
    """The finder for a loaded model.

    Raises:
        ConfigError: the aggregation or a label is unknown, or the model does not label the tokens of texts.
    """
    if aggregation not in AGGREGATIONS:
        known = ", ".join(AGGREGATIONS)
        raise ConfigError(
            f"aggregation_strategy={aggregation!r} is unknown; use {known}.{nearest(str(aggregation), AGGREGATIONS)}"
        )
    if isinstance(ignore_labels, str):
        raise ConfigError(f"ignore_labels={ignore_labels!r} is a text; give a list of labels.")
    config, processor = loaded.classifier.config, loaded.processor
    if loaded.task != "token_classify":
        headless = loaded.classifier.why_headless(loaded.options.model)
        raise ConfigError(
            headless or "this model classifies no tokens; convert one with --convert token_classify, or use classify."
        )
    if config.problem_type == "regression" or loaded.pooler.config.tok_pooling_type == "STEP":
        raise ConfigError(
            "this model gives numbers, not labels, for its tokens; use encode(pooling_task='token_classify')."
        )
    if not processor.with_places or processor.tokenizer is None:
        raise ConfigError(
            "spans need a fast tokenizer, which says where tokens stand in the text; this model has none."
        )
    return SpanFinder(processor.tokenizer, aggregation, frozenset(ignore_labels))


def classified_tokens(
    finder: SpanFinder,
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    answers: Sequence[Result],
    _: Sequence[PoolingParams],
    next_id: Callable[[], str],
) -> list[TokenClassificationRequestOutput | PromptError]:
    """One output for each prompt, or why there is none; of probabilities, whatever else the params ask for."""
    params = PoolingParams(use_activation=False)
    outputs: list[TokenClassificationRequestOutput | PromptError] = []
    with loaded.engine.counters.timed("outputs"):
        for each, answer in zip(tokenized, answers, strict=True):
            labels = loaded.config_of(each.sequence.adapter).id2label
            try:
                logits = finish_row(loaded, "token_classify", answer, each.sequence, params)
                probs: Any = loaded.head_of(params, each.sequence.adapter).probabilities(logits)
                found = TokenClassificationOutput(finder.spans(each, probs.numpy(), labels))
            except PromptError as error:
                outputs.append(error)
            else:
                outputs.append(
                    TokenClassificationRequestOutput(
                        next_id(), found, list(each.sequence.token_ids), truncated=each.truncated
                    )
                )
    return outputs
