"""What a process imports until its first answer. Times are for `benchmarks/startup.py`; here modules are counted."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm_cls.compat import lazy_imports
from vllm_cls.compat.after_import import after_import

from ..models import tiny

# What transformers imports by itself (accelerate) cannot be kept out; sympy comes with torch's compiler.
UNUSED = ["scipy", "sympy", "sklearn", "pyarrow", "pandas", "matplotlib", "torchvision", "gguf", "threadpoolctl"]
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
        cwd=Path(__file__).parents[2],
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


def test_transformers_is_whole() -> None:
    code = """
import os, vllm_cls, numpy
vllm_cls.LLM
import scipy
assert "scipy.optimize" not in sys.modules
from transformers.loss import loss_for_object_detection as loss
_, columns = loss.linear_sum_assignment(numpy.array([[4.0, 1.0], [1.0, 4.0]]))
from scipy.optimize import minimize
assert scipy.optimize.minimize is minimize
assert loss.linear_sum_assignment is scipy.optimize.linear_sum_assignment
print(columns.tolist(), type(scipy.optimize).__name__, os.environ["OMP_WAIT_POLICY"])
"""
    assert in_new_process(code, OMP_WAIT_POLICY="ACTIVE") == "[1, 0] module ACTIVE"


def test_the_compiler_learns_what_was_marked_before_it_was_loaded(folder: str) -> None:
    code = """
import builtins, torch
plain = builtins.__import__
import vllm_cls
vllm_cls.LLM(sys.argv[1]).classify("hello")
assert builtins.__import__ is plain and "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
import torch.distributed.tensor._collective_utils as utils, transformers.masking_utils as masks
from transformers.integrations import deepgemm, finegrained_fp8
doubled = torch.compile(lambda x: torch.nn.functional.relu(x) * 2, backend="eager")(torch.ones(1))
from torch._dynamo import trace_rules
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch.fx.experimental.symbolic_shapes import guard_or_false
assert utils.guard_or_false is guard_or_false and masks.TransformGetItemToIndex is TransformGetItemToIndex
allowed = [value for value in vars(finegrained_fp8).values() if id(value) in trace_rules._allowed_callable_ids.function_ids]
mean, std = torch.nn.Embedding(400, 100).weight.mean(), torch.nn.Embedding(400, 100).weight.std()
print(doubled.item(), len(allowed) > 0, deepgemm.is_sm100._dynamo_marked_constant, abs(mean) < 0.1, 0.9 < std < 1.1)
"""
    assert in_new_process(code, folder) == "2.0 True True tensor(True) tensor(True)"


def test_imports_of_others_meanwhile_are_as_ever() -> None:
    code = """
import vllm_cls, builtins
from vllm_cls.compat import lazy_imports
from vllm_cls.compat.after_import import after_import
plain = builtins.__import__
def act(module):
    from scipy.optimize._linesearch import line_search_wolfe1
    from scipy.optimize import OptimizeResult, linear_sum_assignment
    class Derived(OptimizeResult): pass
    import scipy.optimize
    assert scipy.optimize._linesearch is sys.modules["scipy.optimize._linesearch"]
    assert scipy.optimize.linear_sum_assignment is linear_sum_assignment
after_import("transformers.utils.generic", act)
lazy_imports.import_libraries()
assert builtins.__import__ is plain
from transformers.loss import loss_for_object_detection as loss
print(loss.linear_sum_assignment is sys.modules["scipy.optimize"].linear_sum_assignment)
"""
    assert in_new_process(code) == "True"


def test_somebody_may_put_an_import_of_their_own_before_ours() -> None:
    code = """
import builtins
from vllm_cls.compat.stand_ins import standing_in
with standing_in():
    ours = builtins.__import__
    def theirs(*args, **kwargs): return ours(*args, **kwargs)
    builtins.__import__ = theirs
for _ in range(2):
    with standing_in():
        import colorsys
assert builtins.__import__ is theirs
builtins.__import__ = ours
with standing_in():
    import cmd
print(builtins.__import__ is not ours)
"""
    assert in_new_process(code) == "True"


def test_models_are_those_that_transformers_finds_alone(tmp_path: Path) -> None:
    listing = """
import transformers.models as models, transformers
print(hash(tuple(sorted(models._class_to_module.items())) + tuple(sorted(transformers._class_to_module.items()))))
"""
    plain = in_new_process(listing, PYTHONHASHSEED="0")
    with_ours = {"VLLM_CLS_CACHE": str(tmp_path), "PYTHONHASHSEED": "0"}
    assert in_new_process("import vllm_cls; vllm_cls.LLM" + listing, **with_ours) == plain
    (kept,) = (tmp_path / "transformers").iterdir()
    read = """
import vllm_cls.compat.lazy_imports, vllm_cls.compat.model_sources as sources
sources.keep = None  # nothing is parsed that would be kept
vllm_cls.compat.lazy_imports.import_libraries()"""
    assert in_new_process(read + listing, **with_ours) == plain
    kept.write_bytes(kept.read_bytes()[:-40])
    assert in_new_process("import vllm_cls; vllm_cls.LLM" + listing, **with_ours) == plain
    assert kept.stat().st_size > 10_000


def test_the_collector_is_on_again() -> None:
    assert gc.isenabled()
    with lazy_imports.without_collector():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_came_meanwhile_is_old_and_what_was_frozen_stays_so() -> None:
    with lazy_imports.without_collector():
        made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    old = set(map(id, gc.get_objects(generation=2)))
    assert all(id(each) in old for each in made) and gc.get_freeze_count() == 0
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with lazy_imports.without_collector():
            pass
        assert gc.get_freeze_count() > 0.9 * frozen > 0  # some of it ends on its own; thawed, none would be left
    finally:
        gc.unfreeze()


def test_no_collection_keeps_a_command_from_ending() -> None:
    code = """
import atexit, gc
from vllm_cls.cli.main import main
atexit.register(lambda: print(gc.get_freeze_count() > 1000))
sys.argv[1:] = ["--version"]
main()
"""
    assert in_new_process(code) == "True"


def test_after_import_acts_at_once_on_a_loaded_module() -> None:
    seen: list[str] = []
    after_import("json", lambda module: seen.append(module.__name__))
    assert seen == ["json"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that takes a moment to import."""
    (tmp_path / "vllm_cls_slow.py").write_text("import time\ntime.sleep(0.05)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm_cls_slow", raising=False)
    return "vllm_cls_slow"


def test_after_import_waits_for_the_import_itself(module: str) -> None:
    seen: list[str] = []
    before = list(sys.meta_path)
    after_import(module, lambda loaded: seen.append(loaded.__name__))
    assert importlib.util.find_spec(module) is not None
    assert seen == []
    importlib.import_module(module)
    assert seen == [module] and sys.meta_path == before


def test_after_import_acts_once_for_several_threads(module: str) -> None:
    seen: list[str] = []
    after_import(module, lambda loaded: seen.append(loaded.__name__))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(importlib.import_module, [module] * 4))
    assert seen == [module] and len(set(map(id, loaded))) == 1
