"""The folder of kept examples: where it is, which files are its own, and what is removed from it.

    <cache>/examples/<key>/     the examples of one key
    <cache>/files/<name>.json   the hash of one file of data

Whoever loads examples marks their folder with the time, and holds a shared lock on a file in it
while he has them. Examples that nobody has used for a month, and holds now, are removed when others
are kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil

from spin_composer.settings.dataset import DatasetConfig
from spin_composer.store.layout import is_temporary, temporary_name

log = logging.getLogger(__name__)

VARIABLE = "SPIN_COMPOSER_CACHE"
"""The environment variable of the folder; nothing is kept if it is set and empty."""
UNUSED_DAYS = 30
"""Examples that were not used for so long are removed."""
ABOUT = "examples.json"
"""The file in a folder of examples that is locked while they are used."""
_EXAMPLES, _HASHES = "examples", "files"
_OURS = {
    _EXAMPLES: re.compile(r"\.?[0-9a-f]{32}(@.*)?"),
    _HASHES: re.compile(r"\.?[0-9a-f]{16}\.json(\..*)?"),
}
_DAY_SECONDS = 86400.0
# Another machine, or a container, may have the same name, and other processes.
_ABANDONED_SECONDS = 3600.0


def cache_folder(config: DatasetConfig) -> Path | None:
    """Return where examples are kept; None for nowhere."""
    if config.cache_dir is not None:
        return Path(config.cache_dir).expanduser() if config.cache_dir else None
    if (named := os.environ.get(VARIABLE)) is not None:
        return Path(named).expanduser() if named else None
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "spin_composer"


def folder_of_key(root: Path, key: str) -> Path:
    """Return the folder of the examples of a key."""
    return root / _EXAMPLES / key


def folder_of_hashes(root: Path) -> Path:
    """Return the folder that remembers the hashes of files."""
    return root / _HASHES


def is_of_cache(file: str | Path, root: Path | None) -> bool:
    """Tell whether a file is one of a cache, which may lie within a folder of data."""
    if root is None:
        return False
    with contextlib.suppress(ValueError):  # it lies elsewhere
        kind, name, *_ = Path(os.path.abspath(file)).relative_to(os.path.abspath(root)).parts
        return kind in _OURS and _OURS[kind].fullmatch(name) is not None
    return False


def staging_name(folder: Path) -> Path:
    """Return a unique path beside a folder, for what will be renamed to it or was it.

    It names this process: should it be killed, others can tell that nobody needs it.
    """
    return folder.with_name(temporary_name(f"{folder.name}@{socket.gethostname()}@{os.getpid()}"))


def hold(folder: Path, user: object) -> bool:
    """Mark examples as used now, and keep their folder while an object lives.

    Args:
        folder: Of the examples.
        user: The object.

    Returns:
        False if the folder is being removed.

    Raises:
        OSError: It cannot be read.
    """
    with contextlib.suppress(OSError):  # a folder of another user's
        os.utime(folder)
    descriptor = os.open(folder / ABOUT, os.O_RDONLY)
    weakref.finalize(user, os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, from which nothing is removed
        return True
    return os.fstat(descriptor).st_nlink > 0


def trim(root: Path) -> None:
    """Remove what nobody has used for a month, and what dead processes left half written."""
    oldest = time.time() - UNUSED_DAYS * _DAY_SECONDS
    removed = 0
    for folder, used in _entries(root, _EXAMPLES):
        if is_temporary(folder.name):
            if used < oldest or _is_abandoned(folder.name, used):
                shutil.rmtree(folder, ignore_errors=True)
        elif used < oldest:
            removed += _remove_unless_held(folder)
    for record, made in _entries(root, _HASHES):
        if made < oldest:
            with contextlib.suppress(OSError):  # it only takes little room
                record.unlink()
    if removed:
        log.info(
            "SPIN data: %d sets of examples that nobody has used for %d days are removed from %s.",
            removed, UNUSED_DAYS, root,
        )  # fmt: skip


def _entries(root: Path, kind: str) -> Iterator[tuple[Path, float]]:
    """Yield what the cache itself made of a kind, and when each was changed or marked last.

    A folder of data may be named as the cache too, and hold ``files`` of its own.
    """
    with contextlib.suppress(OSError):  # there is none, or it is not ours to read
        for path in sorted(root.joinpath(kind).iterdir()):
            if _OURS[kind].fullmatch(path.name):
                with contextlib.suppress(OSError):  # another process was faster
                    yield path, path.stat().st_mtime


def _is_abandoned(name: str, changed: float) -> bool:
    """Tell whether the process of this machine that :func:`staging_name` named is gone."""
    *_, host, rest = f"@{name}".split("@")
    pid = rest.partition(".")[0]
    if host != socket.gethostname() or time.time() - changed < _ABANDONED_SECONDS:
        return False
    return not (pid.isdigit() and psutil.pid_exists(int(pid)))


def _remove_unless_held(folder: Path) -> bool:
    """Remove a folder of examples; return False if somebody uses it, or it cannot be known."""
    gone = staging_name(folder)
    try:
        with (folder / ABOUT).open("rb+") as file:  # network file systems lock what can be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)
    except OSError:
        return False
    return True
