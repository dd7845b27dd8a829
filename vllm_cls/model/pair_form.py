"""Chooses how pairs of texts become prompts: by option, by the checkpoint's settings, or by a plugin's template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..architecture import ScoreTemplate
from ..checkpoint.cross_encoder import CrossEncoderFiles
from ..config import ModelConfig
from ..errors import ConfigError, nearest
from ..inputs.pair_template import CONCAT, PAIR, PairForm, PairTemplate
from ..registry import registry
from .loading.source import ModelSource


def pair_form(
    options: ModelConfig, source: ModelSource, num_labels: int, template_takes_pairs: bool = False
) -> PairForm:
    """The form of a model's pairs: that of the options, else of the checkpoint, else of a plugin's template.

    Args:
        template_takes_pairs: the stored prompt template has a place for the second text.

    Raises:
        ConfigError: the template that was asked for or stored cannot be.
    """
    files, tokenizer = CrossEncoderFiles.from_checkpoint(source.checkpoint), source.tokenizer
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


def to_store(options: ModelConfig, source: ModelSource, num_labels: int) -> dict[str, Any]:
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
    stored = {name: getattr(template, name) for name in ("text", "instruction", "adds_special_tokens", "options")}
    return {name: value for name, value in stored.items() if value not in (None, {})}


def is_causal(source: ModelSource) -> bool:
    """Whether it is a decoder, whose tokenizer's pair says little: no token between the texts, no token types."""
    config = source.backbone_config
    last = source.architecture.pooling(config) == "LAST" and not config.is_encoder_decoder
    return last and not source.architecture.takes_token_type_ids(config)


def detected(source: ModelSource) -> ScoreTemplate | None:
    """The template that a plugin knows of this model."""
    found: list[ScoreTemplate] = [
        each for each in _known() if each.matches(source.backbone_config, source.checkpoint.name)
    ]
    return found[0] if found else None


def named(value: str, source: ModelSource) -> PairForm:
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
    templates: list[list[ScoreTemplate]] = registry().call("vcls_score_templates")
    return [each for some in templates for each in some]


def _of(template: ScoreTemplate, source: ModelSource) -> PairTemplate:
    text = template.text + "\n" * template.text.endswith("\n")
    return PairTemplate.checked(source.tokenizer, template.name, text, instruction=template.instruction)


def _without_sep_token(source: ModelSource) -> bool:
    values = (getattr(each, "use_sep_token", None) for each in (source.config, source.backbone_config))
    return next((each for each in values if each is not None), True) is False


def _refusal(source: ModelSource) -> str:
    names = ", ".join(each.name for each in _known())
    return (
        f"{source.checkpoint.name} is a causal reranker, which scores pairs in the prompt that it was trained with, and none "
        "is known for it. Give it with score_template='… {{ query }} … {{ document }} …' (--score-template, also of `vcls "
        f"convert`, which stores it) or by name ({names}), or say score_template={CONCAT!r} to write the texts "
        f"one behind the other, {PAIR!r} for the tokenizer's own pair."
    )
