"""Registers our classes with `AutoConfig` and transformers' Auto classes of classifiers.

`import vllm_cls` must not load transformers, and the two may be imported in either order: what is loaded
already is extended at once, the rest when it is loaded. Configs come first: transformers loads them, and
reads a checkpoint's, long before it loads a class of a model.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..architecture import CLASSIFIERS, OWN_MODEL_TYPE, REWARDS
from ..compat.after_import import after_import

_CONFIGS = "transformers.models.auto.configuration_auto"
_CLASSES = "transformers.models.auto.modeling_auto"


def install() -> None:
    """Extend `AutoConfig` and the Auto classes now, or when transformers is imported."""
    after_import(_CONFIGS, _extend_configs)
    after_import(_CLASSES, _extend_classes)


def _extend_classes(modeling_auto: ModuleType) -> None:
    autos = {task: getattr(modeling_auto, f"AutoModel{ending}") for task, ending in CLASSIFIERS.items()}
    if any(getattr(auto._model_mapping, "extended_by_vllm_cls", False) for auto in autos.values()):
        return
    for task, auto in autos.items():
        _extend_one(auto, task)


def _extend_one(auto: Any, task: str) -> None:
    native = auto._model_mapping

    class WithClassifiers(type(native)):  # type: ignore[misc]
        """transformers' mapping; a config class that it lacks is looked up among our plugins."""

        extended_by_vllm_cls = True

        def __contains__(self, item: Any) -> bool:
            return native.__contains__(item) or _classifier_class(item, task) is not None

        def __getitem__(self, key: Any) -> Any:
            try:
                found = native[key]
            except KeyError:
                made = _classifier_class(key, task)
                if made is None:
                    raise
                # By its name alone, which no config has: pipelines ask whether they know the class.
                native._model_mapping.setdefault(made.__name__, made.__name__)
                return made
            return _ByClassName(found) if task == "classify" and _has_other_heads(key) else found

    mapping = WithClassifiers(native._config_mapping, native._model_mapping)
    native._model_mapping._model_mapping = native  # its constructor points this at the new mapping
    mapping._extra_content = native._extra_content  # registrations made through either are seen by both
    auto._model_mapping = mapping


class _ByClassName:
    """Replaces transformers' class where some checkpoints of its config have another head, as `architectures` says.

    transformers' own class would leave that head out, and make up a random one.
    """

    def __init__(self, native: Any) -> None:
        self._native = native
        self.config_class, self.__name__, self.__module__ = native.config_class, native.__name__, native.__module__

    def from_pretrained(self, *args: Any, config: Any, **options: Any) -> Any:
        return self._class_for(config).from_pretrained(*args, config=config, **options)

    def _from_config(self, config: Any, **options: Any) -> Any:
        return self._class_for(config)._from_config(config, **options)

    def _class_for(self, config: Any) -> Any:
        from ..registry import registry

        names = set(filter(_is_reward, getattr(config, "architectures", None) or ()))
        for _, architecture in registry().architectures():
            if names & set(architecture.class_names):
                architecture.complete(config)
                return architecture.classifier_class(type(config))
        return self._native


def _is_reward(name: str) -> bool:
    return name.endswith(REWARDS)


def _has_other_heads(config_class: Any) -> bool:
    """Whether a plugin knows checkpoints of this config by the name of their class alone."""
    from ..errors import VclsError
    from ..registry import registry

    try:
        named = [each for _, each in registry().architectures() if any(map(_is_reward, each.class_names))]
        return any(each.classifier_class(config_class).config_class is config_class for each in named)
    except VclsError:  # a plugin that is broken, or takes other models: transformers' own class stands
        return False


def _extend_configs(configuration_auto: ModuleType) -> None:
    """Let `AutoConfig` read our own model type without importing its module before it is needed."""
    mapping = configuration_auto.CONFIG_MAPPING
    if not isinstance(mapping._extra_content, _LazyConfigs):
        mapping._extra_content = _LazyConfigs(mapping._extra_content)


class _LazyConfigs(dict[str, Any]):
    """transformers' extra configs; ours is imported at its first use."""

    def __contains__(self, key: object) -> bool:
        return key == OWN_MODEL_TYPE or super().__contains__(key)

    def __missing__(self, key: str) -> Any:
        if key != OWN_MODEL_TYPE:
            raise KeyError(key)
        for config_class, _ in own_classes():
            self[config_class.model_type] = config_class
        return self[key]


def own_classes() -> list[tuple[Any, Any]]:
    """(config class, classifier class) of the model types that plugins add."""
    from ..registry import registry

    return [pair for pairs in registry().call("vcls_auto_classes") for pair in pairs]


def _classifier_class(config_class: Any, task: str) -> Any:
    """Our classifier class for a config class and a task, or None."""
    from ..errors import VclsError
    from ..registry import registry

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
