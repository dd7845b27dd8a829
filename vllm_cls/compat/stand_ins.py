"""Stand-ins for what transformers and torch load at every start and need much later, if at all.

torch's compiler and sympy behind it, scipy, checkpoints of several processes: 0.6 s of processor time and 600 files. Each
gives way to the real one as soon as its module is loaded, by a call of the stand-in or by somebody else.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from .after_import import after_import

# What these say of bools, ints and shapes, where a compiler might give them symbols.
_OF_NUMBERS: Mapping[str, Callable[..., bool]] = {
    **dict.fromkeys(("guard_or_false", "guard_or_true", "guard_size_oblivious", "expect_true"), bool),
    "statically_known_true": bool,
    "is_nested_int": lambda number: False,
    "sym_and": lambda *each: all(each),
    "sym_or": lambda *each: any(each),
    "sym_eq": operator.eq,
}
_OF_SYMBOLS = ("GuardOnDataDependentSymNode", "guarding_hint_or_throw", "has_guarding_hint")
# By module: whose modules get stand-ins, and for which names. They are called, or stand in an `except`; nothing more.
_LATE: Mapping[str, tuple[str, frozenset[str]]] = {
    "scipy.optimize": ("transformers.loss.", frozenset({"linear_sum_assignment"})),
    "torch.fx.experimental.symbolic_shapes": ("torch", frozenset({*_OF_NUMBERS, *_OF_SYMBOLS})),
    "torch.distributed.checkpoint.hf_storage": (
        "transformers.distributed.",
        frozenset({"HuggingFaceStorageReader", "HuggingFaceStorageWriter"}),
    ),
    "torch.distributed.fsdp": ("transformers.distributed.", frozenset({"CPUOffloadPolicy", "MixedPrecisionPolicy"})),
    "torch.distributed._composable.fsdp": ("transformers.distributed.", frozenset({"fully_shard"})),
    "torch._dynamo._trace_wrapped_higher_order_op": (
        "transformers.masking_utils",
        frozenset({"TransformGetItemToIndex"}),
    ),
}
_DYNAMO = "torch._dynamo"
_MARKERS = ("torch.compiler", "torch._compile")  # they load it to mark a function for it

_plain: Callable[..., Any] = builtins.__import__
_lock, _depth = threading.Lock(), 0
_installed = False
"""Whether `builtins.__import__` comes to `_import`, through somebody's own too, that was put before it meanwhile."""
_given: dict[str, list[tuple[dict[str, Any], str, type]]] = {}
"""By module that is not loaded: the namespaces that hold stand-ins, and their names there."""


@contextmanager
def standing_in() -> Iterator[None]:
    """Within it, imports of these names by these modules load nothing; everybody else's imports are as ever."""
    global _depth, _installed, _plain
    torch: Any = importlib.import_module("torch")

    with _lock:
        if not _installed:
            _plain, _installed = builtins.__import__, True
            builtins.__import__ = _import  # type: ignore[assignment]
        if _depth == 0 and _DYNAMO not in sys.modules:
            torch._dynamo = _dynamo
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and vars(torch).get("_dynamo") is _dynamo:  # torch then loads the real one for whoever asks
                del torch._dynamo
            if _depth == 0 and builtins.__import__ is _import:
                builtins.__import__, _installed = _plain, False


def _import(
    name: str,
    globals: dict[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    importer = (globals or {}).get("__name__") or ""
    if _depth > 0 and name not in sys.modules:
        if name == _DYNAMO and importer in _MARKERS and not fromlist:
            return sys.modules["torch"]  # whose `_dynamo` is the stand-in
        if name == "sympy" and importer == "torch._prims_common" and not fromlist:
            return _Sympy()
        prefix, names = _LATE.get(name, ("", frozenset()))
        if globals is not None and fromlist and names.issuperset(fromlist) and importer.startswith(prefix):
            made = {each: _stand_in(name, each) for each in fromlist}
            if locals is globals:  # else it is a function that imports them, each time anew
                _lend(name, globals, made)
            return SimpleNamespace(**made)
    return _plain(name, globals, locals, fromlist, level)


@functools.cache
def _stand_in(module: str, name: str) -> type:
    """A class, so that it may stand in an `except`; called, it answers as the real one does."""

    def call(cls: type, *args: Any, **kwargs: Any) -> Any:
        if name in _OF_NUMBERS and not kwargs and _are_numbers(args):
            return _OF_NUMBERS[name](*args)
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return type(name, (Exception,), {"__new__": call, "__module__": module})


def _lend(module: str, globals: dict[str, Any], made: Mapping[str, type]) -> None:
    if module not in _given:
        _given[module] = []
        after_import(module, _give_way)
    _given[module].extend((globals, name, each) for name, each in made.items())


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(each) in (bool, int) or (type(each) is tuple and _are_numbers(each)) for each in values)


def _give_way(module: ModuleType) -> None:
    """Put what a module has in the places of its stand-ins."""
    for globals, name, made in _given.pop(module.__name__):
        if globals.get(name) is made:
            globals[name] = getattr(module, name)


class _Dynamo:
    """What `torch._dynamo` is meanwhile: functions are marked for the compiler, which learns of it when it is loaded.

    Until then nothing is compiled, so that a function which must not be is simply called.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[str, Callable[..., Any]]] = []

    def allow_in_graph(self, function: Any) -> Any:
        return self._mark("allow_in_graph", function)

    def assume_constant_result(self, function: Any) -> Any:
        return self._mark("assume_constant_result", function)

    def disable(self, function: Any = None, recursive: bool = True, *, wrapping: bool = True, **kwargs: Any) -> Any:
        from torch import _compile

        if function is None:
            return functools.partial(self.disable, recursive=recursive, wrapping=wrapping, **kwargs)
        if not inspect.isfunction(function):
            return self.__getattr__("disable")(function, recursive, wrapping=wrapping, **kwargs)
        if wrapping:  # by torch's own way without its compiler, which comes here again when the function is called
            return _compile._disable_dynamo(function, recursive)

        def call(*args: Any, **kwargs: Any) -> Any:
            if _DYNAMO not in sys.modules:
                return function(*args, **kwargs)
            real = self.__getattr__("disable")(function, recursive, wrapping=False)
            vars(function)["__dynamo_disable"] = real  # where torch has put this one
            return real(*args, **kwargs)

        return call

    def _mark(self, name: str, function: Any) -> Any:
        if _DYNAMO in sys.modules or not inspect.isfunction(function):
            return self.__getattr__(name)(function)
        if not self._marks:
            after_import(_DYNAMO, self._tell)
        self._marks.append((name, function))
        return function

    def _tell(self, module: ModuleType) -> None:
        for name, function in self._marks:
            getattr(module, name)(function)
        self._marks.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(_DYNAMO), name)


_dynamo = _Dynamo()


class _Sympy:
    """Of whose classes nothing can be an instance while it is not loaded."""

    def __getattr__(self, name: str) -> Any:
        return _stand_in("sympy", name)
