"""Prompt → token ids: what a prompt may be, how it is rendered, what happens when it is too long.

A prompt is a text, a pair `(text, text_pair)`, token ids, a list of chat messages, or a dict with
`prompt`, `prompt_token_ids`, `text_pair`, `messages`, `chat_template_kwargs`, `fields` or `cache_salt`, and with
`multi_modal_data` and `mm_processor_kwargs` for images and videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import PromptError, nearest
from .media_parts import has_media, without_media

if TYPE_CHECKING:
    from ..media.processor import ReadMedia

_KEYS = (
    "prompt", "prompt_token_ids", "text_pair", "messages", "fields", "cache_salt", "multi_modal_data", "mm_processor_kwargs",
    "max_tokens_per_query", "max_tokens_per_doc", "chat_template_kwargs",
)  # fmt: skip
_NO_TEMPLATE_KWARGS = ("conversation", "documents", "tokenize", "return_tensors", "return_dict")


@dataclass(frozen=True)
class Prompt:
    """One prompt in the one form that the rest of the code reads.

    Of a pair, `max_tokens_per_query` and `max_tokens_per_doc` are the most tokens of its two texts (0: no limit), and
    `shortened` says that they were applied. `media` is what the model's processor made of `multi_modal_data`; given
    without it, its tokens are among `token_ids` already. `pooled_at` says which of its `token_ids` are wanted, by their
    places; None is what the model pools.
    """

    text: str | None = None
    text_pair: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    cache_salt: str | None = None
    max_tokens_per_query: int = 0
    max_tokens_per_doc: int = 0
    shortened: bool = False
    multi_modal_data: Mapping[str, Any] = field(default_factory=dict)
    mm_processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    media: ReadMedia | None = None
    pooled_at: tuple[int, ...] | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What a template may name: the fields, then the texts themselves."""
        given = {"text": self.text, "text_pair": self.text_pair}
        return {**self.fields, **{name: value for name, value in given.items() if value is not None}}

    def longest_text(self) -> int:
        """Characters of the longest text that truncation may cut."""
        return max((len(text) for text in self.texts()), default=0)

    def cut(self, limit: int, side: str) -> Prompt:
        """The same prompt with no text longer than `limit` characters; cut at the end, or at the start for "left"."""

        def short(text: str) -> str:
            return _short(text, limit, side)

        messages = self.messages
        if messages is not None:
            messages = tuple(
                {name: _shortened(value, short) if name == "content" else value for name, value in each.items()}
                for each in messages
            )
        return replace(
            self,
            text=None if self.text is None else short(self.text),
            text_pair=None if self.text_pair is None else short(self.text_pair),
            messages=messages,
            fields={name: short(value) if isinstance(value, str) else value for name, value in self.fields.items()},
        )

    def cut_pair(self, limit: int, side: str) -> Prompt:
        """The same pair with a second text of at most `limit` characters."""
        return replace(self, text_pair=_short(self.text_pair or "", limit, side))

    def texts(self) -> list[str]:
        """Every text of it."""
        texts = [text for text in (self.text, self.text_pair) if text is not None]
        texts += [value for value in self.fields.values() if isinstance(value, str)]
        return texts + [text for each in self.messages or () for text in _texts_of(each.get("content"))]


def _texts_of(content: Any) -> list[str]:
    """The texts of a message's content: itself, or those of its parts."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, (list, tuple)) else ()
    return [each["text"] for each in parts if isinstance(each, Mapping) and isinstance(each.get("text"), str)]


def _shortened(content: Any, short: Callable[[str], str]) -> Any:
    """A message's content with each of its texts made short."""
    if isinstance(content, str):
        return short(content)
    if not isinstance(content, (list, tuple)):
        return content
    return [{**each, "text": short(each["text"])} if _texts_of([each]) else each for each in content]


def _short(text: str, limit: int, side: str) -> str:
    return text if len(text) <= limit else text[:limit] if side == "right" else text[len(text) - limit :]


def is_single(prompts: Any) -> bool:
    """Whether this is one prompt, not a sequence of prompts."""
    if isinstance(prompts, (str, bytes, Mapping, Prompt, tuple)) or not isinstance(prompts, Iterable):
        return True
    first = next(iter(prompts), None) if isinstance(prompts, Sequence) else None
    return isinstance(first, int) or (isinstance(first, Mapping) and "role" in first)


def as_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list.

    Raises:
        PromptError: there is none.
    """
    listed = [prompts] if is_single(prompts) else list(prompts)
    if not listed:
        raise PromptError("You must pass at least one prompt.")
    return listed


def size(prompt: Any) -> int:
    """Characters of a prompt's texts, or token ids: what tokenizing it takes, roughly. Whatever it is, it is counted."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, Mapping):
        return sum(map(size, prompt.values()))
    if isinstance(prompt, (list, tuple)):
        return len(prompt) if prompt and isinstance(prompt[0], int) else sum(map(size, prompt))
    return 1


