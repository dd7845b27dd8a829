"""Finds plugins through entry points, and the architecture that claims a config.

A broken plugin is kept by name with its error, and never breaks a run that does not need it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .architecture import Architecture, Head, HeadRequest, HeadResult
from .errors import ConfigError, ModelError, PluginError, VclsError, nearest
from .head_source import EXISTING, HeadSource

if TYPE_CHECKING:
    from .pooler.methods import PoolingMethod

GROUP = "vllm_cls"
HEADS_GROUP = "vllm_cls.heads"
"""Plugins with head sources that load nothing heavy before a head is made, so that `vcls convert --help` loads them."""
OURS = "vllm-cls"
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("vcls_"))
_HEADS = "vcls_head_sources"


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin: where it is from, and what is wrong with it (`error`), if anything is."""

    name: str
    distribution: str
    version: str
    module: str
    plugin: Any = field(default=None, repr=False)
    error: str | None = None


class Registry:
    """The plugins of one process.

    Args:
        plugins: what `discover` found.
    """

    def __init__(self, plugins: Sequence[PluginInfo]) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.plugins = [self._register(info) for info in plugins]

    def _register(self, info: PluginInfo) -> PluginInfo:
        if info.error is not None:
            return info
        try:
            self._manager.register(info.plugin, name=info.name)
            self._manager.check_pending()
            for each in (each for hook_name in HOOKS for each in self._implementations(hook_name, info.name)):
                if each.wrapper or each.hookwrapper:
                    raise ValueError(
                        f"{each.function.__name__} is a wrapper of pluggy's; a hook here gives an answer, or None"
                    )
        except (pluggy.PluginValidationError, ValueError) as error:
            self._manager.set_blocked(info.name)
            return PluginInfo(info.name, info.distribution, info.version, info.module, error=str(error))
        return info

    def call(self, hook_name: str, **arguments: Any) -> Any:
        """Call a hook: the plugins' results, a third party's before the built-in one.

        Returns:
            Of a hook that takes one answer the first that is not None, behind which nobody is asked; of another hook a
            list of all that are not None.

        Raises:
            PluginError: a plugin fails, which is named; or nobody answers a hook that takes one answer.
            VclsError: as a plugin raises it.
        """
        answers = (answer for _, answer in self._answers(hook_name, arguments))
        if not getattr(self._manager.hook, hook_name).spec.opts["firstresult"]:
            return list(answers)
        for answer in answers:
            return answer
        known = ", ".join(info.name for info in self.plugins if info.error is None)
        raise PluginError(
            f"no plugin answers {hook_name}; loaded are {known or 'none'}. The built-in heads and checkpoint do: name them in "
            "VCLS_PLUGINS too."
        )

    def hooks_of(self, plugin: str) -> list[str]:
        """The hooks that a plugin answers."""
        return [hook_name for hook_name in HOOKS if self._implementations(hook_name, plugin)]

    def answer_of(self, plugin: str, hook_name: str) -> Any:
        """One plugin's answer to a hook without arguments, None included; errors as of `call`."""
        return next((answer for _, answer in self._answers(hook_name, {}, plugin)), None)

    def _implementations(self, hook_name: str, plugin: str | None = None) -> list[pluggy.HookImpl]:
        """The functions for a hook, of all plugins or of one, in pluggy's order: `trylast` last, else the last found first."""
        found = reversed(getattr(self._manager.hook, hook_name).get_hookimpls())
        return [each for each in found if plugin in (None, each.plugin_name)]

    def _answers(
        self, hook_name: str, arguments: Mapping[str, Any], plugin: str | None = None
    ) -> Iterator[tuple[str, Any]]:
        """The plugins with their results that are not None, called lazily."""
        for each in self._implementations(hook_name, plugin):
            try:
                answer = each.function(*(arguments[name] for name in each.argnames))
            except VclsError:
                raise
            except Exception as error:
                if self._is_ours(each.plugin_name):  # an error of ours is reported as such
                    raise
                raise PluginError(
                    f"plugin {each.plugin_name!r} failed in {hook_name}: {error!r}. "
                    "Uninstall it or leave it out with VCLS_PLUGINS."
                ) from error
            if answer is not None:
                yield each.plugin_name, answer

    def architectures(self) -> list[tuple[str, Architecture]]:
        """Every architecture with the name of the plugin that gave it."""
        return [(plugin, each) for plugin, some in self._answers("vcls_architectures", {}) for each in some]

    def find(self, model_type: str, class_names: Sequence[str] = (), *, plugin: str | None = None) -> Architecture:
        """The architecture that claims a config; the most specific match wins.

        Raises:
            PluginError: two architectures match equally well, or `plugin` is unknown or does not match.
            ModelError: nothing matches.
        """
        candidates = self.architectures()
        if plugin is not None:
            known = sorted({info.name for info in self.plugins})
            if plugin not in known:
                raise PluginError(
                    f"no plugin is called {plugin!r}; installed: {', '.join(known)}.{nearest(plugin, known)}"
                )
            candidates = [(name, each) for name, each in candidates if name == plugin]
        scored = [(each.specificity(model_type, class_names), name, each) for name, each in candidates]
        best = max((score for score, _, _ in scored), default=0)
        winners = [(name, each) for score, name, each in scored if score == best]
        if best == 0:
            where = f"plugin {plugin!r} does not take" if plugin else "no installed plugin takes"
            raise ModelError(
                f"{where} model_type {model_type!r} ({', '.join(class_names) or 'no architectures'}); "
                "write one with an Architecture whose model_types name it, or see `vcls plugins list`."
            )
        if len(winners) > 1:
            names = " and ".join(f"{name!r} ({each.name})" for name, each in winners)
            raise PluginError(
                f"plugins {names} match model_type {model_type!r} equally well; choose with --plugin NAME."
            )
        return winners[0][1]

    def collect(self, hook_name: str, reserved: Collection[str] = ()) -> dict[str, Any]:
        """One mapping from all plugins' answers to a hook that returns mappings.

        Args:
            reserved: names in capitals that no plugin may give.

        Raises:
            PluginError: two plugins give the same name, or one a name that is reserved.
        """
        found = self._collected(hook_name)
        for name, (plugin, _) in found.items():
            if name.upper() in reserved:
                raise PluginError(
                    f"plugin {plugin!r} gives {name!r} in {hook_name}, which is a built-in one; rename it."
                )
        return {name: value for name, (_, value) in found.items()}

    def pooling_methods(self) -> dict[str, PoolingMethod]:
        """Every pooling method by its name: ours, then those of plugins.

        Raises:
            PluginError: a plugin gives one of ours.
        """
        from .pooler.methods import POOLING_METHODS, every_token

        ours = {**POOLING_METHODS, "ALL": every_token}
        return {**ours, **self.collect("vcls_pooling_methods", reserved=(*ours, "STEP"))}

    def _collected(self, hook_name: str) -> dict[str, tuple[str, Any]]:
        """As `collect`, with the plugin that gave each; in the order in which the plugins were found."""
        merged: dict[str, tuple[str, Any]] = {}
        for plugin, answer in reversed([*self._answers(hook_name, {})]):
            if not isinstance(answer, Mapping):
                raise PluginError(
                    f"plugin {plugin!r} answers {hook_name} with a {type(answer).__name__}, and has to give a mapping."
                )
            for name, value in answer.items():
                if name in merged:
                    raise PluginError(
                        f"plugins {merged[name][0]!r} and {plugin!r} both register {name!r} in {hook_name}; leave one "
                        "out with VCLS_PLUGINS."
                    )
                merged[name] = (plugin, value)
        return merged

    def head_sources(self) -> dict[str, HeadSource]:
        """All head sources by name, ours first; values that are not a `HeadSource` are left out."""
        found = sorted(self._collected(_HEADS).items(), key=lambda item: not self._is_ours(item[1][0]))
        return {name: each for name, (_, each) in found if isinstance(each, HeadSource)}

    def heads_for(self, task: str) -> str:
        """The heads that can be made for a task, as `--head` takes them: "fit|tokens|…"."""
        return "|".join(name for name, each in self.head_sources().items() if task in each.tasks and name != EXISTING)

    def heads_taking(self, option: str) -> list[str]:
        """The heads that take an option of this name."""
        return [name for name, each in self.head_sources().items() if each.may_have(option)]

    def head_source(self, name: str) -> HeadSource:
        """The head source of that name.

        Raises:
            ConfigError: there is none.
            PluginError: it is no `HeadSource`.
        """
        found = self._collected(_HEADS)
        if name not in found:
            known = self.head_sources()
            raise ConfigError(f"head={name!r} is unknown; use one of {', '.join(known)}.{nearest(name, known)}")
        plugin, source = found[name]
        if not isinstance(source, HeadSource):
            raise PluginError(f"plugin {plugin!r} gives {no_head_source(name, source)}.")
        return source

    def make_head(self, name: str, request: HeadRequest) -> HeadResult:
        """The head that a source makes.

        Raises:
            ConfigError: there is no such source, or it refuses its options.
            ModelError: it refuses the model.
            PluginError: a third party's source fails, or gives something else.
        """
        source, (plugin, _) = self.head_source(name), self._collected(_HEADS)[name]
        try:
            result = source.make(request)
        except (VclsError, OSError):
            raise
        except Exception as error:
            if self._is_ours(plugin):
                raise
            raise PluginError(f"plugin {plugin!r} failed while it made the head {name!r}: {error!r}.") from error
        wrong = _wrong_with(result)
        if wrong is not None:
            raise PluginError(f"plugin {plugin!r} gave {wrong[0]} for the head {name!r}, {wrong[1]}.")
        return result

    def _is_ours(self, plugin: str) -> bool:
        return any(info.name == plugin and info.distribution == OURS for info in self.plugins)


