"""What the generated pages share: their first line, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GENERATED = "<!-- Made by docs/generate.py; edit the code, not this page. -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
