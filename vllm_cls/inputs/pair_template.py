"""Score templates: how a causal reranker wants a query and a document written.

A template is Jinja, as in vLLM and Sentence Transformers: it sees `query`, `document`, `instruction`, and `messages`
with the roles "query" and "document".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names that stand for no template: the texts written one behind the other, and the tokenizer's own pair.
CONCAT, PAIR = "concat", "pair"
_MARKS = ("qqvcls", "ddvcls", "iivcls")
_LONG_BEGINNING = 12  # characters; a shorter one may well be a query's own


@dataclass(frozen=True)
class PairTemplate:
    """A score template that is known to carry both texts.

    Args:
        name: what `vcls inspect` shows.
        text: Jinja.
        instruction: used where a request gives none; None leaves that to the template.
        takes_instruction: whether an instruction reaches the prompt.
        structured: a message's content is a list of parts, not a text.
        adds_special_tokens: whether the tokenizer adds its special tokens round the result.
        beginning: what every prompt begins with, before the query.
        options: whatever else the template is told.
        document_first: the document stands before the query.
    """

    name: str
    text: str
    instruction: str | None = None
    takes_instruction: bool = False
    structured: bool = False
    adds_special_tokens: bool = True
    beginning: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    document_first: bool = False

    def render(
        self, tokenizer: PreTrainedTokenizerBase, query: str, document: str, instruction: str | None = None
    ) -> str:
        """The prompt of one pair.

        Raises:
            PromptError: the template refuses it, or the query is such a prompt already.
        """
        from jinja2 import TemplateError

        if len(self.beginning) > _LONG_BEGINNING and query.startswith(self.beginning):
            raise PromptError(
                f"the query begins with the model's own score template ({self.name}), which would be written twice; give "
                f"the bare query and document, or run the texts as they are with score_template={CONCAT!r}.",
                "query",
            )
        instruction = instruction or self.instruction
        values: dict[str, Any] = {"query": query, "document": document}
        messages = list(values.items())
        if instruction:
            values["instruction"] = instruction
            if "instruction" not in self.text and "system" in self.text:  # Sentence Transformers' way to give one
                messages.insert(0, ("system", instruction))
        try:
            rendered: str = tokenizer.apply_chat_template(
                [{"role": role, "content": self._content(text)} for role, text in messages],
                chat_template=self.text,
                tokenize=False,
                **{**self.options, **values},
            )
        except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
            raise PromptError(f"the score template refuses this pair: {error}") from error
        return rendered

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.structured else text

    @classmethod
    def checked(cls, tokenizer: PreTrainedTokenizerBase | None, name: str, text: str, **known: Any) -> PairTemplate:
        """A template, tried with marks in place of the texts.

        Raises:
            ConfigError: it fails, or loses the query or the document.
        """
        if tokenizer is None:
            raise ConfigError("a score template needs the model's tokenizer, which is not in its folder.")
        query, document, instruction = _MARKS
        why = ""
        for structured in (False, True):
            template = cls(name, text, structured=structured, **known)
            try:
                rendered = template.render(tokenizer, query, document, instruction)
            except PromptError as error:
                why = why or f" ({error})"
                continue
            if query in rendered and document in rendered and "'type': 'text'" not in rendered:
                plain = template.render(tokenizer, query, document)
                return dataclasses.replace(
                    template,
                    takes_instruction=instruction in rendered,
                    beginning=plain[: min(plain.find(query), plain.find(document))],
                    document_first=plain.find(document) < plain.find(query),
                )
        raise ConfigError(
            f"the score template {text[:60]!r} does not carry the query and the document{why}; write {{{{ query }}}} and "
            "{{ document }} where they go, or use messages with the roles query and document."
        )


@dataclass(frozen=True)
class PairForm:
    """How pairs of texts become prompts.

    Args:
        template: or None.
        concatenated: the texts are written one behind the other; else the tokenizer makes the pair.
        refused: why pairs cannot be run at all, or None.
        query_prefix: written before every first text.
    """

    template: PairTemplate | None = None
    concatenated: bool = False
    refused: str | None = None
    query_prefix: str = ""

    @property
    def name(self) -> str | None:
        """What `vcls inspect` calls it; None where pairs are refused."""
        if self.refused is not None:
            return None
        return self.template.name if self.template else CONCAT if self.concatenated else PAIR
