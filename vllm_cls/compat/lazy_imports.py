"""Fast imports of torch and transformers.

The result is that of a plain `import`: nothing that a program may use later is missing.
"""

from __future__ import annotations

import builtins
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any


def import_libraries() -> None:
    """Import torch and transformers' modeling code, faster than a plain import would.

    To be called before anything else imports them; it then costs nothing to call it again.
    """
    let_threads_sleep()
    if "transformers.modeling_utils" in sys.modules:
        return
    with without_collector(), _without_scipy():
        after_import("transformers.utils.import_utils", _enlarge_cache)
        import transformers.modeling_utils  # noqa: F401  # and torch with it


def let_threads_sleep() -> None:
    """Threads that wait for each other should sleep: on a busy machine those that spin take several times as long.

    The OpenMP runtime reads this once, when torch is loaded.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def command_of(module: str, python: str = sys.executable) -> list[str]:
    """The command that runs a module of ours in a subprocess, without importing from the current folder.

    `python -m` would look for modules there first, for `vllm_cls` and for all that it imports.
    """
    code = "import sys; sys.path[:] = filter(None, sys.path); from runpy import run_module"
    return [python, "-c", f"{code}; run_module({module!r}, None, '__main__')"]


@contextmanager
def without_collector() -> Iterator[None]:
    """Without the garbage collector, which would walk the many objects that imports and vocabularies make, in vain.

    They are old ones at once, which the collections of young ones pass over.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else it would thaw what somebody has frozen
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()


def _linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
    """scipy's function, imported when it is called."""
    return importlib.import_module("scipy.optimize").linear_sum_assignment(*args, **kwargs)


@contextmanager
def _without_scipy() -> Iterator[None]:
    """Within it, transformers' losses of object detection get the one function of scipy that they import without scipy.

    Everybody else's imports, of scipy too, are as ever.
    """
    plain = builtins.__import__

    def import_(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if name == "scipy.optimize" and fromlist == ("linear_sum_assignment",):
            importer = (globals or {}).get("__name__", "")
            if importer.startswith("transformers.loss.") and name not in sys.modules:
                return SimpleNamespace(linear_sum_assignment=_linear_sum_assignment)
        return plain(name, globals, locals, fromlist, level)

    builtins.__import__ = import_
    try:
        yield
    finally:
        if builtins.__import__ is import_:  # else another thread came in, whose own calls this one
            builtins.__import__ = plain


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
