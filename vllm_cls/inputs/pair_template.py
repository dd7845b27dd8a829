"""Score templates: how a causal reranker wants a query and a document written, and which template a model has.

A template is Jinja, as in vLLM and Sentence Transformers: it sees `query`, `document`, `instruction`, and `messages`
with the roles "query" and "document".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..architecture import ScoreTemplate
from ..checkpoint.cross_encoder import CrossEncoderFiles
from ..config import ModelConfig
from ..errors import ConfigError, PromptError, nearest
from ..model.source import Source
from ..registry import registry

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
    """

    name: str
    text: str
    instruction: str | None = None
    takes_instruction: bool = False
    structured: bool = False
    adds_special_tokens: bool = True
    beginning: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

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


def pair_form(options: ModelConfig, source: Source, num_labels: int, template_takes_pairs: bool = False) -> PairForm:
    """The form of a model's pairs: what was asked for, what the checkpoint stores, what a plugin knows of it.

    Args:
        template_takes_pairs: the stored prompt template has a place for the second text.

    Raises:
        ConfigError: the template that was asked for or stored cannot be.
    """
    files, tokenizer = CrossEncoderFiles.of(source.checkpoint), source.tokenizer
    if options.score_template is not None:
        return named(options.score_template, source)
    if options.chat_template is not None and tokenizer is not None:
        try:  # vLLM's name for it; a template for chats carries no such pair
            return PairForm(PairTemplate.checked(tokenizer, "chat_template", options.chat_template))
        except ConfigError:
            pass
    if not options.use_template:
        return PairForm(concatenated=_without_sep_token(source))
    stored = source.settings.get("score_template")
    if isinstance(stored, Mapping):
        return PairForm(PairTemplate.checked(tokenizer, "stored", **stored))
    if stored is not None:
        return named(stored, source)
    if files is not None and files.uses_chat_template and tokenizer is not None and tokenizer.chat_template:
        text: Any = tokenizer.chat_template
        known = {"instruction": files.prompt, "adds_special_tokens": False, "options": files.template_options}
        return PairForm(PairTemplate.checked(tokenizer, "sentence-transformers", text, **known))
    if _without_sep_token(source):
        return PairForm(concatenated=True)
    if num_labels == 1 and is_causal(source) and not template_takes_pairs:
        found = detected(source)
        return PairForm(_of(found, source)) if found else PairForm(refused=_refusal(source))
    return PairForm(query_prefix=(files.prompt if files else source.settings.get("query_prefix")) or "")


def to_store(options: ModelConfig, source: Source, num_labels: int) -> dict[str, Any]:
    """What a converted checkpoint keeps of it under `vcls`: `score_template` and `query_prefix`, where there are any.

    Raises:
        ConfigError: as for `pair_form`.
    """
    form = pair_form(options, source, num_labels)
    found = {"query_prefix": form.query_prefix, "score_template": _to_store(form.template) or options.score_template}
    return {name: value for name, value in found.items() if value}


def _to_store(template: PairTemplate | None) -> str | dict[str, Any] | None:
    if template is None:
        return None
    if template.name in [each.name for each in _known()]:
        return template.name
    kept = {name: getattr(template, name) for name in ("text", "instruction", "adds_special_tokens", "options")}
    return {name: value for name, value in kept.items() if value not in (None, {})}


def is_causal(source: Source) -> bool:
    """Whether it is a decoder, whose tokenizer's pair says little: no token between the texts, no token types."""
    config = source.backbone_config
    last = source.architecture.pooling(config) == "LAST" and not config.is_encoder_decoder
    return last and not source.architecture.takes_token_type_ids(config)


def detected(source: Source) -> ScoreTemplate | None:
    """The template that a plugin knows of this model."""
    found: list[ScoreTemplate] = [
        each for each in _known() if each.matches(source.backbone_config, source.checkpoint.name)
    ]
    return found[0] if found else None


def named(value: str, source: Source) -> PairForm:
    """The form that `score_template` names: "concat", "pair", a plugin's template, or one written out.

    Raises:
        ConfigError: it is neither.
    """
    if value in (CONCAT, PAIR):
        return PairForm(concatenated=value == CONCAT)
    for each in _known():
        if each.name == value:
            return PairForm(_of(each, source))
    if "{" not in value:
        names = [CONCAT, PAIR, *(each.name for each in _known())]
        raise ConfigError(
            f"score_template={value!r} is no template and no name of one.{nearest(value, names)} Names: {', '.join(names)}; "
            "or write one with {{ query }} and {{ document }}."
        )
    # Jinja drops the last new line of a template; one that was written is meant.
    return PairForm(PairTemplate.checked(source.tokenizer, "given", value + "\n" * value.endswith("\n")))


def _known() -> list[ScoreTemplate]:
    templates: list[list[ScoreTemplate]] = registry().hook.vcls_score_templates()
    return [each for some in templates for each in some]


def _of(template: ScoreTemplate, source: Source) -> PairTemplate:
    text = template.text + "\n" * template.text.endswith("\n")
    return PairTemplate.checked(source.tokenizer, template.name, text, instruction=template.instruction)


def _without_sep_token(source: Source) -> bool:
    said = (getattr(each, "use_sep_token", None) for each in (source.config, source.backbone_config))
    return next((each for each in said if each is not None), True) is False


def _refusal(source: Source) -> str:
    names = ", ".join(each.name for each in _known())
    return (
        f"{source.checkpoint.name} is a causal reranker, which scores pairs in the prompt that it was trained with, and none "
        "is known for it. Give it with score_template='… {{ query }} … {{ document }} …' (--score-template, also of `vcls "
        f"convert`, which stores it) or by name ({names}), or say score_template={CONCAT!r} to write the texts "
        f"one behind the other, {PAIR!r} for the tokenizer's own pair."
    )
