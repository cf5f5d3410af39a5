"""The tested versions of torch and transformers, and a warning about others."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

log = logging.getLogger(__name__)

_Minor = tuple[int, int]

TESTED_VERSIONS: Mapping[str, tuple[tuple[_Minor, _Minor], ...]] = {
    "torch": (((2, 7), (2, 15)),),
    "transformers": (((4, 51), (4, 57)), ((5, 17), (5, 24))),
}
"""Ranges of (major, minor) by package, whose ends were tested; docs/versions.md."""


STACK = (
    "torch", "transformers", "tokenizers", "mosaicml", "mosaicml-streaming", "llm-foundry",
    "datasets", "peft", "triton",
)  # fmt: skip
"""The packages whose versions say what a run ran on."""


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def stack_line() -> str:
    """Return the installed versions of the stack in one line."""
    found = [(package, installed_version(package)) for package in STACK]
    return ", ".join(f"{package} {number}" for package, number in found if number is not None)


def version_warnings(installed: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for each package whose version is outside the tested ranges.

    Args:
        installed: Versions by package; those of this environment unless given.
    """
    lines = []
    for package, ranges in TESTED_VERSIONS.items():
        found = installed[package] if installed is not None else version(package)
        numbers = re.match(r"(\d+)\.(\d+)", found)
        minor = (int(numbers[1]), int(numbers[2])) if numbers else None
        if minor is None or not any(low <= minor <= high for low, high in ranges):
            known = ", ".join(f"{_text(low)} to {_text(high)}" for low, high in ranges)
            lines.append(
                f"{package} {found} is outside the tested ranges, {known}. If something fails, "
                "install one of these (docs/versions.md)."
            )
    return lines


def warn_about_versions() -> None:
    """Log what :func:`version_warnings` returns, on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        for line in version_warnings():
            log.warning(line)


def _text(minor: _Minor) -> str:
    return f"{minor[0]}.{minor[1]}"
