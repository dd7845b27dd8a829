"""The cache folder, for files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$VLLM_CLS_CACHE`, else `$XDG_CACHE_HOME/vllm_cls`, else `~/.cache/vllm_cls`.

    Raises:
        RuntimeError: nobody's home is known.
    """
    own = os.environ.get("VLLM_CLS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm_cls"
