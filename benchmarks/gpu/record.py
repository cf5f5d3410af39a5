"""What a result says of itself: the machine, the versions and the command that gives it again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "kernels" / "benchmarks"))

from timing import machine

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = (
    "mosaicml", "mosaicml-streaming", "transformers", "tokenizers", "accelerate", "datasets",
    "numpy", "peft", "trl", "liger-kernel", "llm-foundry",
)  # fmt: skip


def about(tiny: bool) -> dict[str, Any]:
    """Return command, machine and versions of this process."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    program = Path(sys.argv[0]).resolve().relative_to(ROOT)
    command = shlex.join(["python", str(program), *sys.argv[1:]])
    return {"command": command, "machine": machine(), "versions": versions, "tiny": tiny}


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
