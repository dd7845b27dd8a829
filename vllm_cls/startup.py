"""Starting fast: how torch and transformers are imported.

The result is that of a plain `import`: nothing that a program may use later is missing.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# transformers imports scipy's optimizers for one function, which the losses of object detection call.
_LATER = "scipy.optimize"


def import_libraries() -> None:
    """Import torch and transformers' modeling code, faster than a plain import would.

    To be called before anything else imports them; it then costs nothing to call it again.
    """
    if "torch" not in sys.modules:
        # Threads that wait for each other should sleep: on a busy machine those that spin take several times as long.
        # The OpenMP runtime reads this once, when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "transformers.modeling_utils" in sys.modules:
        return
    with without_collector(), _imported_later(_LATER):
        after_import("transformers.utils.import_utils", _enlarge_cache)
        import transformers.modeling_utils  # noqa: F401  # and torch with it


@contextmanager
def without_collector() -> Iterator[None]:
    """Without the garbage collector, which would walk the many objects that imports and vocabularies make, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Later(ModuleType):
    """Stands in for a module: a function imported from it imports the module when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = self.__name__

        def function(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module), name)(*args, **kwargs)

        return function


@contextmanager
def _imported_later(name: str) -> Iterator[None]:
    """Within it, functions of a module can be imported without the module; where that is loaded, it stays."""
    if name in sys.modules:
        yield
        return
    stand_in = sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _enlarge_cache(import_utils: ModuleType) -> None:
    """transformers parses the source of all its models twice, because the cache of the first time is too small."""
    cached = getattr(import_utils, "create_import_structure_from_path", None)
    parse = getattr(cached, "__wrapped__", None)
    if parse is not None:
        import_utils.create_import_structure_from_path = functools.cache(parse)  # type: ignore[attr-defined]


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Do something with a module: now, if it is loaded, otherwise as soon as it has run."""
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, act))


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the usual machinery find the one module that it waits for, and acts once that has run."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._act(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
