"""The drawing of the packages' layers, made from the table that the tests enforce."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
ROW, GAP, WIDTH, LETTER = 22, 6, 860, 6.6


def layers() -> list[frozenset[str]]:
    """Return the layers of the packages that tests/test_architecture.py enforces, lowest first."""
    tree = ast.parse((TESTS / "test_architecture.py").read_text(encoding="utf-8"))
    (found,) = (
        node.value for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAYERS"
    )  # fmt: skip
    assert found is not None
    return list(eval(ast.unparse(found), {"frozenset": frozenset}))


def drawing() -> str:
    """Return the layers as an SVG: a row each, the highest at the top."""
    boxes, y = [], GAP
    for names in reversed(layers()):
        x = GAP
        for name in sorted(names):
            wide = round(LETTER * len(name) + 16)
            if x + wide > WIDTH:
                x, y = GAP, y + ROW + GAP
            boxes.append(
                f'<rect x="{x}" y="{y}" width="{wide}" height="{ROW}" rx="4"/>'
                f'<text x="{x + wide / 2:g}" y="{y + 15}">{name}</text>'
            )
            x += wide + GAP
        y += ROW + GAP
        boxes.append(f'<line x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>')
        y += GAP
    style = (
        "rect{fill:#e8eef7;stroke:#4a6fa5}text{font:11px monospace;text-anchor:middle;fill:#1b2a41}"
        "line{stroke:#b8c4d6;stroke-dasharray:4 4}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">\n'
        f"<title>Layers of the packages: each may import those below it</title>\n"
        f"<style>{style}</style>\n" + "\n".join(boxes[:-1]) + "\n</svg>\n"
    )
