"""Makes transformers' Auto classes of classifiers, and `AutoConfig`, know our classes.

`import vllm_cls` must not load transformers, and the two may be imported in either order: if the Auto
classes are loaded already they are extended at once, otherwise when they are.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .architecture import CLASSIFIERS
from .startup import after_import

_MODULE = "transformers.models.auto.modeling_auto"


def install() -> None:
    """Extend the Auto classes now, or arrange for it."""
    after_import(_MODULE, _extend)


def _extend(modeling_auto: ModuleType) -> None:
    autos = {task: getattr(modeling_auto, f"AutoModel{ending}") for task, ending in CLASSIFIERS.items()}
    if any(getattr(auto._model_mapping, "extended_by_vllm_cls", False) for auto in autos.values()):
        return
    for task, auto in autos.items():
        _extend_one(auto, task)
    _register_config()


def _extend_one(auto: Any, task: str) -> None:
    native = auto._model_mapping

    class WithClassifiers(type(native)):  # type: ignore[misc]
        """transformers' mapping; a config class that it lacks is looked up among our plugins."""

        extended_by_vllm_cls = True

        def __contains__(self, item: Any) -> bool:
            return native.__contains__(item) or _classifier_class(item, task) is not None

        def __getitem__(self, key: Any) -> Any:
            try:
                return native[key]
            except KeyError:
                found = _classifier_class(key, task)
                if found is None:
                    raise
                return found

    mapping = WithClassifiers(native._config_mapping, native._model_mapping)
    native._model_mapping._model_mapping = native  # its constructor points this at the new mapping
    mapping._extra_content = native._extra_content  # registrations made through either are seen by both
    auto._model_mapping = mapping


def _register_config() -> None:
    """Let `AutoConfig` read our own model type without importing its module before it is needed."""
    from transformers import CONFIG_MAPPING

    from .architecture import OWN_MODEL_TYPE

    class Lazy(dict[str, Any]):
        """transformers' extra configs; ours is imported at its first use."""

        def __contains__(self, key: object) -> bool:
            return key == OWN_MODEL_TYPE or super().__contains__(key)

        def __missing__(self, key: str) -> Any:
            if key != OWN_MODEL_TYPE:
                raise KeyError(key)
            for config_class, _ in own_classes():
                self[config_class.model_type] = config_class
            return self[key]

    CONFIG_MAPPING._extra_content = Lazy(CONFIG_MAPPING._extra_content)


def own_classes() -> list[tuple[Any, Any]]:
    """(config class, classifier class) of the model types that plugins bring along."""
    from .registry import registry

    return [pair for pairs in registry().hook.vcls_auto_classes() for pair in pairs]


def _classifier_class(config_class: Any, task: str) -> Any:
    """Our classifier class for a config class and a task, or None."""
    from .errors import VclsError
    from .registry import registry

    for own_config, own_class in own_classes():
        if own_config is config_class and own_class.__name__.endswith(CLASSIFIERS[task]):
            return own_class
    try:
        architecture = registry().find(getattr(config_class, "model_type", ""))
        if task == "token_classify":
            architecture = architecture.for_tokens(config_class)
        return architecture.classifier_class(config_class)
    except VclsError:  # no plugin, or no text model: to transformers it is simply not in the mapping
        return None
