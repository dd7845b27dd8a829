"""To act as soon as somebody has imported a module."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Do something with a module: now, if it is loaded, otherwise as soon as it has run."""
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, act))


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the usual machinery find the one module that it waits for, and acts and goes once that has run."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                # A new list: other threads may be walking through the old one.
                sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
                self._act(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
