"""The tables of docs/evidence.md, of the results of examples/evidence; its text is its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from examples.evidence.report import evidence_tables  # noqa: E402

RESULTS = ROOT / "examples" / "evidence" / "results"
_BLOCK = re.compile(
    r"(<!-- ([\w-]+): made by docs/generate.py -->\n).*?(\n<!-- end -->)", re.DOTALL
)


def evidence() -> str:
    """Return the page with the tables of the committed results in their places."""
    tables = evidence_tables(RESULTS)
    page = Path(__file__).with_name("evidence.md").read_text(encoding="utf-8")
    return _BLOCK.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[3]}", page)
