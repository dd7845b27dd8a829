"""No test draws what is different in every run: what `seeds` does not reach is found here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Drawn by the system, or in an order that is its own.
NEVER = re.compile(r"os\.urandom|uuid\.uuid[14]|secrets\.\w+|(\w+\.)*SystemRandom|tempfile\.mktemp")
# Seeded by what they are given, and by the system where they are given nothing.
GENERATORS = re.compile(r"(\w+\.)*(Random|default_rng|RandomState|SeedSequence|(?<!_)seed|manual_seed)")
# Other in every process.
NO_SEED = re.compile(r"id|hash|time\.\w+|os\.getpid")
DRAWS = re.compile(r"(torch|random|np\.random|numpy\.random)\.(rand\w*|normal|choices?|sample|shuffle|uniform|gauss)")


def files() -> list[Path]:
    found = [path for folder in ("tests", "attacks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if path != Path(__file__)]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls in some code, with what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def drawn_without_a_seed(tree: ast.AST) -> list[str]:
    """Where some code draws what no seed of ours decides."""
    found = []
    for name, call in calls(tree):
        given = [*call.args, *(each.value for each in call.keywords)]
        unknown = any(NO_SEED.fullmatch(inner) for each in given for inner, _ in calls(each))
        if NEVER.fullmatch(name) or (GENERATORS.fullmatch(name) and (not given or unknown)):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


def programs(tree: ast.AST) -> Iterator[ast.AST]:
    """What is written for other processes: the texts that are Python with an import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                yield ast.parse(node.value)
            except SyntaxError:
                continue


def drawn_by_programs(found: Iterable[ast.AST]) -> list[str]:
    """The same for code that runs in a process of its own, which no fixture has seeded."""
    wrong = []
    for program in found:
        names = [name for name, _ in calls(program)]
        seeded = any(name.endswith("seed") for name in names)
        wrong += drawn_without_a_seed(program) + [name for name in names if not seeded and DRAWS.fullmatch(name)]
    return wrong


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_drawn_is_drawn_by_a_seed(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not drawn_without_a_seed(tree)
    assert not drawn_by_programs([tree] if path.parent.name == "third_party" else programs(tree))


@pytest.mark.parametrize(
    "code",
    ["os.urandom(3)", "uuid.uuid4().hex", "secrets.token_hex()", "random.Random()", "np.random.default_rng()",
     "torch.seed()", "random.seed()", "random.seed(time.time())", "Random(id(x) + 1)", "default_rng(seed=hash('a'))"],
)  # fmt: skip
def test_what_would_be_found(code: str) -> None:
    assert drawn_without_a_seed(ast.parse(code))


def test_what_would_not_be_found() -> None:
    code = "random.Random(3).random(), default_rng(seed=1), torch.randn(2), torch.manual_seed(number), random_seed()"
    assert not drawn_without_a_seed(ast.parse(code))


def test_programs_seed_for_themselves() -> None:
    found = programs(ast.parse("PROGRAM = 'import torch; print(torch.randn(2))'"))
    assert drawn_by_programs(found) == ["torch.randn"]
    found = programs(ast.parse("PROGRAM = 'import torch; torch.manual_seed(0); print(torch.randn(2))'"))
    assert drawn_by_programs(found) == []


DRAWING = """
import random
import numpy, pytest, torch

@pytest.fixture(scope="module")
def weights():
    return torch.randn(2)

def test_one(weights):
    print("one", random.random(), numpy.random.rand(), torch.randn(2), weights)

def test_two(weights):
    print("two", random.random(), numpy.random.rand(), torch.randn(2), weights)
"""


EARLY = """
from torch import nn

LAYER = nn.Linear(2, 2)

def test():
    assert LAYER
"""


def run(*arguments: str | Path) -> str:
    """What pytest prints, in a process of its own."""
    options = ["-p", "tests.seeds", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-sq"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_a_test_draws_the_same_whatever_ran_before_it(tmp_path: Path) -> None:
    drawing, early = tmp_path / "test_drawing.py", tmp_path / "test_early.py"
    drawing.write_text(DRAWING)
    early.write_text(EARLY)
    whole, alone = run(drawing, early), run(f"{drawing}::test_two")
    drawn = dict(re.findall(r"(one|two) (.*)", whole))
    assert len(set(drawn.values())) == 2
    assert re.findall(r"two (.*)", alone) == [drawn["two"]]
    assert "test_early.py draws random numbers when it is imported" in whole and "1 error" in whole
