"""Opens a guard model: a causal language model whose chat template a plugin knows, with a head of its verdicts' tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...config import ModelConfig
from ...errors import ModelError
from ...head_source import Guard
from ...registry import registry
from .head_choice import lacks_head
from .source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PROBE = "vclsprobe"
# Contents become lists of parts, for templates that read nothing else.
_AS_PARTS = (
    "{%- set parted = namespace(messages=[]) -%}{%- for each in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': each['content']}] if each['content'] is string else each['content'] -%}"
    "{%- set parted.messages = parted.messages + [dict(each, content=parts)] -%}"
    "{%- endfor -%}{%- set messages = parted.messages -%}"
)


@dataclass(frozen=True)
class OpenGuard:
    """A guard model as it is opened: the rows of its head, and how its prompts are written.

    Args:
        guard: what a plugin says of it.
        token_ids: of the head's rows.
        verdicts: columns of the logits by label, those of the first rows.
        categories: columns by named category.
        answers: a verdict → the option `answer` behind which its categories are named.
        chat_options: of the chat template, which writes the option `answer` behind the prompt.
    """

    guard: Guard
    token_ids: Sequence[int]
    verdicts: Mapping[str, int]
    categories: Mapping[str, int]
    answers: Mapping[str, str]
    chat_options: Mapping[str, Any]

    def labelled(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """A config whose labels are the verdicts."""
        made = copy.deepcopy(config)
        made.id2label = dict(enumerate(self.verdicts))
        made.label2id = {label: index for index, label in enumerate(self.verdicts)}
        return made


def open_guard(source: ModelSource, options: ModelConfig) -> OpenGuard | None:
    """The guard that a model is, where it was asked for nothing else; its tokenizer then writes the option `answer`.

    Raises:
        ModelError: its chat template fails, or its tokens do not tell its answers apart.
    """
    guard = _known(source, options)
    if guard is None:
        return None
    tokenizer: Any = source.tokenizer
    if source.adapter is not None:
        source.adapter.check_output_layer()
    own, name = tokenizer.get_chat_template().removesuffix("\n"), f"{source.checkpoint.name} ({guard.name})"
    for begins in ("", _AS_PARTS):
        tokenizer.chat_template = begins + own + "{{ answer }}"
        prompt = _prompt(tokenizer, {**guard.options, "answer": ""}, name)
        if _PROBE in prompt and f"'{_PROBE}'" not in prompt:
            break
    else:
        raise ModelError(f"{name}: its chat template loses the text; give another (--chat-template).")
    answer = "" if guard.answer and prompt.endswith(guard.answer) else guard.answer
    verdicts = _first_tokens(tokenizer, prompt + answer, guard.verdicts, name)
    answers = {verdict: answer + written for verdict, written in guard.names_after.items()}
    found = [_first_tokens(tokenizer, prompt + each, guard.named, name) for each in answers.values()]
    if any(each != found[0] for each in found):
        raise ModelError(
            f"{name}: its categories begin with other tokens behind other verdicts, which is not run here."
        )
    categories = found[0] if found else {}
    rows = list(dict.fromkeys([*verdicts.values(), *categories.values()]))
    return OpenGuard(
        guard,
        rows,
        {label: rows.index(token) for label, token in verdicts.items()},
        {category: rows.index(token) for category, token in categories.items()},
        answers,
        {**guard.options, "answer": answer},
    )


def _known(source: ModelSource, options: ModelConfig) -> Guard | None:
    """What a plugin says of a language model that was given no head and asked for none."""
    asked = options.convert != "auto" or not options.use_template or "classifier_from_token" in options.hf_overrides
    other = source.is_classifier or source.is_other_classifier or source.decisions is not None
    if asked or other or not getattr(source.tokenizer, "chat_template", None) or not lacks_head(source):
        return None
    tokenizer: Any = source.tokenizer
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # there are several, and none is the default
        return None
    found: list[Guard] = registry().call("vcls_guards", chat_template=template)
    return found[0] if found else None


def _prompt(tokenizer: Any, options: Mapping[str, Any], name: str) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False, **options)
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelError(f"{name}: its chat template fails ({' '.join(str(error).split())}).") from error
    return text


def _first_tokens(tokenizer: Any, prompt: str, texts: Mapping[str, str], name: str) -> dict[str, int]:
    """The first token of each text behind a prompt.

    Raises:
        ModelError: two are the same, or a text changes the prompt's own tokens.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found: dict[str, int] = {}
    for label, text in texts.items():
        ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
        if ids[: len(before)] != before or len(ids) == len(before):
            raise ModelError(f"{name}: {text!r} does not simply continue its prompt, so no logit is that of {label}.")
        found[label] = ids[len(before)]
    if len(set(found.values())) < len(found):
        raise ModelError(f"{name}: of {', '.join(found)}, two begin with the same token, so their logits are the same.")
    return found
