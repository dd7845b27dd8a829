"""Finds plugins through entry points, and the architecture that claims a config.

A broken plugin is kept by name with its error, and never breaks a run that does not need it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from . import hookspecs
from .architecture import Architecture
from .errors import ModelError, PluginError, nearest

GROUP = "vllm_cls"


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
        self._names = {id(info.plugin): info.name for info in self.plugins}

    @property
    def hook(self) -> pluggy.HookRelay:
        return self._manager.hook

    def _register(self, info: PluginInfo) -> PluginInfo:
        if info.error is not None:
            return info
        try:
            self._manager.register(info.plugin, name=info.name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            self._manager.set_blocked(info.name)
            return PluginInfo(info.name, info.distribution, info.version, info.module, error=str(error))
        return info

    def architectures(self) -> list[tuple[str, Architecture]]:
        """Every architecture with the name of the plugin that gave it."""
        found = []
        for implementation in self.hook.vcls_architectures.get_hookimpls():
            found += [(implementation.plugin_name, each) for each in self._call(implementation)]
        return found

    def answers(self, hook_name: str, **arguments: Any) -> list[Any]:
        """What each plugin answers to a hook, where it is not None.

        Raises:
            PluginError: one fails.
        """
        found = [self._call(each, **arguments) for each in getattr(self.hook, hook_name).get_hookimpls()]
        return [each for each in found if each is not None]

    def _call(self, implementation: pluggy.HookImpl, **arguments: Any) -> Any:
        try:
            return implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception as error:
            raise PluginError(
                f"plugin {implementation.plugin_name!r} failed in {implementation.function.__name__}: {error!r}. "
                "Uninstall it or leave it out with VCLS_PLUGINS."
            ) from error

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

    def collect(self, hook_name: str) -> dict[str, Any]:
        """One mapping from all plugins' answers to a hook that returns mappings.

        Raises:
            PluginError: two plugins give the same name.
        """
        merged: dict[str, tuple[str, Any]] = {}
        for implementation in getattr(self.hook, hook_name).get_hookimpls():
            answer: Mapping[str, Any] = self._call(implementation)
            for name, value in answer.items():
                if name in merged:
                    raise PluginError(
                        f"plugins {merged[name][0]!r} and {implementation.plugin_name!r} both register {name!r} in "
                        f"{hook_name}; leave one out with VCLS_PLUGINS."
                    )
                merged[name] = (implementation.plugin_name, value)
        return {name: value for name, (_, value) in merged.items()}


def discover() -> list[PluginInfo]:
    """Load every plugin of the entry-point group; `VCLS_PLUGINS=a,b` limits which."""
    wanted = os.environ.get("VCLS_PLUGINS")
    names = None if wanted is None else {name.strip() for name in wanted.split(",") if name.strip()}
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
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
