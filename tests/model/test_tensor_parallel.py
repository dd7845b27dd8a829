"""`tensor_parallel_size`: two processes give what one gives, and end together."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny
from vllm_cls import LLM, AsyncLLM, PoolingParams
from vllm_cls.errors import ConfigError, EngineDeadError

TEXTS = [f"A text about topic {i}: {'more ' * (i % 3)}{i * i}" for i in range(24)]


def other_processes() -> list[int]:
    """The processes of models that this one has started and that still run; other tests leave children of their own."""
    lists = Path("/proc/self/task").glob("*/children")
    children = [int(each) for found in lists for each in found.read_text().split()]
    return [each for each in children if b"vllm_cls.model.parallel" in Path(f"/proc/{each}/cmdline").read_bytes()]


def logits(llm: LLM, texts: list[str] = TEXTS) -> torch.Tensor:
    params = PoolingParams(use_activation=False)
    return torch.tensor([each.outputs.probs for each in llm.classify(texts, pooling_params=params)])


def assert_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Rows differ from each other by far more than they may from what is wanted."""
    assert (wanted - wanted.roll(1, 0)).abs().max(-1).values.min() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shapes that this process adds up with others."""
    import torch.distributed

    seen: list[torch.Size] = []
    add = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tensor.shape)
        return add(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.distributed, "all_reduce", counted)
    yield seen


def test_qwen2_gives_the_same_packed_pruned_and_with_shared_beginnings(
    tmp_path: Path, collectives: list[torch.Size]
) -> None:
    folder = str(tiny.classifier("qwen2", tmp_path))
    with LLM(folder) as one:
        wanted, again = logits(one), logits(one)
        states = torch.tensor([each.outputs.embedding for each in one.embed(TEXTS)])
    with LLM(folder, tensor_parallel_size=2) as two:
        described = two.describe()
        assert described["execution"] == "packed"
        assert described["prefix_sharing"] and described["pruned_last_layer"]
        assert described["tensor_parallel_size"] == 2
        weight: Any = two.model.model.layers[0].self_attn.q_proj.weight
        assert weight.shape == (32, 32) and weight.to_local().shape == (16, 32)
        collectives.clear()
        assert_equal(logits(two), wanted)
        assert len(collectives) >= 2 * 3  # behind attention and MLP of each layer
        assert two.counters.num_shared_tokens > 100
        assert_equal(logits(two), again)  # from the prefix cache
        two.reset_prefix_cache()
        assert_equal(logits(two), wanted)
        assert_equal(torch.tensor([each.outputs.embedding for each in two.embed(TEXTS)]), states)
        with pytest.raises(ConfigError, match="uses torch.distributed already"):
            LLM(folder, tensor_parallel_size=2)
        assert len(other_processes()) == 1
    assert not other_processes()


def test_a_llama_that_ranks_pairs_gives_the_same_and_ends_when_a_rank_is_killed(tmp_path: Path) -> None:
    folder = str(tiny.classifier("llama", tmp_path, num_labels=1))
    with LLM(folder, score_template="concat") as one:
        wanted = torch.tensor([[each.outputs.score] for each in one.score("A query", TEXTS)])
    with LLM(folder, score_template="concat", tensor_parallel_size=2) as two:
        found = torch.tensor([[each.outputs.score] for each in two.score("A query", TEXTS)])
        assert_equal(found, wanted)
        (rank,) = other_processes()
        kill = threading.Timer(0.2, os.kill, (rank, signal.SIGKILL))
        kill.start()
        with pytest.raises(EngineDeadError, match=r"rank 1 \(process \d+\) ended by itself, by signal 9 \(SIGKILL"):
            while True:
                two.score("A query", TEXTS)
        kill.join()
        with pytest.raises(EngineDeadError, match="open the model again"):
            two.score("A query", TEXTS)


@pytest.mark.slow
def test_gemma2_gives_the_same(tmp_path: Path) -> None:
    folder = str(tiny.classifier("gemma2", tmp_path))
    with LLM(folder) as one:
        wanted = logits(one)
    with LLM(folder, tensor_parallel_size=2) as two:
        assert_equal(logits(two), wanted)


@pytest.mark.slow
def test_requests_of_a_server_and_labels_of_tokens(tmp_path: Path) -> None:
    import asyncio

    folder = str(tiny.token_classifier("qwen2", tmp_path))
    with LLM(folder) as one:
        wanted = [each.outputs.data for each in one.encode(TEXTS, pooling_task="token_classify")]

    async def ask() -> list[torch.Tensor]:
        async with AsyncLLM(folder, tensor_parallel_size=2) as engine:
            answers = await asyncio.gather(*[engine.encode(each, pooling_task="token_classify") for each in TEXTS])
            return [each.outputs.data for each in answers]

    for found, each in zip(asyncio.run(ask()), wanted, strict=True):
        torch.testing.assert_close(found, each, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {}, "no plan of how to split 'bert'; leave it out, and use data_parallel_size=2"),
        ("gpt2", {}, "no plan of how to split 'gpt2'"),
        ("llama", {"tensor_parallel_size": 3}, "does not divide the model's num_attention_heads, 4; use 1 or 2 or 4"),
        ("llama", {"tensor_parallel_size": 4}, "does not divide the model's num_key_value_heads, 2; use 1 or 2"),
        ("llama", {"tensor_parallel_size": 0}, "must be a whole number, at least 1"),
        ("llama", {"quantization": "int8"}, "does not go together with quantization='int8' yet"),
        ("llama", {"enable_lora": True}, "does not go together with enable_lora=True yet"),
    ],
)
def test_what_cannot_be_split_is_refused_before_a_process_starts(
    name: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ConfigError, match=message):
        LLM(str(tiny.classifier(name, tmp_path)), **{"tensor_parallel_size": 2, **options})


@pytest.mark.slow
def test_a_script_needs_no_guard_and_the_ranks_end_with_it(tmp_path: Path) -> None:
    folder = str(tiny.classifier("qwen2", tmp_path / "model"))
    script = tmp_path / "script.py"
    script.write_text(
        f"from vllm_cls import LLM\nllm = LLM({folder!r}, tensor_parallel_size=2)\n"
        "from pathlib import Path\n"
        "print(*[f.read_text() for f in Path('/proc/self/task').glob('*/children')])\n"
        "print(len(llm.classify(['a', 'b'])), flush=True)\nimport os\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    rank, count = done.stdout.split()
    assert count == "2"
    for _ in range(100):
        if not Path(f"/proc/{rank}").exists():
            return
        threading.Event().wait(0.1)
    raise AssertionError(f"process {rank} outlives the one that started it")