def parse(prompt: Any) -> Prompt:
    """Read one prompt.

    Raises:
        PromptError: it has none of the forms above; or it is this error, of a prompt that was read before.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, PromptError):
        raise prompt
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if isinstance(prompt, Mapping):
        return _from_mapping(prompt)
    if isinstance(prompt, tuple) and len(prompt) == 2 and all(isinstance(each, str) for each in prompt):
        return Prompt(text=prompt[0], text_pair=prompt[1])
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)) and prompt:
        if all(isinstance(each, int) and not isinstance(each, bool) for each in prompt):
            return Prompt(token_ids=tuple(prompt))
        if all(isinstance(each, Mapping) and "role" in each for each in prompt):
            return _chat(prompt)
    if isinstance(prompt, Sequence) and not prompt:
        raise PromptError("The decoder prompt cannot be empty; give a text or at least one token id.")
    raise PromptError(
        f"a prompt cannot be {_shown(prompt)}; give a str, a list of token ids, a (text, text_pair) tuple, a list of chat "
        "messages or a dict with 'prompt', 'prompt_token_ids' or 'messages'."
    )


def _chat(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Messages, and apart from them what their parts hold of images and videos."""
    if not has_media(messages):
        return Prompt(messages=tuple(messages))
    plain, data = without_media(messages)
    return Prompt(messages=tuple(plain), multi_modal_data=data)


def _from_mapping(prompt: Mapping[str, Any]) -> Prompt:
    for key in prompt:
        if key not in _KEYS:
            hint = " Did you mean 'prompt'?" if key == "text" else nearest(str(key), _KEYS)
            raise PromptError(f"a prompt has no key {key!r}.{hint} Known: {', '.join(_KEYS)}.")
    bodies = [key for key in ("prompt", "prompt_token_ids", "messages") if prompt.get(key) is not None]
    if len(bodies) > 1 or (not bodies and not prompt.get("fields")):
        raise PromptError(f"a prompt takes one of 'prompt', 'prompt_token_ids' and 'messages'; got {bodies or 'none'}.")
    body = parse(prompt[bodies[0]]) if bodies else Prompt()
    for key, read in (("prompt_token_ids", body.token_ids), ("messages", body.messages)):
        if prompt.get(key) is not None and read is None:
            raise PromptError(f"{key} cannot be {_shown(prompt[key])}; it takes a list.")
    pair = prompt.get("text_pair")
    if pair is not None and (not isinstance(pair, str) or body.text is None):
        raise PromptError(f"text_pair must be a text beside a text 'prompt'; got {_shown(pair)}.")
    salt = prompt.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise PromptError(f"cache_salt must be a text that is not empty; got {_shown(salt)}.")
    kwargs = _chat_template_kwargs(prompt.get("chat_template_kwargs") or {}, body)
    pair = pair if pair is not None else body.text_pair
    limits = {name: prompt[name] for name in ("max_tokens_per_query", "max_tokens_per_doc") if prompt.get(name)}
    if limits and pair is None:
        raise PromptError(f"{', '.join(limits)}: a limit for the texts of a pair, and this prompt is none.")
    fields = prompt.get("fields") or {}
    made = replace(body, text_pair=pair, chat_template_kwargs=kwargs, fields=fields, cache_salt=salt, **limits)
    return _with_media(made, prompt)


def _with_media(body: Prompt, prompt: Mapping[str, Any]) -> Prompt:
    given, kwargs = prompt.get("multi_modal_data") or {}, prompt.get("mm_processor_kwargs") or {}
    for key, value in (("multi_modal_data", given), ("mm_processor_kwargs", kwargs)):
        if not isinstance(value, Mapping):
            raise PromptError(f"{key} cannot be {_shown(value)}; it takes a dict.", key)
    if given and body.multi_modal_data:
        raise PromptError("the messages hold images or videos already; leave multi_modal_data out.", "multi_modal_data")
    if kwargs and not (given or body.multi_modal_data):
        raise PromptError(
            "mm_processor_kwargs are for images and videos, which this prompt lacks.", "mm_processor_kwargs"
        )
    return (
        replace(body, multi_modal_data=given or body.multi_modal_data, mm_processor_kwargs=kwargs)
        if given or kwargs
        else body
    )


def _chat_template_kwargs(given: Any, body: Prompt) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise PromptError(f"chat_template_kwargs cannot be {_shown(given)}; it takes a dict.")
    if given and body.messages is None:
        raise PromptError("chat_template_kwargs are for 'messages', which this prompt lacks.")
    for name in _NO_TEMPLATE_KWARGS:
        if name in given:
            raise PromptError(f"chat_template_kwargs takes no {name!r}: that is not for the template's text.")
    return given


def _shown(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) < 60 else shown[:57] + '…'}"
