"""The JSON result of a program in this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "mosaicml", "mosaicml-streaming", "transformers", "tokenizers", "accelerate", "datasets",
    "numpy", "peft", "trl", "liger-kernel", "llm-foundry",
)  # fmt: skip
"""The distributions whose versions a result names."""


def write(found: Mapping[str, Any], out: Path | None) -> None:
    """Write a result as JSON, if a file was asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Return a tree of figures with five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(x) for key, x in value.items()}
    return [rounded(x) for x in value] if isinstance(value, list) else value
