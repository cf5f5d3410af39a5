"""What the package says to people has one source: no sentence stands in two places."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import spin_composer

PACKAGE = Path(spin_composer.__file__).parent
WORDS = 9
"""So many successive words are no chance."""
SAME_ON_PURPOSE = {"data/mappings.py"}
"""Prompts of Alpaca's two templates, as they were published."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and value of a file's texts, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def test_no_sentence_of_a_message_is_written_twice() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for line, text in texts(path) if name not in SAME_ON_PURPOSE else ():
            words = text.split()
            for first in range(len(words) - WORDS + 1):
                places[" ".join(words[first : first + WORDS])].add(f"{name}:{line}")
    assert {said: found for said, found in places.items() if len(found) > 1} == {}
