"""`pipeline_parallel_size`: two processes with some of the layers each give what one gives."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.test_tensor_parallel import TEXTS, assert_equal, logits, other_processes
from tests.models import tiny
from vllm_cls import LLM
from vllm_cls.errors import ConfigError, EngineDeadError
from vllm_cls.runtime.layers.absent import AbsentEmbedding, AbsentLayer, share


def test_qwen2_gives_the_same_packed_in_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny.classifier("qwen2", tmp_path))
    with LLM(folder, max_num_batched_tokens=64) as one:
        wanted, described = logits(one), one.describe()
        tokens = one.token_ids(TEXTS[0])
        states = torch.tensor([each.outputs.embedding for each in one.embed(TEXTS)])
    with LLM(folder, max_num_batched_tokens=64, pipeline_parallel_size=2) as two:
        assert two.describe()["execution"] == "packed"
        assert two.describe()["parameters"] == described["parameters"]
        model: Any = two.model
        held = [not isinstance(each, AbsentLayer) for each in model.model.layers]
        assert held == [True, False, False]
        sent: list[torch.Size] = []
        send = torch.distributed.isend

        def counted(tensor: torch.Tensor, *args: Any) -> Any:
            sent.append(tensor.shape)
            return send(tensor, *args)

        monkeypatch.setattr(torch.distributed, "isend", counted)
        assert_equal(logits(two), wanted)
        assert len(sent) == two.counters.num_forwards >= 4
        assert len(set(sent)) > 1 and all(shape[0] == 1 and len(tokens) < shape[1] <= 64 for shape in sent)
        assert_equal(torch.tensor([each.outputs.embedding for each in two.embed(TEXTS)]), states)
        (rank,) = other_processes()
        kill = threading.Timer(0.2, os.kill, (rank, signal.SIGKILL))
        kill.start()
        with pytest.raises(EngineDeadError, match=r"rank 1 \(process \d+\) ended by itself, by signal 9 \(SIGKILL"):
            while True:
                logits(two)
        kill.join()
    assert not other_processes()


@pytest.mark.slow
def test_three_stages_of_gemma2_give_the_same_tokens_and_texts(tmp_path: Path) -> None:
    folder = str(tiny.token_classifier("gemma2", tmp_path, num_hidden_layers=5))
    with LLM(folder) as one:
        wanted = [each.outputs.data for each in one.encode(TEXTS, pooling_task="token_classify")]
    with LLM(folder, pipeline_parallel_size=3) as three:
        found = [each.outputs.data for each in three.encode(TEXTS, pooling_task="token_classify")]
        assert len(other_processes()) == 2
    assert float((wanted[0][-1] - wanted[1][-1]).abs().max()) > 1e-3
    for each, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {}, "no plan of how to cut 'bert' between its layers; leave it out, and use data_parallel_size=2"),
        ("gpt2", {}, "no plan of how to cut 'gpt2'"),
        ("llama", {"pipeline_parallel_size": 4}, "is more than the model's 3 layers"),
        ("llama", {"pipeline_parallel_size": 0}, "must be a whole number, at least 1"),
        ("llama", {"tensor_parallel_size": 2}, "do not go together yet"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_a_process_starts(
    name: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ConfigError, match=message):
        LLM(str(tiny.classifier(name, tmp_path)), **{"pipeline_parallel_size": 2, **options})


@pytest.mark.parametrize(("number", "size"), [(3, 2), (5, 3), (4, 4), (32, 5)])
def test_each_layer_is_held_once(number: int, size: int) -> None:
    held = [share(number, rank, size) for rank in range(size)]
    assert all(held) and [layer for each in held for layer in each] == list(range(number))


def test_what_is_absent_keeps_form_and_what_a_model_reads_of_it() -> None:
    layer = torch.nn.Linear(4, 4, device="meta")
    layer.attention_type = "full_attention"
    absent = AbsentLayer(layer)
    states = torch.rand(1, 3, 4)
    assert absent(states, attention_mask=None) is states
    assert absent.attention_type == "full_attention" and not list(absent.parameters())
    embedding = AbsentEmbedding(torch.nn.Embedding(9, 4, device="meta", dtype=torch.bfloat16))
    found = embedding(torch.tensor([[1, 2, 3]]))
    assert found.shape == (1, 3, 4) and found.dtype == torch.bfloat16
