"""Fast imports of torch and transformers.

The result is that of a plain `import`: nothing that a program may use later is missing.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .after_import import after_import
from .model_sources import keep_structure
from .stand_ins import standing_in


def import_libraries() -> None:
    """Import torch and transformers' modeling code, faster than a plain import would.

    To be called before anything else imports them; it then costs nothing to call it again.
    """
    let_threads_sleep()
    if "transformers.modeling_utils" in sys.modules:
        return
    after_import("transformers.utils.import_utils", keep_structure)
    with without_collector(), standing_in():
        import transformers.masking_utils
        import transformers.modeling_utils  # noqa: F401


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
