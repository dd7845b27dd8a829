"""`Decoder` and `Encoder`: the base classes of plugins' architectures; a decoder has `score`, an encoder a head of its own.

Both take the class that transformers has, else make one with `as_seq_cls_model` or `as_token_cls_model`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_cls.architecture import Architecture, LinearHead
from vllm_cls.config import is_own_code
from vllm_cls.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

_MODALITIES = {"image": "images", "video": "videos", "audio": "sound", "time": "time series"}
# tanh(x / 4096) * 4096 is x to 1e-5 for |x| < 20, and states with outliers stay exact enough in float32;
# a power of two makes both scalings exact.
_TANH_SCALE = 2.0**12


def native_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """transformers' own sequence classifier for a config class, or None."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    found: type[PreTrainedModel] | None = _mapped(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config_class)
    return found


def _mapped(mapping: Any, config_class: type[PreTrainedConfig]) -> Any:
    """The class that a mapping of transformers has for a config class, or None.

    For a config class of a checkpoint's own code (`trust_remote_code`) only a class of the same code is returned:
    transformers would find one of its own by the config's name.

    Raises:
        ModelError: transformers cannot import the class, for example because a library is not installed.
    """
    try:
        found = (
            mapping._extra_content.get(config_class) if is_own_code(config_class) else mapping.get(config_class, None)
        )
        getattr(found, "forward", None)  # what stands in for a class whose library is missing says so when it is asked
        return found
    except (ImportError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"transformers cannot load its class for {config_class.__name__} ({reason}).") from error


def base_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """transformers' base model for a config class.

    Raises:
        ModelError: transformers has none.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING

    found = (
        _mapped(MODEL_MAPPING, config_class)
        or _inside_language_model(config_class)
        or _inside_generator(_mapped(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, config_class))
    )
    if found is None:
        raise ModelError(
            f"transformers has no base model for {config_class.__name__} (model_type {config_class.model_type!r}); "
            "write a plugin whose Architecture.classifier_class names one."
        )
    chosen: type[PreTrainedModel] = found[0] if isinstance(found, (tuple, list)) else found
    return chosen


def text_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """transformers' base model for a config class, where token ids are all that it needs.

    Raises:
        ModelError: transformers has none, or it reads something else.
    """
    found = base_class(config_class)
    why_not = _why_not_texts(found)
    if why_not is not None:
        raise ModelError(f"{found.__name__} {why_not}; give a model that reads texts.")
    return found


def input_modalities(model_class: type[PreTrainedModel]) -> set[str]:
    """The modalities of a model's inputs, as transformers names them ("text", "image" …)."""
    found = model_class.input_modalities
    return {found} if isinstance(found, str) else set(found)


def other_modalities(model_class: type[PreTrainedModel]) -> str:
    """The modalities of a model besides text, as words ("images and videos"); empty for a text model."""
    return " and ".join(sorted(_MODALITIES.get(each, each) for each in input_modalities(model_class) - {"text"}))


