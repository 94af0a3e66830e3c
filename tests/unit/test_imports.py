"""No module imports itself through others, not even in a function or for type checkers only."""

import ast
from pathlib import Path

import blip3o

SOURCE = Path(blip3o.__file__).parent
LAZY = ("blip3o", "blip3o.generate.pipeline")
"""`from blip3o import Blip3oPipeline` loads the pipeline when the name is first used."""
Graph = dict[str, set[str]]


def import_graph() -> Graph:
    """Returns the modules of the package that each module imports at any place."""
    files = {_name(file): file for file in SOURCE.rglob("*.py")}
    graph: Graph = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {one.name for one in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None, f"{file} has a relative import"
                inner = {f"{node.module}.{one.name}" for one in node.names}
                graph[name] |= (inner | {node.module}) & files.keys()
    graph[LAZY[0]].discard(LAZY[1])
    return graph


def _name(file: Path) -> str:
    parts = ("blip3o", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: Graph) -> set[tuple[str, ...]]:
    """Returns the sets of modules that reach each other, each in alphabetical order."""
    reach = {name: _reachable(graph, name) for name in graph}
    return {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph[name]
    return found


def test_circles_are_found() -> None:
    graph: Graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"d"}, "e": {"a"}}
    assert circles(graph) == {("a", "b", "c"), ("d",)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles(import_graph())
    assert not found, "\n".join(" <-> ".join(one) for one in sorted(found))
