"""What stands outside the core uses its public names alone; the exceptions are in a list that only gets shorter.

A private name begins with one underscore: of a module, of a class, or of a module itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LISTED = ROOT / "tests" / "private_names.txt"
OUTSIDE = ("tests", "attacks", "examples", "benchmarks", "adapters", "plugins", "cli")
INSIDE = ("adapters", "plugins", "cli")
"""Of these each may use its own private names: they are packages of `vllm_cls` in folders of their own."""
PRIVATE = re.compile(r"vllm_cls(\.\w+)*?\._(?!_)\w+")
BY_NAME = (
    "setattr",
    "getattr",
    "delattr",
    "hasattr",
    "object",
)  # setattr(x, "name"), and those of monkeypatch and mock


def uses(code: str, package: str = "") -> set[str]:
    """The private names of `vllm_cls` that a file uses, with their modules.

    Args:
        code: what is in the file.
        package: it belongs to, for relative imports.
    """
    tree = ast.parse(code)
    imported = dict(imports(tree, package))
    found = set(imported.values())
    for node in ast.walk(tree):
        found.add(whole(node, imported))
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= named_in(node.value)
        if isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func).split(".")[-1] in BY_NAME:
            of, name = node.args[:2]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(f"{whole(of, imported)}.{name.value}")
    return {match.group() for match in map(PRIVATE.match, found) if match}


def named_in(text: str) -> set[str]:
    """Of a text: it is a name itself, or a program for another process."""
    if re.fullmatch(r"vllm_cls(\.\w+)+", text):
        return {text}
    if "import " not in text:
        return set()
    try:
        return uses(text)
    except SyntaxError:
        return set()


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """What is imported: the name it gets here, and the whole name that it has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield (each.asname, each.name) if each.asname else (each.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for each in node.names:
                yield each.asname or each.name, f"{module}.{each.name}"


def whole(node: ast.AST, imported: dict[str, str]) -> str:
    """`a.b` with the whole name of what `a` was imported as; nothing where it was not."""
    if isinstance(node, ast.Attribute):
        of = whole(node.value, imported)
        return f"{of}.{node.attr}" if of else ""
    return imported.get(node.id, "") if isinstance(node, ast.Name) else ""


def used() -> set[str]:
    """Lines as the list has them, of every file there is."""
    found = set()
    for folder in OUTSIDE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parent.parts
            own = f"vllm_cls.{folder}." if folder in INSIDE else None
            package = ".".join(("vllm_cls", *parts) if own else parts)
            names = uses(path.read_text(encoding="utf-8"), package)
            found |= {f"{path.relative_to(ROOT)}: {name}" for name in names if not (own and name.startswith(own))}
    return found


def listed() -> set[str]:
    return set(LISTED.read_text(encoding="utf-8").splitlines())


def test_no_private_name_is_used_that_is_not_listed() -> None:
    new = sorted(used() - listed())
    assert not new, "\n".join(["Use a public name, or give it one, rather than:", *new])


def test_what_is_listed_is_used() -> None:
    gone = sorted(listed() - used())
    assert not gone, "\n".join([f"No longer used; take these lines out of {LISTED.relative_to(ROOT)}:", *gone])


@pytest.mark.parametrize(
    "code",
    [
        "from vllm_cls.a import _b", "from vllm_cls.a import _b as c", "import vllm_cls.a\nvllm_cls.a._b()",
        "from vllm_cls import a\na._b = 1", "import vllm_cls.a as c\nprint(c._b.d)", "import vllm_cls.a._b",
        "from ..a import _b", "from .. import a\na._b", "patch.setattr('vllm_cls.a._b', 1)",
        "from vllm_cls import a\nmonkeypatch.setattr(a, '_b', 1)", "from vllm_cls import a\nmock.patch.object(a, '_b')",
        "from vllm_cls import a\ngetattr(a, '_b')", "PROGRAM = 'from vllm_cls.a import _b'",
    ],
)  # fmt: skip
def test_what_would_be_found(code: str) -> None:
    assert uses(code, "vllm_cls.plugins") == {"vllm_cls.a._b"}


@pytest.mark.parametrize(
    "code",
    ["from vllm_cls.a import b", "from other.a import _b", "from vllm_cls import a\na.__file__", "self._b = a._b",
     "'vllm_cls.a' + '_b'", "setattr(self, '_b', 1)"],
)  # fmt: skip
def test_what_would_not_be_found(code: str) -> None:
    assert uses(code, "tests") == set()
