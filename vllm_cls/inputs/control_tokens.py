"""Control tokens in the texts of messages: marked before a chat template writes them, so that the tokenizer reads text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEGINS = "\U000f0000"  # transformers' mark


@dataclass(frozen=True)
class ControlTokens:
    """Those of a tokenizer's chats, as transformers has them: special tokens, and added ones that the template writes.

    Args:
        pattern: matches any, the longest first.
    """

    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
        """Those of a tokenizer with a chat template."""
        template = str(tokenizer.get_chat_template())
        added = [(each.content, each.special) for each in tokenizer.added_tokens_decoder.values()]
        names = [name for name, special in added if special or (name in template and not name.isspace())]
        return cls(re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"))

    def marked(self, messages: Sequence[Any]) -> list[Any]:
        """The same messages, with marks round what stays text."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        return [
            mark_control_tokens(dict(each) if isinstance(each, Mapping) else each, self.pattern) for each in messages
        ]

    def has_marks(self, chat: str) -> bool:
        """Whether a chat that was written from such messages has any."""
        return _BEGINS in chat
