"""Check that a disk has enough free space."""

from __future__ import annotations

import shutil
from pathlib import Path

from spin_composer.errors import EnvironmentFailure


def require_space(root: Path, needed: float, what: str) -> None:
    """Raise unless the disk of a store has enough free space.

    Args:
        root: The store's folder, which need not exist yet.
        needed: Required bytes.
        what: Start of the message, with its verb: ``the 3 units ... take up to``.

    Raises:
        EnvironmentFailure: If there is too little space; names the numbers.
    """
    at = root.absolute()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if needed > free:
        raise EnvironmentFailure(
            f"{what} {_format_bytes(needed)}, and {root.absolute()} has {_format_bytes(free)} free."
            " Free space there, or set algorithms.spin.store to a folder on a larger disk."
        )


def _format_bytes(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
