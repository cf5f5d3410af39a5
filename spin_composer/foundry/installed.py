"""Check whether llm-foundry is installed without importing it, which takes seconds."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from spin_composer.errors import InputError
from spin_composer.extras import install_extra


def foundry_is_installed() -> bool:
    """Return whether llm-foundry can be imported."""
    return find_spec("llmfoundry") is not None


def foundry_is_imported() -> bool:
    """Return whether llm-foundry is imported already, so that to ask it costs nothing."""
    return "llmfoundry" in sys.modules and foundry_is_installed()


def require_foundry(what: str) -> None:
    """Raise if llm-foundry is not installed.

    Args:
        what: Start of the message: the setting and its value, or the command that needs it.

    Raises:
        InputError: Names the extra to install.
    """
    if not foundry_is_installed():
        raise InputError(
            f"{what} needs llm-foundry, which is not installed. {install_extra('foundry')}"
        )