def _why_not_texts(model_class: type[PreTrainedModel]) -> str | None:
    """Why a model cannot run on texts alone, from its forward's parameters; None where it can.

    A model of texts and images can, except one that compares the two with a contrastive loss, as CLIP does.
    """
    from torch import nn

    if model_class.forward is nn.Module.forward:
        return "has no forward of its own, but parts that each have one"
    _, *parameters = inspect.signature(model_class.forward).parameters.values()
    if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:  # it hands on whatever it gets
        return None
    names = {each.name for each in parameters}
    modalities, others = input_modalities(model_class), other_modalities(model_class)
    if "return_loss" in names:
        return f"compares texts with {others or 'something else'}, and reads none alone"
    needed = [
        each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    needed = [name for name in needed if name != "input_ids"] or [parameters[0].name]
    reads_texts = "text" in modalities and "input_ids" in names
    if needed == ["input_ids"] and reads_texts:
        return None
    read = f"{others} ({', '.join(needed)})" if others else ", ".join(needed)
    return f"reads {read} and no text{' alone' if reads_texts else ''}"


def native_token_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """transformers' own token classifier for a config class, or None."""
    from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

    found: type[PreTrainedModel] | None = _mapped(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, config_class)
    return found


def _inside_language_model(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """The model inside a causal LM whose config has no base model of its own (`MllamaTextModel`), or None."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    for causal in [_mapped(MODEL_FOR_CAUSAL_LM_MAPPING, config_class), *_causal_classes(config_class)]:
        stem = getattr(causal, "__name__", "").removesuffix("ForCausalLM")
        module = vars(sys.modules[causal.__module__]) if causal is not None else {}
        for name in (f"{stem}TextModel", f"{stem}Model"):
            found: type[PreTrainedModel] | None = module.get(name)
            if getattr(found, "config_class", None) is config_class:
                return found
    return None


def _inside_generator(generator: Any) -> type[PreTrainedModel] | None:
    """The base model inside a generator that reads images, which may be of another family (`ShieldGemma2Config`), or None."""
    stem = getattr(generator, "__name__", "").removesuffix("ForConditionalGeneration")
    module = vars(sys.modules[generator.__module__]) if generator is not None else {}
    found: type[PreTrainedModel] | None = module.get(f"{stem}Model")
    return found


def _causal_classes(config_class: type[PreTrainedConfig]) -> list[Any]:
    """Causal LMs of the config's own modeling file that take it, where the mapping names a composite config."""
    name = config_class.__module__.replace(".configuration_", ".modeling_")
    if name.startswith("transformers.") and name != config_class.__module__:  # else whoever made the config loaded it
        with contextlib.suppress(ImportError):  # of a library that is not installed
            importlib.import_module(name)
    modeling = sys.modules.get(name)
    members = vars(modeling).values() if modeling else ()
    return [
        each
        for each in members
        if isinstance(each, type)
        and each.__name__.endswith("ForCausalLM")
        and getattr(each, "config_class", None) is config_class
    ]


class _Family(Architecture):
    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        from .seq_cls import as_seq_cls_model

        return native_class(config_class) or as_seq_cls_model(text_class(config_class))

    def for_tokens(self, config_class: type[PreTrainedConfig]) -> Architecture:
        from transformers.modeling_layers import GenericForTokenClassification

        native = native_token_class(config_class)
        made = copy.copy(self)
        made.__class__ = _for_tokens(type(self))  # type: ignore[arg-type]  # classes are hashable
        made.final_linear = (
            "classifier" if native and not issubclass(native, GenericForTokenClassification) else "score"
        )
        return made


class _ForTokens(_Family):
    """Mixin that turns an architecture into that of a token classifier: a head on each token's state."""

    task = "token_classify"

    def classifier_class(self, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
        from .token_cls import as_token_cls_model

        return native_token_class(config_class) or as_token_cls_model(text_class(config_class))

    def pooling(self, config: PreTrainedConfig) -> str:
        return "ALL"

    def pooled_count(self, config: PreTrainedConfig) -> None:
        return None

    def decoder_ids(self, config: PreTrainedConfig, input_ids: Sequence[int]) -> None:
        return None  # its own forward makes them, where it has a decoder

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        from vllm_cls.pooler.heads import ReplayedHead

        return getattr(model, "pooled_logits", None) or ReplayedHead(model)

    def express(
        self, config: PreTrainedConfig, linear: LinearHead, *, on_features: bool
    ) -> Mapping[str, torch.Tensor] | None:
        from .token_cls import linear_parameters

        return linear_parameters(self.classifier_class(type(config)), config, self.final_linear, linear)


@functools.cache
def _for_tokens(family: Any) -> type[_Family]:
    made: type[_Family] = type(f"{family.__name__}ForTokens", (_ForTokens, family), {})
    return made


class Decoder(_Family):
    """A causal model: the state of the last token, and `score` without bias."""

    final_linear = "score"

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        head: Callable[[torch.Tensor], torch.Tensor]
        head = getattr(model, "pooled_logits", None) or model.get_submodule(self.final_linear)
        return head


def _pad(config: PreTrainedConfig) -> int:
    """The pad token id, after which RoBERTa-like models number positions.

    Raises:
        ModelError: there is none.
    """
    if not isinstance(config.pad_token_id, int):
        raise ModelError(
            "config.json: pad_token_id is null, and this model numbers its positions from it; correct it, or pass "
            "hf_overrides={'pad_token_id': …} (--hf-overrides)."
        )
    return config.pad_token_id


def _behind_pad(pad: int, input_ids: Sequence[int]) -> list[int]:
    """Positions from `pad + 1`; a pad token inside a prompt gets the pad's, as in transformers."""
    position, numbered = pad, []
    for token in input_ids:
        position += token != pad
        numbered.append(pad if token == pad else position)
    return numbered


class Encoder(_Family):
    """A bidirectional model: the state of the first token, and transformers' own head code.

    Attributes:
        offset_positions: positions are numbered from `pad_token_id + 1` and skip pad tokens (RoBERTa).
        tanh_dense: path of the linear layer before a tanh, in the classifier class, where that is the
            head's form; a fitted head is then carried by making it a scaled identity.
    """

    final_linear = "classifier"
    offset_positions: bool = False
    tanh_dense: str | None = None

    def pooling(self, config: PreTrainedConfig) -> str:
        return "CLS"

    def head(self, model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor] | None:
        from vllm_cls.pooler.heads import ReplayedHead

        return getattr(model, "pooled_logits", None) or ReplayedHead(model, self.backbone_pooler(model))

    def backbone_pooler(self, model: PreTrainedModel) -> nn.Module | None:
        """`(n, 1, hidden)` → `(n, hidden)` by the pooler inside the backbone, or None where it has none."""
        from torch import nn

        from vllm_cls.pooler.heads import FirstToken

        backbone = self.backbone(model)
        pooler: nn.Module | None = getattr(backbone, "pooler", None)
        activation: Any = getattr(backbone, "pooler_activation", None)
        if pooler is not None and activation is not None:  # ALBERT's is a bare linear layer
            return nn.Sequential(FirstToken(), pooler, activation)
        return pooler

    def numbering(self, config: PreTrainedConfig) -> Callable[[Sequence[int]], Sequence[int]] | None:
        return functools.partial(_behind_pad, _pad(config)) if self.offset_positions else None

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        longest = super().max_positions(config)
        return longest - _pad(config) - 1 if longest and self.offset_positions else longest

    def express(
        self, config: PreTrainedConfig, linear: LinearHead, *, on_features: bool
    ) -> Mapping[str, torch.Tensor] | None:
        import torch

        if linear.softcap is not None or linear.combine is not None or not (on_features or self.tanh_dense):
            return None
        bias = linear.bias if linear.bias is not None else torch.zeros(linear.num_labels)
        if on_features:
            return {f"{self.final_linear}.weight": linear.weight, f"{self.final_linear}.bias": bias}
        hidden = linear.weight.shape[1]
        return {
            f"{self.tanh_dense}.weight": torch.eye(hidden) / _TANH_SCALE,
            f"{self.tanh_dense}.bias": torch.zeros(hidden),
            f"{self.final_linear}.weight": linear.weight * _TANH_SCALE,
            f"{self.final_linear}.bias": bias,
        }
