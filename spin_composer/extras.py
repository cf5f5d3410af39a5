"""How to install an extra of this distribution, wherever its packages are missing."""

from __future__ import annotations

import importlib.util
from typing import Literal

from spin_composer.errors import InputError


def install_extra(extra: Literal["foundry", "lora", "judge"]) -> str:
    """Return the sentence that says how an extra is installed.

    The project is in no package index, so pip is given the checkout.
    """
    return f"Install '.[{extra}]' in the checkout of spin_composer, as docs/versions.md says."


def missing_peft(setting: str) -> str | None:
    """Return what is wrong with a setting that needs PEFT, None if it is installed."""
    if importlib.util.find_spec("peft") is not None:
        return None
    return f"{setting} is set, and peft is not installed. {install_extra('lora')}"


def require_judge(what: str) -> None:
    """Check that what the measures of responses need is installed.

    Args:
        what: The setting or act that needs it, for the message.

    Raises:
        InputError: scikit-learn or scipy is missing.
    """
    packages = {"sklearn": "scikit-learn", "scipy": "scipy"}
    missing = [name for module, name in packages.items() if not importlib.util.find_spec(module)]
    if missing:
        raise InputError(
            f"{what} needs {' and '.join(missing)}, not installed. {install_extra('judge')}"
        )
