"""Private names of other packages: each one that is used stands in CONTRIBUTING's table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (ROOT / "spin_composer", ROOT / "kernels" / "spin_kernels")
PRIVATE = re.compile(r"_[A-Za-z]\w*")
PRIVATE_TEXT = re.compile(r"_[a-z]+(_[a-z]+)+")
"""Of a string: of two words at least, so that endings like "_id" are none."""
DOCUMENTED = frozenset({"_exit", "_getframe", "_replace", "_fields"})
"""Python's own, of os, sys and named tuples: public in spite of their names."""


def own_names(tree: ast.Module) -> set[str]:
    """Return the names that a file itself defines: functions, classes, variables, attributes."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")
        ):
            own.add(node.attr)
    return own


def private_uses(source: str) -> Iterator[str]:
    """Yield the private names that a file uses and does not define: imports, attributes, strings.

    Of ``import a._b.c`` that is ``_b``.
    """
    tree = ast.parse(source)
    own = own_names(tree)
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            found = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            found = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.rstrip(".")
            found = [text] if PRIVATE_TEXT.fullmatch(text) else []
        yield from (n for n in found if PRIVATE.fullmatch(n) and n not in own | DOCUMENTED)


def files() -> dict[str, Path]:
    """Return the source files by the names that the table has for them."""
    found = {}
    for root in SOURCES:
        for path in root.rglob("*.py"):
            inside = root if root.name == "spin_composer" else root.parent
            found[str(path.relative_to(inside))] = path
    return found


def table() -> list[tuple[list[str], list[str], list[str]]]:
    """Return the rows of CONTRIBUTING's table: names, files, tests."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Private names of other packages")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    marked = re.compile(r"`([^`]+)`")
    return [
        (marked.findall(row[0]), marked.findall(row[2]), marked.findall(row[4])) for row in rows
    ]


def test_every_private_name_stands_in_the_table():
    listed = {(name, file) for names, at, _ in table() for name in names for file in at}
    used = {
        (name, file) for file, path in files().items()
        for name in private_uses(path.read_text(encoding="utf-8"))
    }  # fmt: skip
    missing = sorted(used - listed)
    assert not missing, "list these in CONTRIBUTING.md, Private names of other packages"


def test_the_table_names_what_is_used_and_tests_that_exist():
    sources = {file: path.read_text(encoding="utf-8") for file, path in files().items()}
    for names, at, tests in table():
        assert at, names
        assert tests, names
        for file in at:
            assert file in sources, f"{names}: there is no {file}"
            gone = [name for name in names if not re.search(rf"\b{name}\b", sources[file])]
            assert not gone, f"{file} does not use {gone} any more"
        assert not [test for test in tests if not (ROOT / "tests" / test).exists()], names


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch._inductor.config", ["_inductor"]),
        ("from torch.distributed._tensor import Shard", ["_tensor"]),
        ("from a import _b as c", ["_b"]),
        ("def f(model): model._flag = 1", ["_flag"]),
        ("getattr(model, '_fsdp_wrapped_module')", ["_fsdp_wrapped_module"]),
        ("class A(B):\n def f(self): return self._of_b()", ["_of_b"]),
        ("class A:\n def f(self): self._mine = 1", []),
        ("def _mine(): return name.endswith('_id')\nx = a.__dict__", []),
    ],
)
def test_private_uses_are_found(source: str, found: list[str]):
    assert list(private_uses(source)) == found
