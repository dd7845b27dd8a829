"""Worker threads: results in order, torch's threads put back, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.runtime.machine import workers
from vllm_cls.runtime.machine.cores import usable_cores
from vllm_cls.runtime.machine.workers import Workers, default_num_threads, for_device


@pytest.fixture
def two() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


def ours() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("vllm_cls_worker")]


def status_of(child: int) -> int:
    """The exit status of a forked process, which has ten seconds."""
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_results_come_in_order_and_torchs_threads_are_put_back(two: Workers, parallel: bool, count: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert two.run(lambda x: x * x, range(count), parallel=parallel) == [x * x for x in range(count)]
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            two.run(lambda x: 1 // x, [1, 0, 2], parallel=parallel)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_batches_run_at_once_with_one_thread_each(two: Workers) -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(_: int) -> tuple[str, int]:
        both.wait()
        return threading.current_thread().name, torch.get_num_threads()

    met = two.run(meet, [0, 1], parallel=True)
    assert len({name for name, _ in met}) == 2 and {threads for _, threads in met} == {1}


def test_fewer_batches_than_workers_share_all_threads_in_turn(two: Workers) -> None:
    here = threading.current_thread().name
    seen = two.run(lambda _: (threading.current_thread().name, torch.get_num_threads()), [0], parallel=True)
    assert seen == [(here, 2)]
    seen = two.run(lambda _: (threading.current_thread().name, torch.get_num_threads()), range(4), parallel=False)
    assert seen == [(here, 2)] * 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupt_cancels_what_has_not_begun(two: Workers, error: type[BaseException]) -> None:
    began, go_on = [], threading.Event()

    def step(number: int) -> None:
        began.append(number)
        if number == 0:
            raise error
        go_on.wait(10)

    with pytest.raises(error):
        two.run(step, range(100), parallel=True)
    go_on.set()
    assert two.run(lambda x: x, [1, 2, 3], parallel=True) == [1, 2, 3]  # behind all that was not cancelled
    assert len(began) <= 3, "what two workers had begun"


def test_closing_ends_the_threads(two: Workers) -> None:
    two.run(lambda x: x, [1, 2, 3], parallel=True)
    assert ours()
    two.close()
    two.close()
    assert not ours()


def test_a_gpu_has_no_workers_and_keeps_torchs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("torch's threads were changed"))
    on_gpu = for_device(torch.device("cuda"), 4)
    assert on_gpu.num_threads == 0 and on_gpu.count == 1
    assert on_gpu.run(lambda x: x, [1, 2], parallel=True) == [1, 2]


def test_threads_default_to_what_torch_uses_and_to_the_cores() -> None:
    assert for_device(torch.device("cpu"), 3).num_threads == 3
    assert for_device(torch.device("cpu"), None).num_threads == min(torch.get_num_threads(), usable_cores())
    assert usable_cores() >= 1
    assert Workers(64).count == 16 and Workers(64)._threads_each == 4
    assert Workers(24).count == 12 and Workers(24)._threads_each == 2
    assert [Workers(count).count for count in (0, 1, 2, 16, 17)] == [1, 1, 2, 16, 8]


def test_memory_settings_of_the_user_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    workers.keep_freed_memory.cache_clear()
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert workers.keep_freed_memory() is False
    workers.keep_freed_memory.cache_clear()


def test_a_closed_llm_leaves_no_thread(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with LLM(str(tiny.classifier("bert", tmp_path)), num_threads=2, max_num_batched_tokens=64) as llm:
        list(llm.classify_iter([[20 + i] * 40 for i in range(8)]))
        assert len(ours()) == 2
    assert not ours()
    assert not [each.name for each in threading.enumerate() if each.name.startswith("vllm_cls_tokenizer")]
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    workers = Workers(2)
    assert workers.run(lambda x: x + 1, [1, 2, 3], parallel=True) == [2, 3, 4]
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if workers.run(lambda x: x + 1, [1, 2, 3], parallel=True) == [2, 3, 4] else 1)
    assert status_of(child) == 0
    workers.close()


_FORKED = """
import os, signal, torch
from vllm_cls.runtime.machine.workers import Workers

workers, x = Workers(2), torch.ones(600, 600)
assert workers.run(lambda _: torch.get_num_threads(), [0], parallel=True) == [2]
workers.run(lambda _: (x @ x).sin(), [0], parallel=True)  # now the pool has threads
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends it if it hangs
    workers.run(lambda _: (x @ x).sin(), [0], parallel=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_uses_no_pool_of_openmp() -> None:
    """In a process of its own: what threads of other tests hold while it is forked is not looked for here."""
    ran = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == ["0"]


def test_a_running_forward_does_not_change_what_the_next_model_gets() -> None:
    before = torch.get_num_threads()
    default_num_threads.cache_clear()
    try:
        assert default_num_threads() == min(before, usable_cores())
        torch.set_num_threads(before + 5)
        assert for_device(torch.device("cpu"), None).num_threads == min(before, usable_cores())
    finally:
        torch.set_num_threads(before)
        default_num_threads.cache_clear()


_MANY_SIZES = """
import random, sys
from pathlib import Path
from vllm_cls import LLM

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024

random.seed(0)
with LLM(sys.argv[1], num_threads=1) as llm:
    for step in range(240):
        if step == 40:
            before = resident()
        llm.classify([[random.randrange(10, 90) for _ in range(3 + step)], [10 + step % 80] * 8], use_tqdm=False)
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux")
def test_batches_of_ever_other_sizes_do_not_fill_the_memory(tmp_path: Path) -> None:
    model = tiny.classifier("bert", tmp_path / "model", max_position_embeddings=512)
    ran = subprocess.run(
        [sys.executable, "-c", _MANY_SIZES, str(model)], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(ran.stdout.split()[-1]) < 150  # MiB; all kernels kept, it was several hundred
