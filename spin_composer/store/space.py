"""Room on a disk: what is to be written must fit."""

from __future__ import annotations

import shutil
from pathlib import Path

from spin_composer.errors import EnvironmentFailure


def require_space(root: Path, needed: float, what: str) -> None:
    """Refuse to write what the disk of a store cannot hold.

    Args:
        root: The store's folder, which need not exist yet.
        needed: Bytes.
        what: What they are, with its verb: ``the 3 units ... take up to``.

    Raises:
        EnvironmentFailure: Names the numbers.
    """
    at = root.absolute()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if needed > free:
        raise EnvironmentFailure(
            f"{what} {_shown(needed)}, and {root.absolute()} has {_shown(free)} free. Free space "
            "there, or set algorithms.spin.store to a folder on a larger disk."
        )


def _shown(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
