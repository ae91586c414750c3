"""The house of DESIGN section 6: imports run only downwards, and the core stays pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rfast_zmq"

# From the roof to the ground. Those on one line do not import each other, but for what SIDEWAYS allows.
FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"launch", "bench", "optim"},
    {"node", "simulate"},
    {"assembly"},
    {"transport"},
    {"wire"},
    {"algorithms"},
    {"core"},
    {"task"},
    {"conditions"},
    {"plotting"},
    {"topology"},
    {"results"},
    {"settings"},
    {"errors"},
]
SIDEWAYS = {
    ("bench", "launch"),
    ("bench", "optim"),
    ("optim", "launch"),
}  # a comparison launches runs and own loops; an own loop is one node
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

IMPURE = {
    *("asyncio", "uvloop", "zmq", "time", "datetime", "socket", "select", "selectors", "signal"),
    *("threading", "concurrent", "multiprocessing", "subprocess", "random", "secrets", "os", "pathlib", "io"),
}
CLOCKS = {"asyncio", "uvloop", "zmq", "time", "datetime", "threading", "concurrent", "multiprocessing", "socket"}
FORBIDDEN = {"core": IMPURE, "algorithms": IMPURE, "simulate": CLOCKS}
HEAVY = {"matplotlib", "sklearn"}

FILES = sorted(PACKAGE.rglob("*.py"))


def floor_of(path: Path) -> str:
    """The floor a file belongs to: the first part of its path below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(node: ast.AST, path: Path) -> Iterator[str]:
    """Dotted names of what an import statement imports, relative ones made absolute; nothing for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = ["rfast_zmq", *path.relative_to(PACKAGE).parts[:-1]]
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
        if base == "rfast_zmq":  # `from rfast_zmq import settings` names a floor, `… import main` the roof
            yield from (f"rfast_zmq.{a.name if a.name in LEVEL else '__init__'}" for a in node.names)
        else:
            yield base


def every_import(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return [(node.lineno, name) for node in ast.walk(tree) for name in modules(node, path) if hasattr(node, "lineno")]


def top_level_imports(path: Path) -> list[tuple[int, str]]:
    """The same, without those that run only when a function is called, or never (``if TYPE_CHECKING:``)."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), str(path))]
    found = []
    while pending:
        node = pending.pop()
        never = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not never:
            pending.extend(ast.iter_child_nodes(node))
            found += [(getattr(node, "lineno", 0), name) for name in modules(node, path)]
    return found


def upward(here: str, there: str) -> bool:
    """Whether an import of floor ``there`` from floor ``here`` does not run downwards."""
    return here != there and LEVEL[there] <= LEVEL[here] and (here, there) not in SIDEWAYS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_stands_on_a_floor_and_imports_only_from_those_below(path: Path) -> None:
    here = floor_of(path)
    assert here in LEVEL, f"{path}: {here!r} is on no floor; put it on one in {Path(__file__).name}"
    for line, name in every_import(path):
        if name == "rfast_zmq" or name.startswith("rfast_zmq."):
            there = [*name.split("."), "__init__"][1]
            assert there in LEVEL, f"{path}:{line}: {name} is on no floor"
            assert not upward(here, there), f"{path}:{line}: {here} imports {name}, which is not below it"


@pytest.mark.parametrize("path", [p for p in FILES if floor_of(p) in FORBIDDEN], ids=lambda p: p.name)
def test_core_and_algorithms_are_pure_and_the_simulator_has_no_clock(path: Path) -> None:
    for line, name in every_import(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN[floor_of(path)], f"{path}:{line}: {floor_of(path)} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_optional_libraries_are_imported_only_where_they_are_used(path: Path) -> None:
    for line, name in top_level_imports(path):
        assert name.split(".")[0] not in HEAVY, f"{path}:{line}: import {name} inside the function that needs it"


def test_the_rules_themselves_see_what_they_forbid(tmp_path: Path) -> None:
    assert upward("core", "algorithms")
    assert upward("node", "simulate")
    assert upward("launch", "bench")
    assert not upward("bench", "launch")
    assert not upward("core", "task")
    inside = PACKAGE / "core" / "x.py"
    statements = ast.parse("from . import a\nfrom ..wire import b\nfrom rfast_zmq import main, task\nimport time.x")
    found = [name for node in statements.body for name in modules(node, inside)]
    assert found == ["rfast_zmq.core", "rfast_zmq.wire", "rfast_zmq.__init__", "rfast_zmq.task", "time.x"]
    file = tmp_path / "lazy.py"
    file.write_text("import a\nif 1:\n    import b\nif TYPE_CHECKING:\n    import c\ndef f():\n    import matplotlib\n")
    assert sorted(name for _, name in top_level_imports(file)) == ["a", "b"]
    assert "matplotlib" in [name for _, name in every_import(file)]
