"""What all tests share: no network, one thread (tiny models gain nothing from more), no progress bars."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    os.environ["VLLM_CLS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
