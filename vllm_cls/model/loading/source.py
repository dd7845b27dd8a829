"""From a name to a model's files, config, tokenizer and architecture, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...architecture import CLASSIFIERS, DECISIONS, OWN_MODEL_TYPE, REWARDS, Architecture
from ...checkpoint.cross_encoder import read_activation
from ...checkpoint.files import Checkpoint, resolve
from ...checkpoint.name_rules import refuse_unread_heads
from ...checkpoint.peft_adapter import PeftAdapter
from ...checkpoint.sentence_transformer import lower_case, transformer_settings
from ...compat.lazy_imports import without_collector
from ...compat.transformers_calls import model_errors
from ...config import ModelConfig, has_own_code, labels_of
from ...errors import ModelError
from ...registry import registry
from .beside import adapter_beside, decisions_beside
from .config_reading import apply_overrides, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase
    from transformers.decision import DecisionConfig

# What a checkpoint keeps of its head under `vcls`.
_OF_THE_HEAD = ("pooling", "head", "head_method", "pooler_config", "prompt_template", "chat_template_prompt")
_SETFIT_HEAD = "model_head.pkl"


@dataclass(frozen=True)
class ModelSource:
    """A model's files, config, tokenizer and architecture, before any weight is read; and a LoRA adapter to be merged.

    `decisions` are the settings of its decisions, where it was asked to answer questions or says that it does.
    """

    checkpoint: Checkpoint
    config: PreTrainedConfig
    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase | None
    adapter: PeftAdapter | None = None
    decisions: DecisionConfig | None = None

    @property
    def class_name(self) -> str:
        return next(iter(self.config.architectures or ()), "")

    @property
    def pickled_head(self) -> str | None:
        """The file name of SetFit's head, a pickled scikit-learn model, which is never read; None without one."""
        return _SETFIT_HEAD if (self.checkpoint.folder / _SETFIT_HEAD).is_file() else None

    @property
    def backbone_config(self) -> PreTrainedConfig:
        """The config of the backbone: `backbone_config` of our own model type, else the config itself."""
        inner: PreTrainedConfig = getattr(self.config, "backbone_config", None) or self.config
        return inner if self.config.model_type == OWN_MODEL_TYPE else self.config

    @property
    def settings(self) -> dict[str, Any]:
        """The settings under the config's key `vcls`."""
        return getattr(self.config, "vcls", None) or {}

    @property
    def pooling(self) -> str:
        """The pooling that the checkpoint stores, else its architecture's."""
        pooling: str = self.settings.get("pooling") or self.architecture.pooling(self.backbone_config)
        return pooling

    @property
    def task(self) -> str:
        """What it is opened for: "classify" or "token_classify"."""
        return self.architecture.task

    @property
    def is_classifier(self) -> bool:
        """Whether its class name is that of a classifier for its task."""
        others = (*REWARDS, DECISIONS) if self.task == "classify" else ()
        return self.class_name.endswith((CLASSIFIERS[self.task], *others)) or self._adapter_beside_has_head

    @property
    def _adapter_beside_has_head(self) -> bool:
        if not self.checkpoint.has_adapter or self.adapter is None:
            return False
        return self.adapter.head_rows(self.architecture.final_linear) is not None

    @property
    def is_other_classifier(self) -> bool:
        """Whether it is a classifier for another task, whose head does not serve this one."""
        return not self.is_classifier and self.class_name.endswith((*CLASSIFIERS.values(), *REWARDS))

    @property
    def is_decision_model(self) -> bool:
        """Whether its own head answers typed questions."""
        return self.class_name.endswith(DECISIONS)

    def sentence_transformers_length(self) -> int | None:
        """`max_seq_length` of a Sentence Transformers folder, in tokens, or None."""
        length = transformer_settings(self.checkpoint).get("max_seq_length")
        return length if isinstance(length, int) and length > 0 else None

    @property
    def lower_cases(self) -> bool:
        """Whether a Sentence Transformers folder lower-cases its texts, which its tokenizer then does by itself."""
        return bool(transformer_settings(self.checkpoint).get("do_lower_case"))


