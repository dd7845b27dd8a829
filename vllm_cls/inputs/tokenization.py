"""Prompts → token sequences, many at a time: template, tokenizer, truncation, checks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..architecture import Architecture
from ..errors import ConfigError, PromptError, PromptTooLongError
from ..runtime.batch import SequenceForm, TokenSequence
from .control_tokens import ControlTokens
from .media_reader import MediaReader
from .pair_template import PairForm
from .prompt_template import PromptTemplate
from .prompts import Prompt, parse

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from ..runtime.adapter import LoRAAdapter


@dataclass(frozen=True)
class Truncation:
    """What happens to a prompt that is too long.

    Args:
        limit: tokens to cut it to; None refuses it instead.
        side: "right" cuts the end, "left" the start, None is the tokenizer's own side.
        of_pair: which text of a pair is cut, as transformers has it: "longest_first" or "only_first".
    """

    limit: int | None = None
    side: str | None = None
    of_pair: str = "longest_first"


@dataclass(frozen=True)
class Places:
    """Where the tokens of a text stand in it.

    Args:
        offsets: `(start, end)` in characters, one a token.
        special: 1 for a token that the tokenizer added.
    """

    text: str
    offsets: Sequence[tuple[int, int]]
    special: Sequence[int]


@dataclass(frozen=True)
class Tokenized:
    """A prompt as the model will see it, and whether it was cut; `places` of a plain text, where they are wanted."""

    sequence: TokenSequence
    truncated: bool
    places: Places | None = None

    def run_with(self, adapter: LoRAAdapter | None, cache_salt: str | None = None) -> Tokenized:
        """The same, to be run with a LoRA adapter, and with a salt unless it has its own."""
        if adapter is None and cache_salt is None:
            return self
        salt = self.sequence.cache_salt or cache_salt
        return replace(self, sequence=replace(self.sequence, adapter=adapter, cache_salt=salt))


_LIMIT = "truncate_prompt_tokens"
_CUT_IT = "shorten it, or ask for truncation (truncate_prompt_tokens=-1)"

# Token ids, their types, and what a fast tokenizer knows of their places.
_Encoding = tuple[list[int], "list[int] | None", Any]


def _no_room(prompt: Prompt, limit: int) -> str:
    if prompt.media is not None:
        return f"the template and the images do not fit in {limit} tokens; give fewer or smaller images, or raise max_model_len."
    if prompt.text_pair is None:
        return f"the template alone is longer than {limit} tokens; shorten it, or raise max_model_len."
    return (
        f"the query and the template leave no room for the document within {limit} tokens; shorten the query "
        "(max_tokens_per_query), or raise max_model_len."
    )


@dataclass(frozen=True)
class Rendered:
    """A prompt just before the tokenizer; `marked` if marks in the text say which control tokens are text."""

    text: str
    text_pair: str | None
    add_special_tokens: bool
    marked: bool = False


@dataclass(frozen=True)
class PromptProcessor:
    """Everything that stands between a prompt and its token ids.

    Args:
        tokenizer: or None, and then only token ids are taken.
        architecture: numbers positions, knows of token types.
        config: the backbone's.
        max_model_len: longest sequence, in tokens.
        template: stored or given; None leaves texts as they are.
        chat_template_prompt: put a text into the tokenizer's chat template, as the user's message.
        chat_options: what that template is told, where a prompt does not say it.
        controls: tokens that stay text where a message has them; None reads them as what they are.
        pairs: how two texts become one prompt, where `template` does not say.
        with_places: remember where tokens stand in their text.
        prefix: written before every text, and cut with it; an embedder's own prompt.
        skipped_pad: the pad token before which the head looks for a prompt's last token, or None.
        media: reads images and videos; None where prompts can have none.
    """

    tokenizer: PreTrainedTokenizerBase | None
    architecture: Architecture
    config: PreTrainedConfig
    max_model_len: int
    template: PromptTemplate | None = None
    chat_template_prompt: bool = False
    pairs: PairForm = field(default_factory=PairForm)
    with_places: bool = False
    prefix: str = ""
    skipped_pad: int | None = None
    media: MediaReader | None = None
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    controls: ControlTokens | None = None
    # A tokenizer keeps its truncation as state: one call at a time.
    _lock: AbstractContextManager[Any] = field(default_factory=threading.RLock, repr=False, compare=False)

    def tokenize(
        self,
        prompts: Sequence[Any],
        truncation: Truncation = Truncation(),
        *,
        add_special_tokens: bool | None = None,
    ) -> list[Tokenized | PromptError]:
        """Token sequences in the order of `prompts`; a bad prompt gives its error in its place.

        Args:
            truncation: what happens to a prompt that is too long.
            add_special_tokens: None means True for texts and False for chats, as vLLM's server has it.
        """
        limit = self._limit(truncation)
        results: list[Tokenized | PromptError | None] = [None] * len(prompts)
        rendered: list[tuple[int, Prompt, Rendered]] = []
        for index, each in enumerate(prompts):
            try:
                prompt = parse(each)
                if prompt.text_pair is not None or prompt.multi_modal_data:
                    prompt = self._read(prompt)
                if prompt.token_ids is not None:
                    results[index] = self._from_ids(prompt, prompt.token_ids, limit, truncation)
                else:
                    rendered.append((index, prompt, self.render(prompt, add_special_tokens)))
            except PromptError as error:
                results[index] = error
        encoded = self._encode_all([each for _, _, each in rendered])
        for (index, prompt, text), encoding in zip(rendered, encoded, strict=True):
            try:
                results[index] = self._fitted(prompt, text, encoding, limit, truncation)
            except PromptError as error:
                results[index] = error
        return results  # type: ignore[return-value]  # every place was filled

    def token_ids(self, prompt: Any, suffix: str = "", *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of one prompt with `suffix` written behind it, untruncated; `add_special_tokens` as for `tokenize`.

        Raises:
            PromptError: the prompt is bad.
        """
        text = self.render(self._read(parse(prompt)), add_special_tokens)
        joined = replace(text, text=text.text + suffix) if text.text_pair is None else text
        encoding = self._encode_all([joined])[0]
        if isinstance(encoding, PromptError):
            raise encoding
        return list(encoding[0])

    def _read(self, prompt: Prompt) -> Prompt:
        """A prompt with the texts of a pair shortened, and its media read."""
        prompt = self._within_limits(prompt)
        if not prompt.multi_modal_data:
            return prompt
        if self.media is None:
            raise PromptError("this model reads texts alone; leave images and videos out.", "multi_modal_data")
        return self.media.read(prompt)

    def render(self, prompt: Prompt, add_special_tokens: bool | None) -> Rendered:
        """The text that the tokenizer gets."""
        if prompt.media is not None:
            return self._expanded(prompt, add_special_tokens)
        if self.tokenizer is None:
            raise PromptError("this model has no tokenizer; give token ids, or a tokenizer with --tokenizer.")
        if prompt.messages is not None:
            if self.prefix:
                raise PromptError(
                    "this model writes a prompt before a text, and a chat has no place for it; give a text."
                )
            return self._chat(prompt.messages, prompt.chat_template_kwargs, add_special_tokens)
        if prompt.text_pair is not None and (self.pairs.template is not None or self.template is None):
            return self._pair(prompt, add_special_tokens)
        if self.template is not None:
            if prompt.text_pair is not None and "text_pair" not in self.template.fields:
                raise PromptError(
                    "the stored prompt template has no {text_pair}; give one text, or run without the template."
                )
            text: str = self.template.render(prompt.values)
            if not self.chat_template_prompt:
                return Rendered(text, None, add_special_tokens is not False)
        elif prompt.text is None:
            raise PromptError("the prompt has no text.")
        else:
            text = self.prefix + prompt.text
        if self.chat_template_prompt:
            return self._chat([{"role": "user", "content": text}], {}, add_special_tokens)
        return Rendered(text, None, add_special_tokens is not False)

    def _content(self, text: str, prompt: Prompt) -> str | list[dict[str, str]]:
        """A text as a message, behind its images and videos where it has no places for them."""
        if prompt.media is None or self.media is None or self.media.processor.has_places(text):
            return text
        parts = [{"type": name} for name, texts in prompt.media.replacements.items() for _ in texts]
        return [*parts, {"type": "text", "text": text}] if text else parts

    def _expanded(self, prompt: Prompt, add_special_tokens: bool | None) -> Rendered:
        """The text of a prompt with media, their tokens written out."""
        plain = replace(prompt, media=None)
        if self.chat_template_prompt and prompt.messages is None:
            text = prompt.text or "" if self.template is None else self.template.render(prompt.values)
            plain = replace(plain, messages=({"role": "user", "content": self._content(text, prompt)},))
        made = self.render(plain, add_special_tokens)
        if made.text_pair is not None:
            raise PromptError("a pair of texts takes no images or videos; give one text.")
        assert prompt.media is not None and self.media is not None
        return replace(made, text=self.media.processor.expanded(made.text, prompt.media))

    def _pair(self, prompt: Prompt, add_special_tokens: bool | None) -> Rendered:
        """Two texts, as the model wants them."""
        form, query, document = self.pairs, prompt.text or "", prompt.text_pair or ""
        special = add_special_tokens is not False
        if form.refused is not None:
            raise PromptError(form.refused)
        if form.template is not None and self.tokenizer is not None:
            instruction = prompt.fields.get("instruction")
            text = form.template.render(
                self.tokenizer, query, document, instruction if isinstance(instruction, str) else None
            )
            if add_special_tokens is None:
                special = form.template.adds_special_tokens
            begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
            return Rendered(text, None, special and not begins)
        if self.chat_template_prompt:
            raise PromptError("the stored prompt is the chat template round one text; give one, not a pair.")
        query = self.prefix + form.query_prefix + query
        return Rendered(query + document, None, special) if form.concatenated else Rendered(query, document, special)

    def _within_limits(self, prompt: Prompt) -> Prompt:
        """A pair whose texts have at most as many tokens of their own as it allows."""
        if prompt.text is None or prompt.text_pair is None:
            return prompt
        query = self._first_tokens(prompt.text, "max_tokens_per_query", prompt.max_tokens_per_query)
        document = self._first_tokens(prompt.text_pair, "max_tokens_per_doc", prompt.max_tokens_per_doc)
        if query == prompt.text and document == prompt.text_pair:
            return prompt
        return replace(prompt, text=query, text_pair=document, shortened=True)

    def _first_tokens(self, text: str, name: str, limit: Any) -> str:
        """The part of a text that its first `limit` tokens stand for; all of it for 0."""
        if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit < self.max_model_len:
            raise ConfigError(
                f"{name}={limit!r} must be 0 (no limit) or less than {self.max_model_len}, the model's length.", name
            )
        if limit == 0:
            return text
        tokenizer: Any = self.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"{name} needs a tokenizer that knows where its tokens stand; this model's is not a fast one.", name
            )
        with self._lock:
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]

    def _chat(self, messages: Sequence[Any], kwargs: Mapping[str, Any], add_special_tokens: bool | None) -> Rendered:
        from jinja2 import TemplateError

        tokenizer: Any = self.tokenizer
        if not (kwargs.get("chat_template") or tokenizer.chat_template):
            raise PromptError(
                "this model's tokenizer has no chat template; give texts, or a template with chat_template=…."
            )
        try:
            text: str = tokenizer.apply_chat_template(
                list(messages) if self.controls is None else self.controls.marked(messages),
                tokenize=False,
                **{"add_generation_prompt": self.chat_template_prompt, **self.chat_options, **kwargs},
            )
        except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from error
        return Rendered(
            text, None, add_special_tokens is True, self.controls is not None and self.controls.has_marks(text)
        )

    def _encode_all(self, texts: Sequence[Rendered]) -> list[_Encoding | PromptError]:
        """The encoding of each text; batched by what the tokenizer has to be told."""
        results: list[Any] = [None] * len(texts)
        groups: dict[tuple[bool, bool, bool], list[int]] = {}
        for index, each in enumerate(texts):
            groups.setdefault((each.text_pair is not None, each.add_special_tokens, each.marked), []).append(index)
        for indices in groups.values():
            try:
                for index, encoding in zip(indices, self._encode([texts[i] for i in indices]), strict=True):
                    results[index] = encoding
            except (
                UnicodeError,
                ValueError,
                TypeError,
                OverflowError,
                NotImplementedError,
            ):  # one bad text fails the call: find it
                for index in indices:
                    try:
                        results[index] = self._encode([texts[index]])[0]
                    except (UnicodeError, ValueError, TypeError, OverflowError, NotImplementedError) as error:
                        results[index] = PromptError(f"the tokenizer refuses this text: {error}")
        return results

    def _encode(self, texts: Sequence[Rendered], **options: Any) -> list[_Encoding]:
        tokenizer: Any = self.tokenizer
        pairs = [each.text_pair for each in texts] if texts[0].text_pair is not None else None
        if texts[0].marked:
            options["sanitize_control_tokens"] = True
        with self._lock:
            encoding = tokenizer(
                [each.text for each in texts],
                pairs,
                add_special_tokens=texts[0].add_special_tokens,
                return_attention_mask=False,
                verbose=False,
                **options,
            )
        types = encoding.get("token_type_ids") or [None] * len(texts)
        places = encoding.encodings if self.with_places else [None] * len(texts)
        return list(zip(encoding["input_ids"], types, places, strict=True))

    def _fitted(self, prompt: Prompt, text: Rendered, encoding: Any, limit: int, truncation: Truncation) -> Tokenized:
        if isinstance(encoding, PromptError):
            raise encoding
        if len(encoding[0]) <= limit:
            return self._tokenized(prompt, text, encoding, False)
        if truncation.limit is None:
            raise self._too_long(len(encoding[0]))
        side = self._side(truncation)
        templated = self.template is not None or (prompt.text_pair is not None and self.pairs.template is not None)
        if prompt.messages is None and not templated and not self.chat_template_prompt:
            return self._tokenized(prompt, text, self._cut_tokens(text, limit, side, truncation.of_pair), True)
        return self._tokenized(prompt, text, self._cut_text(prompt, text.add_special_tokens, limit, side), True)

    def _tokenized(self, prompt: Prompt, text: Rendered, encoding: _Encoding, truncated: bool) -> Tokenized:
        ids, types, marks = encoding
        places = None
        if marks is not None and text.text == prompt.text and text.text_pair is None:
            places = Places(text.text, marks.offsets, marks.special_tokens_mask)
        return Tokenized(self._sequence(ids, types, prompt), truncated or prompt.shortened, places)

    def _cut_tokens(self, text: Rendered, limit: int, side: str, of_pair: str) -> _Encoding:
        """transformers' own truncation, which keeps special tokens."""
        tokenizer: Any = self.tokenizer
        with self._lock:
            before = tokenizer.truncation_side
            tokenizer.truncation_side = side
            try:
                encoding = self._encode([text], truncation=of_pair, max_length=limit)[0]
            except (ValueError, OverflowError) as error:
                raise PromptError(f"the prompt cannot be cut to {limit} tokens: {error}", _LIMIT) from error
            finally:
                tokenizer.truncation_side = before
        if (
            len(encoding[0]) > limit
        ):  # transformers gives up, and the text back whole, where special tokens leave no room
            raise PromptError(
                f"the prompt cannot be cut to {limit} tokens: its special tokens leave no room for a text.", _LIMIT
            )
        return encoding

    def _cut_text(self, prompt: Prompt, special: bool, limit: int, side: str) -> _Encoding:
        """Cut the prompt's texts, of a scored pair the document, never the template: the most characters that fit."""
        low, high, cut = 0, prompt.longest_text(), prompt.cut
        if prompt.text_pair is not None and self.pairs.template is not None:
            low, high, cut = 1, len(prompt.text_pair), prompt.cut_pair
        best = None
        while low <= high:
            middle = (low + high) // 2
            try:
                encoding = self._encode([self.render(cut(middle, side), special)])[0]
            except PromptError:  # a place for an image is cut off
                if prompt.media is None:
                    raise
                low = middle + 1
                continue
            if len(encoding[0]) <= limit:
                best, low = encoding, middle + 1
            else:
                high = middle - 1
        if best is None:
            raise PromptError(_no_room(prompt, limit), _LIMIT)
        return best

    def _from_ids(self, prompt: Prompt, ids: Sequence[int], limit: int, truncation: Truncation) -> Tokenized:
        if prompt.multi_modal_data and prompt.media is not None and self.media is not None:
            ids = self.media.processor.expanded_ids(ids, prompt.media)
        if len(ids) <= limit:
            return Tokenized(self._sequence(ids, None, prompt), False)
        if truncation.limit is None:
            raise self._too_long(len(ids))
        side = self._side(truncation)
        ids = ids[:limit] if side == "right" else ids[-limit:]
        return Tokenized(self._sequence(ids, None, prompt), True)

    def _side(self, truncation: Truncation) -> str:
        return truncation.side or str(getattr(self.tokenizer, "truncation_side", "right"))

    def _limit(self, truncation: Truncation) -> int:
        if truncation.side not in (None, "left", "right"):
            raise ConfigError(
                f"truncation_side={truncation.side!r} is unknown; use 'left' or 'right'.", "truncation_side"
            )
        if truncation.limit is None:
            return self.max_model_len
        given: Any = truncation.limit
        if not isinstance(given, int) or isinstance(given, bool):
            raise ConfigError(f"truncate_prompt_tokens={truncation.limit!r} is not a whole number.", _LIMIT)
        if truncation.limit == -1:
            return self.max_model_len
        if not 1 <= truncation.limit <= self.max_model_len:
            raise ConfigError(
                f"truncate_prompt_tokens={truncation.limit} must be -1 or between 1 and {self.max_model_len}, the model's length.",
                _LIMIT,
            )
        return truncation.limit

    def check_length(self, length: int, advice: str) -> None:
        """Raise `PromptTooLongError` if the model does not take so many tokens, with this advice."""
        if length > self.max_model_len:
            raise self._too_long(length, advice)

    def _too_long(self, length: int, advice: str = _CUT_IT) -> PromptError:
        return PromptTooLongError(
            f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt contains {length} input "
            f"tokens; {advice}."
        )

    @functools.cached_property
    def _form(self) -> SequenceForm:
        return SequenceForm(self.architecture, self.config)

    @functools.cached_property
    def _vocab_size(self) -> int:
        return self.architecture.vocab_size(self.config)

    @functools.cached_property
    def _takes_types(self) -> bool:
        return self.architecture.takes_token_type_ids(self.config)

    def _sequence(self, ids: Sequence[int], types: Sequence[int] | None, prompt: Prompt) -> TokenSequence:
        """A prompt's tokens with all that the model reads beside them."""
        if not ids:
            raise PromptError("The decoder prompt cannot be empty: it has no tokens.")
        worst = max(ids) if min(ids) >= 0 else min(ids)
        if not 0 <= worst < self._vocab_size:
            raise PromptError(f"Token id {worst} is out of vocabulary (0 to {self._vocab_size - 1}).")
        if not self._takes_types:
            types = None
        elif types is None:
            types = (0,) * len(ids)
        made = self._form.sequence(ids, types, prompt.cache_salt)
        if self.skipped_pad is not None:
            made = made.skipping(self.skipped_pad)
        if prompt.pooled_at is not None:
            made = replace(made, pooled_at=prompt.pooled_at)
        if prompt.media is None or not prompt.media.inputs or self.media is None:
            return made
        return replace(made, media=self.media.processor.in_sequence(ids, prompt.media))
