"""Builds the prompt processor of a model from its checkpoint, without loading modeling code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..compat.transformers_calls import on_meta
from ..config import ModelConfig
from ..errors import ConfigError, ModelError, shown
from ..inputs.media_reader import MediaReader
from ..inputs.prompt_template import PromptTemplate
from ..inputs.tokenization import PromptProcessor
from ..parsing.json_fields import NUMBER
from .loading.source import ModelSource
from .pair_form import pair_form

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..architecture import Architecture
    from ..media.processor import MediaProcessor

_UNBOUNDED = 1 << 20  # tokens, for models that nothing bounds


def prompt_processor(
    options: ModelConfig,
    source: ModelSource,
    longest: int,
    *,
    num_labels: int | None = None,
    skipped_pad: int | None = None,
) -> PromptProcessor:
    """The processor with the template that the checkpoint stores, unless `use_template` is False.

    Args:
        longest: of a sequence, in tokens.
        num_labels: of the classifier, where its config is not the source's.
        skipped_pad: of the runner.
    """
    settings = source.settings if options.use_template else {}
    stored = settings.get("prompt_template")
    template = PromptTemplate.parse(stored) if stored else None
    takes_pairs = template is not None and "text_pair" in template.fields
    return PromptProcessor(
        tokenizer=source.tokenizer,
        architecture=source.architecture,
        config=source.backbone_config,
        max_model_len=longest,
        template=template,
        chat_template_prompt=bool(settings.get("chat_template_prompt")),
        pairs=pair_form(options, source, num_labels or source.config.num_labels, takes_pairs),
        skipped_pad=skipped_pad,
        media=_media_reader(source, options),
        with_places=source.task == "token_classify" and getattr(source.tokenizer, "is_fast", False),
    )


def _media_reader(source: ModelSource, options: ModelConfig) -> MediaReader | None:
    """What reads images and videos of prompts; None where the model has no part for them."""
    config = source.backbone_config
    if not any(name.startswith("vision") for name in config.sub_configs) and not hasattr(config, "image_token_id"):
        return None

    def open_() -> MediaProcessor:
        from ..media.processor import MediaProcessor

        refuse_without_features(source.architecture, config, source.checkpoint.name)
        return MediaProcessor(source.checkpoint.folder, config, source.tokenizer, source.checkpoint.name)

    return MediaReader(open_, options.media_options(), options.mm_processor_kwargs)


def refuse_without_features(architecture: Architecture, config: PreTrainedConfig, name: str) -> None:
    """Raise `ModelError` where a model reads images in another way than in the place of tokens (Mllama, GIT).

    Args:
        config: of the part behind the head.
        name: what the error calls the model.
    """
    backbone = architecture.media_backbone(on_meta(architecture.classifier_class(type(config)), config))
    if not any(hasattr(backbone, f"get_{modality}_features") for modality in ("image", "video")):
        raise ModelError(
            f"{name}: {type(backbone).__name__} has no features of images that take the place of tokens: what it reads of "
            "an image goes into its layers by a way of its own, which is not run here. Leave images out, or convert another model."
        )


def max_model_len(options: ModelConfig, source: ModelSource) -> int:
    """The longest sequence in tokens: asked for, or what config, tokenizer and Sentence Transformers' file allow.

    Raises:
        ConfigError: more is asked for than the model has positions.
        ModelError: the tokenizer's length is none.
    """
    positions = source.architecture.max_positions(source.backbone_config)
    if options.max_model_len is not None:
        if positions is not None and options.max_model_len > positions:
            raise ConfigError(f"max_model_len={options.max_model_len} is more than the model's {positions} positions.")
        return options.max_model_len
    length = source.sentence_transformers_length()
    if length is None:  # which otherwise takes the place of the tokenizer's
        length = getattr(source.tokenizer, "model_max_length", None)
        if length is not None and not (NUMBER.holds(length) and length >= 1):
            raise ModelError(
                f"{source.checkpoint.name}: tokenizer_config.json: model_max_length is {shown(length)}, which is no length; "
                "correct it, or give max_model_len (--max-model-len)."
            )
    bounds = [positions, source.settings.get("max_model_len")]
    bounds.append(int(length) if length is not None and length < _UNBOUNDED else None)
    return min([bound for bound in bounds if bound], default=_UNBOUNDED)
