"""How the package is built, in numbers: rooms, layers, imports between them, circles, the longest file.

    python -m benchmarks.codebase.structure [ROOT]     # ROOT: of another checkout, to compare two

A room is a folder or a file at the top of `vllm_cls`. A layer is a set of rooms of which none imports another, above all
that they import. Inside a folder its files and folders are taken for rooms in the same way, when circles are looked for.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "vllm_cls"
MAPPED = ("adapters", "plugins", "cli")
"""Folders beside the package that are installed inside it."""

Graph = Mapping[str, set[str]]


def structure(root: Path = ROOT) -> dict[str, Any]:
    """The numbers of the package in a checkout."""
    modules = imports_of_modules(root)
    rooms = inside(modules, PACKAGE)
    packages = {module.rpartition(".")[0] for module in modules if "." in module}
    paths = [path for folder in (PACKAGE, *MAPPED) for path in (root / folder).rglob("*.py")]
    longest, path = max((len(path.read_text(encoding="utf-8").splitlines()), path) for path in paths)
    return {
        "modules": len(modules),
        "rooms": len(rooms),
        "layers": num_layers(rooms),
        "imports_between_rooms": sum(len(found) for found in rooms.values()),
        "circles": [each for package in sorted(packages) for each in circles(inside(modules, package))],
        "circles_of_modules": circles(modules),
        "longest_file": f"{path.relative_to(root)}: {longest} lines",
    }


def imports_of_modules(root: Path = ROOT) -> Graph:
    """Each module and those that it imports, at any time or for its annotations alone.

    grimp finds the package on `sys.path`, so nothing may have imported it before.
    """
    import grimp

    assert PACKAGE not in sys.modules
    with tempfile.TemporaryDirectory() as site:
        lay_out(root, Path(site))
        sys.path.insert(0, site)
        try:
            graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=False, cache_dir=None)
        finally:
            sys.path.remove(site)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def lay_out(root: Path, site: Path) -> None:
    """Links to the files of a checkout, laid out as the package is installed."""
    package = site / PACKAGE
    package.mkdir()
    for path in [*(root / PACKAGE).iterdir(), *(root / folder for folder in MAPPED)]:
        (package / path.name).symlink_to(path.resolve())


def inside(modules: Graph, package: str) -> Graph:
    """The same graph, of what is directly in a package: its files, and its folders as one each."""
    depth = package.count(".") + 2
    found: dict[str, set[str]] = defaultdict(set)
    for module, imported in modules.items():
        here = child(module, package, depth)
        if here is not None:
            found[here] |= {each for each in (child(other, package, depth) for other in imported) if each} - {here}
    return found


def child(module: str, package: str, depth: int) -> str | None:
    """The file or folder of a package that a module is, or is in; None for the package itself and what is outside."""
    return ".".join(module.split(".")[:depth]) if module.startswith(f"{package}.") else None


def circles(graph: Graph) -> list[list[str]]:
    """Groups of which each member imports, by way of others, every other (strongly connected components)."""
    reached = {node: _reached(graph, node) for node in graph}
    groups = {frozenset(other for other in reached[node] if node in reached[other]) | {node} for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph.get(node, ())
    return found


def num_layers(graph: Graph) -> int:
    """The longest way down; rooms in a circle share a layer."""
    group_of = {node: tuple(group) for group in circles(graph) for node in group}
    condensed: dict[Any, set[Any]] = defaultdict(set)
    for node, imported in graph.items():
        here = group_of.get(node, (node,))
        condensed[here] |= {group_of.get(each, (each,)) for each in imported} - {here}
    depth: dict[Any, int] = {}

    def below(node: Any) -> int:
        if node not in depth:
            depth[node] = 1 + max((below(each) for each in condensed.get(node, ())), default=0)
        return depth[node]

    return max(map(below, list(condensed)))


if __name__ == "__main__":
    print(json.dumps(structure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT), indent=1))
