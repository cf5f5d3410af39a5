"""A hook of MkDocs: links from a page to files outside docs/ become the files' names.

In the repository they lead to the file; the site does not hold it.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(\.\./[^)\s]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each link that leaves docs/ by its text."""
    return _OUTSIDE.sub(r"\1", markdown)
