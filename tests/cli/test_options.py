from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from tests.jobs.fake import FakeLLM
from vllm_cls.cli.options import JsonObject, NameListParam

Run = Callable[..., Result]


def test_options_of_a_model_reach_it(run: Run) -> None:
    arguments = shlex.split(
        "--dtype bfloat16 --device cpu --quantization int8 --max-model-len 9 --max-num-batched-tokens 99 "
        """--convert classify --hf-overrides '{"a":1}' --pooler-config '{"pooling_type":"MEAN"}' """
        "--num-threads 3 --no-enable-prefix-caching --prefix-cache-bytes 7 "
        "--trust-remote-code --revision r --plugin p --allow-pickle --tokenizer t --lora a "
        "--tensor-parallel-size 2 --pipeline-parallel-size 3 --data-parallel-size 4"
    )
    assert run("inspect", "model", *arguments).exit_code == 0
    llm = FakeLLM.made[-1]
    assert llm.model == "model"
    assert llm.max_model_len == 9
    assert llm.options == {
        "dtype": "bfloat16",
        "device": "cpu",
        "quantization": "int8",
        "num_threads": 3,
        "enable_prefix_caching": False,
        "prefix_cache_bytes": 7,
        "max_num_batched_tokens": 99,
        "convert": "classify",
        "hf_overrides": {"a": 1},
        "pooler_config": {"pooling_type": "MEAN"},
        "trust_remote_code": True,
        "revision": "r",
        "plugin": "p",
        "allow_pickle": True,
        "tokenizer": "t",
        "lora": "a",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
        "data_parallel_size": 4,
    }


@pytest.mark.parametrize("value", ["{", "[1]", "5", "@nothing.json"])
def test_what_is_no_json_object_is_wrong_usage(run: Run, value: str) -> None:
    result = run("inspect", "model", "--hf-overrides", value)
    assert result.exit_code == 2
    assert "--hf-overrides" in result.stderr


def test_json_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "ä"}', encoding="utf-8")
    assert JsonObject().convert(f"@{tmp_path}/a.json", None, None) == {"a": "ä"}


@pytest.mark.parametrize(
    ("value", "names"), [("a, b", ["a", "b"]), ("a", ["a"]), ('["a, b", 2]', ["a, b", "2"]), (["x"], ["x"])]
)
def test_names(value: Any, names: list[str]) -> None:
    assert NameListParam().convert(value, None, None) == names


def test_names_that_are_half_a_list() -> None:
    with pytest.raises(click.BadParameter, match="not a JSON list"):
        NameListParam().convert("[a, b", None, None)
