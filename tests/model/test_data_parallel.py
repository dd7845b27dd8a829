"""`data_parallel_size`: two processes with the same model share the prompts out."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.model.test_tensor_parallel import TEXTS, assert_equal, logits, other_processes
from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.errors import ConfigError
from vllm_cls.runtime.parallel.replicas import shares


def test_qwen2_gives_the_same_by_two_processes_one_of_which_is_killed(tmp_path: Path) -> None:
    folder, texts = str(tiny.classifier("qwen2", tmp_path)), TEXTS
    with LLM(folder, enable_prefix_caching=False) as one:
        wanted, counted = logits(one, texts), one.counters
    with LLM(folder, enable_prefix_caching=False, data_parallel_size=2) as two:
        assert_equal(logits(two, texts), wanted)
        assert two.counters.num_prompts == counted.num_prompts == len(texts)
        assert two.counters.num_tokens == counted.num_tokens
        assert two.counters.num_forwards == 2 * counted.num_forwards == 2  # what the other process computed is counted
        two.reset_prefix_cache()
        assert_equal(logits(two, texts[:3]), wanted[:3])
        assert logits(two, texts[:1]).allclose(wanted[:1], atol=1e-4)  # by one process alone
        (rank,) = other_processes()
        kill = threading.Timer(0.2, os.kill, (rank, signal.SIGKILL))
        kill.start()
        while other_processes() in ([rank], []):  # what it was asked is answered nonetheless
            assert_equal(logits(two, texts), wanted)
        kill.join()
        forwards = 0
        while forwards < 2:  # until the one in its place takes part
            before = two.counters
            assert_equal(logits(two, texts), wanted)
            forwards = (two.counters - before).num_forwards
    assert not other_processes()


def test_prompts_are_shared_out_by_their_tokens() -> None:
    assert shares([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert shares([3], 3) == [[0], [], []]
    assert sorted(index for part in shares(list(range(40)), 3) for index in part) == list(range(40))


def test_it_goes_with_no_other_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size and data_parallel_size do not go together yet"):
        LLM(str(tiny.classifier("bert", tmp_path)), tensor_parallel_size=2, data_parallel_size=2)
