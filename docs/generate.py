"""Writes the pages of docs/ that are made from the code: ``python docs/generate.py``.

tests/test_docs.py holds that the pages are what the code says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_composer.loss import LOSSES

HERE = Path(__file__).parent
GENERATED = "<!-- Made by docs/generate.py; edit the code, not this page. -->"


def summary(documented: Any) -> str:
    """Return the first sentence of a docstring as a table's cell, without "Return"."""
    first = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")
    first = first.removeprefix("Return ").removesuffix(".").replace("``", "`")
    return first[:1].upper() + first[1:]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def losses() -> str:
    """Return the page of losses."""
    rows = [(f"`{name}`", summary(function)) for name, function in LOSSES.items()]
    return f"""{GENERATED}
# Losses

The values of `algorithms.spin.loss`. A response's reward is beta * (policy - opponent) of its sum
of log-probabilities, and a pair's margin m is the real response's reward less the generated one's.
[loss.py](../spin_composer/loss.py) has the functions; [CONTRIBUTING](../CONTRIBUTING.md) shows how
to add one.

{table(("loss", "of each pair"), rows)}
"""


PAGES = {"losses.md": losses}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