def _wrong_with(result: Any) -> tuple[str, str] | None:
    """What a head source made, and what is wrong with it, in words; None where nothing is."""
    import torch

    if not isinstance(result, HeadResult):
        return f"a {type(result).__name__}", "not a HeadResult"
    head: Any = result.head  # whatever a third party put there
    if not isinstance(head, Head):
        return "a HeadResult", f"whose head is a {type(head).__name__}, not a Head"
    tensors: dict[str, Any] = dict(head.tensors or {})
    if head.linear is not None:
        tensors |= {"weight": head.linear.weight, "bias": head.linear.bias}
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            return "a Head", f"whose {name} is a {type(tensor).__name__}, not a torch tensor"
    if head.linear is not None and head.linear.weight.ndim != 2:
        return "a Head", f"whose weight is {tuple(head.linear.weight.shape)}, not (num_labels, hidden)"
    if head.linear is not None and head.linear.num_labels != len(result.labels):
        return "a Head", f"which has {head.linear.num_labels} rows, and {len(result.labels)} labels"
    return None


def no_head_source(name: str, value: Any) -> str:
    """The message for a value that is not a `HeadSource`."""
    return (
        f"the head {name!r} as a {type(value).__name__}, and has to give a vllm_cls.HeadSource(make=function, summary='a line "
        "for --help'); docs/plugins.md shows one"
    )


def discover(groups: Sequence[str] = (GROUP, HEADS_GROUP)) -> list[PluginInfo]:
    """Load every plugin of the entry-point groups; `VCLS_PLUGINS=a,b` limits which."""
    wanted = os.environ.get("VCLS_PLUGINS")
    names = None if wanted is None else {name.strip() for name in wanted.split(",") if name.strip()}
    found = []
    entries = [each for group in groups for each in importlib.metadata.entry_points(group=group)]
    for entry in {(each.name, each.value): each for each in entries}.values():
        if names is not None and entry.name not in names:
            continue
        distribution = entry.dist.name if entry.dist else "?"
        version = entry.dist.version if entry.dist else "?"
        try:
            plugin, error = entry.load(), None
        except Exception as failure:  # whatever a third party's import raises is shown, never fatal
            plugin, error = None, f"{type(failure).__name__}: {failure}"
        found.append(PluginInfo(entry.name, distribution, version, entry.value, plugin, error))
    return found


@functools.cache
def registry() -> Registry:
    """The registry of this process, made at its first use."""
    return Registry(discover())
