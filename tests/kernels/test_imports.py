"""The modules of spin_kernels import each other in one direction, also inside functions."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import spin_kernels

PACKAGE = Path(spin_kernels.__file__).parent


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return, for each module of a package, the modules of the package that it imports anywhere."""
    name_of = {path: f"{package.name}.{path.stem}" for path in package.glob("*.py")}
    name_of[package / "__init__.py"] = package.name
    graph = {}
    for path, name in name_of.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: relative import"
                for alias in node.names:
                    member = f"{node.module}.{alias.name}"
                    found.add(member if member in name_of.values() else str(node.module))
        graph[name] = found & set(name_of.values())
    return graph


def order(package: Path) -> list[str]:
    """Return the modules in an order in which each follows those that it imports."""
    return list(TopologicalSorter(import_graph(package)).static_order())


def test_no_module_is_in_an_import_cycle() -> None:
    modules = order(PACKAGE)
    assert len(modules) == len(list(PACKAGE.glob("*.py")))
    assert modules[-1] == "spin_kernels"


@pytest.mark.parametrize(
    "line",
    [
        "import package.a",
        "from package import a",
        "from package.a import x",
        "def f():\n    from package import a",
        "def f():\n    import package.a as x",
        "from package import x",
    ],
)
def test_a_cycle_is_found_wherever_the_import_is(tmp_path: Path, line: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package.a import x\n")
    (package / "a.py").write_text("from package.b import x\n")
    (package / "b.py").write_text("x = 1\n")
    assert order(package) == ["package.b", "package.a", "package"]
    (package / "b.py").write_text(f"x = 1\n{line}\n")
    with pytest.raises(CycleError):
        order(package)