def open_source(options: ModelConfig) -> ModelSource:
    """Find a model's files and read its config and tokenizer.

    Raises:
        ModelError: nothing is there, the format is refused, or no plugin takes the architecture.
    """
    from ...checkpoint.gguf import materialize

    plugins = registry()  # plugins may register configs of their own with transformers
    checkpoint = resolve(options.model, revision=options.revision, allow_pickle=options.allow_pickle)
    checkpoint.refuse_pickle(options.allow_pickle)
    if checkpoint.gguf is not None:
        checkpoint = materialize(checkpoint)
    beside, decisions = decisions_beside(checkpoint, options)
    adapter = adapter_beside(checkpoint, options, decisions)
    config = beside or read_config(checkpoint, options)
    read_activation(checkpoint, config)
    apply_overrides(config, options)
    inner = config.backbone_config if config.model_type == OWN_MODEL_TYPE else config
    part_of = (getattr(config, "vcls", None) or {}).get("backbone_of")
    names = (*(config.architectures or ()), *([part_of] if part_of else []))
    architecture = plugins.find(_model_type(inner), names, plugin=options.plugin)
    architecture.classifier_class(type(inner))  # a model that reads no texts is refused before anything is asked of it
    architecture.complete(inner)
    _check_vocabulary(checkpoint.name, architecture, inner)
    if _task(options, config, adapter) == "token_classify":
        architecture = architecture.for_tokens(type(inner))
    tokenizer = _read_tokenizer(checkpoint, options, inner if beside is None else None)
    source = ModelSource(checkpoint, config, architecture, tokenizer, adapter, decisions)
    if adapter is not None:
        adapter.check_task(source.task)
    if source.lower_cases and source.tokenizer is not None:
        lower_case(source.tokenizer, checkpoint.name)
    if source.is_classifier:
        _check_labels(source)
        if config.model_type == OWN_MODEL_TYPE:
            _check_heads(source)
    if source.is_other_classifier:  # what is stored of its head says nothing of the one to come
        config.vcls = {name: value for name, value in source.settings.items() if name not in _OF_THE_HEAD}
    return source


def _model_type(config: PreTrainedConfig) -> str:
    """By which plugins find a model; none for code of a checkpoint's own that goes by a model type of transformers'."""
    from transformers import CONFIG_MAPPING

    return "" if has_own_code(config) and config.model_type in CONFIG_MAPPING else config.model_type


def _check_vocabulary(name: str, architecture: Architecture, config: PreTrainedConfig) -> None:
    """Raise `ModelError` if a config does not say how many token ids there are."""
    try:
        count: Any = architecture.vocab_size(config)
    except (AttributeError, TypeError, ValueError):  # there is none, or it is none, or there are several
        count = None
    if count is None or count < 1:
        raise ModelError(
            f"{name}: config.json {'has no vocab_size' if count is None else f'has vocab_size {count}'}, so how many token ids "
            f"there are is not known; is a {config.model_type} a model for texts? A plugin's Architecture.vocab_size can say it."
        )


def _check_labels(source: ModelSource) -> None:
    """Raise `ModelError` if the labels of a classifier are not those of its outputs, 0, 1, 2 …, each with its own name."""
    named = labels_of(source.config)
    if sorted(named) != list(range(source.config.num_labels)) or len(set(named.values())) != len(named):
        raise ModelError(
            f"{source.checkpoint.name}: id2label of config.json is {named}, and has to name 0 to "
            f"{source.config.num_labels - 1}, each differently; correct it with hf_overrides={{'id2label': …}} "
            "(--hf-overrides)."
        )


def _check_heads(source: ModelSource) -> None:
    """Raise `ModelError` if a checkpoint of our own has more of heads than its config says."""
    import transformers

    auto = getattr(transformers, f"AutoModel{CLASSIFIERS[source.task]}")
    model_class = auto._model_mapping[type(source.config)]
    refuse_unread_heads(source.checkpoint.locations, model_class, source.config, source.checkpoint.name)


def _task(options: ModelConfig, config: PreTrainedConfig, adapter: PeftAdapter | None) -> str:
    """What a checkpoint is opened for: as `convert` says, else what the adapter's head or its class does."""
    if options.convert in CLASSIFIERS:
        return options.convert
    if options.convert == "auto" and adapter is not None and adapter.saved and adapter.task is not None:
        return adapter.task
    name = next(iter(config.architectures or ()), "")
    return next((task for task, ending in CLASSIFIERS.items() if name.endswith(ending)), "classify")


def _read_tokenizer(
    checkpoint: Checkpoint, options: ModelConfig, inner: PreTrainedConfig | None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model's family: transformers takes its class, and with it how texts split, from `inner`.

    Where that is None, from config.json.
    """
    from transformers import AutoTokenizer

    where = options.tokenizer or str(checkpoint.folder)
    if options.tokenizer is None and not _has_tokenizer(checkpoint):
        return None
    with model_errors(f"the tokenizer in {where} cannot be read"), without_collector():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, config=inner if options.tokenizer is None else None, trust_remote_code=options.trust_remote_code
        )
    if options.chat_template is not None:
        tokenizer.chat_template = options.chat_template
    return tokenizer


def _has_tokenizer(checkpoint: Checkpoint) -> bool:
    patterns = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt")
    return any(True for pattern in patterns for _ in checkpoint.folder.glob(pattern))
