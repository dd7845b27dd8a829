"""What a process imports until its first answer. Times are for `benchmarks/startup.py`; here modules are counted."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_cls import startup

from .models import tiny

# What torch and transformers import by themselves (torch._dynamo and with it sympy, accelerate) cannot be kept out.
UNUSED = ["scipy", "sklearn", "pyarrow", "pandas", "matplotlib", "torchvision", "gguf", "threadpoolctl"]
COMMANDS = {
    "LLM": "import vllm_cls; vllm_cls.LLM(sys.argv[1]).classify('hello')",
    "vcls": "sys.argv[1:] = ['classify', sys.argv[1], '-', '-q']\n"
    "from vllm_cls.cli.main import vcls\n"
    "vcls.main(standalone_mode=False)",
}
REPORT = """
import json, os
names = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"names": names, "wait": os.environ.get("OMP_WAIT_POLICY")}))
"""


def in_new_process(code: str, *arguments: str, **variables: str) -> str:
    """What Python code prints last in a process of its own, with a row on its standard input."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | variables
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, *arguments],
        input='{"text": "hello"}\n',
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.classifier("bert", tmp_path_factory.mktemp("startup")))


@pytest.mark.parametrize("code", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_first_answer_imports_only_what_it_needs(folder: str, code: str) -> None:
    found = json.loads(in_new_process(code + REPORT, folder))
    assert {"torch", "transformers", "safetensors"} <= set(found["names"])
    assert not sorted(set(UNUSED) & set(found["names"]))
    assert found["wait"] == "PASSIVE"


def test_transformers_is_whole_and_its_sources_are_parsed_once() -> None:
    code = """
import os, vllm_cls, numpy
vllm_cls.LLM
import scipy
assert "scipy.optimize" not in sys.modules
from transformers.loss import loss_for_object_detection as loss
from transformers.utils.import_utils import create_import_structure_from_path as parse
_, columns = loss.linear_sum_assignment(numpy.array([[4.0, 1.0], [1.0, 4.0]]))
from scipy.optimize import minimize
assert scipy.optimize.minimize is minimize
assert parse.cache_info().misses == parse.cache_info().currsize
print(columns.tolist(), parse.cache_info().hits > 100, type(scipy.optimize).__name__, os.environ["OMP_WAIT_POLICY"])
"""
    assert in_new_process(code, OMP_WAIT_POLICY="ACTIVE") == "[1, 0] True module ACTIVE"


def test_models_are_those_that_transformers_finds_alone() -> None:
    listing = """
import transformers.models as models, transformers
print(hash(tuple(sorted(models._class_to_module.items())) + tuple(sorted(transformers._class_to_module.items()))))
"""
    plain = in_new_process(listing, PYTHONHASHSEED="0")
    assert in_new_process("import vllm_cls; vllm_cls.LLM" + listing, PYTHONHASHSEED="0") == plain


def test_the_collector_is_on_again() -> None:
    assert gc.isenabled()
    with startup.without_collector():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_after_import_acts_at_once_on_a_loaded_module() -> None:
    seen: list[str] = []
    startup.after_import("json", lambda module: seen.append(module.__name__))
    assert seen == ["json"]
