"""Repair of a checkpoint folder after a kill: partial checkpoints, and the ``latest`` link.

Composer writes a checkpoint in place, and its ``latest`` link in two steps. A kill -9 leaves:

    while a full checkpoint is written     a file cut short, newer than ``latest``: once the run
                                           is resumed, Composer refuses to train (FileExistsError)
    while a sharded one is written         a folder without ``.metadata``
    between the checkpoint and the link    a whole checkpoint that ``latest`` does not name
    between the link's two steps           no ``latest``: Composer would start the run over

A folder whose newest checkpoint is of a kind that the run cannot read (sharded for one process,
full for a sharded run) is rejected: Composer would start the run over in the same folder.

Checkpoints are never deleted; partial ones are renamed. These are functions of files only:
``hooks.checkpoints.repair_checkpoints`` calls them on one rank before Composer reads the folder.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import string
import uuid
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from spin_composer.errors import InputError

log = logging.getLogger(__name__)

_COUNTS = ("batch", "sample", "token", "epoch")
_ASIDE = ".set-aside-"
_END_OF_ZIP = b"PK\x05\x06"
_MOST_BYTES_HASHED = 4 << 30
"""Only the structure of larger checkpoints is checked: reading them takes minutes, while the other
ranks wait."""

_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)
"""Errors of zipfile for damaged bytes, which may even look like another compression method or
encryption."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: a file, or the folder of a sharded one."""

    path: Path
    counts: tuple[int, ...]
    """Batch, sample, token and epoch from its name; -1 if the name does not have them."""
    written_ns: int
    """Time of the last modification."""


def try_to_write(folder: Path) -> None:
    """Check that a folder, which may not exist yet, can be written to; leaves nothing behind.

    Raises:
        OSError: The system's error, with the file's name.
    """
    while not folder.exists():
        folder = folder.parent
    probe = folder / f".writable-{uuid.uuid4().hex[:8]}"
    probe.touch()
    probe.unlink()


def name_pattern(name: str, run_name: str) -> re.Pattern[str]:
    """Return a pattern that matches the names made from Composer's format string ``name``."""
    pattern = ""
    seen: set[str] = set()
    for literal, field, _, _ in string.Formatter().parse(name):
        pattern += re.escape(literal)
        if field in seen:
            pattern += f"(?P={field})"
        elif field in _COUNTS:
            seen.add(field)
            pattern += rf"(?P<{field}>\d+)"
        elif field is not None:
            pattern += re.escape(run_name) if field == "run_name" else r"\w+"
    return re.compile(pattern)


def repair_folder(folder: Path, pattern: re.Pattern[str], latest: Path) -> None:
    """Set aside the incomplete checkpoints of a folder, and repair ``latest``.

    ``latest`` is pointed to the newest complete checkpoint if it is missing, or points to a damaged
    one or to one that is older.
    """
    whole: list[Checkpoint] = []
    for found in find_checkpoints(folder, pattern):
        if problem := structure_problem(found.path):
            set_aside(found.path, problem)
        else:
            whole.append(found)
    whole.sort(key=lambda found: found.counts)
    current = next((c for c in whole if _links_to(c.path, latest)), None)
    if latest.is_file() and not latest.is_symlink() and not structure_problem(latest):
        return  # downloaded, or copied without links
    while whole:
        best = whole[-1]
        if current is not None and current.written_ns >= best.written_ns:
            best = current  # checkpoints with later names are older, from an earlier attempt
        if problem := content_problem(best.path):
            set_aside(best.path, problem)
            whole.remove(best)
            current = None if best is current else current
            continue
        if best is not current:
            named = os.readlink(latest) if latest.is_symlink() else "nothing"
            _link(latest, best.path)
            log.warning(f"{latest} named {named}; it now names {best.path.name}.")
        return
    if latest.is_symlink():
        log.warning(f"{latest} names {os.readlink(latest)}, which is not a whole checkpoint.")
        set_aside(latest, "no whole checkpoint is left")


def require_readable(folder: Path, pattern: re.Pattern[str], sharded: bool) -> None:
    """Reject a folder whose newest checkpoint is of a kind that the run cannot read.

    Args:
        folder: The checkpoint folder; may be missing.
        pattern: Matches the names of full checkpoints.
        sharded: The run reads sharded checkpoints; otherwise full ones.

    Raises:
        InputError: Names the checkpoint and what to start instead.
    """
    newest: dict[bool, tuple[int, Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        kind = (path / ".metadata").exists()
        if path.is_symlink() or _ASIDE in path.name or not (kind or pattern.fullmatch(path.name)):
            continue
        written = (path / ".metadata" if kind else path).stat().st_mtime_ns
        newest[kind] = max(newest.get(kind, (0, path)), (written, path))
    if newest.get(not sharded, (0, folder))[0] <= newest.get(sharded, (0, folder))[0]:
        return
    name = newest[not sharded][1].name
    if sharded:
        raise InputError(
            f"{folder}: its newest checkpoint {name} is full (one process wrote it, or another "
            "state_dict_type), and this run reads sharded ones. Set fsdp_config.state_dict_type="
            "full, or save_folder to another folder."
        )
    raise InputError(
        f"{folder}: its newest checkpoint {name} is sharded, and one process, or a run with "
        "state_dict_type full, reads full ones. Start two ranks or more with "
        "fsdp_config.state_dict_type=sharded, or set save_folder to another folder."
    )


def find_checkpoints(folder: Path, pattern: re.Pattern[str]) -> list[Checkpoint]:
    """Return the checkpoints of a folder, complete or not."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        given = match.groupdict()
        counts = tuple(int(given.get(name) or -1) for name in _COUNTS)
        files = list(path.iterdir()) if path.is_dir() else [path]
        written = max((file.stat().st_mtime_ns for file in files), default=0)
        found.append(Checkpoint(path, counts, written))
    return found


def structure_problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's structure, without reading all of it, or None."""
    if path.is_dir():
        if not _size(path / ".metadata"):
            return "it has no .metadata"
        shards = sorted(path.glob("*.distcp"))
        cut = [shard.name for shard in shards if not _has_zip_end(shard)]
        return f"{cut[0]} is cut short" if cut else None
    if not _size(path):
        return "it is empty"
    if path.suffix != ".pt":
        return None  # compressed or tar: cannot be checked without reading it
    try:
        with zipfile.ZipFile(path) as file:
            file.infolist()
    except _DAMAGED:
        return "it is cut short"
    except OSError as error:
        return _content_error(error)
    return None


def content_problem(path: Path) -> str | None:
    """Return what is wrong with a full checkpoint's content, by its CRCs, or None."""
    if path.is_dir() or path.suffix != ".pt" or _size(path) > _MOST_BYTES_HASHED:
        return None
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except _DAMAGED as error:
        return str(error)
    except OSError as error:
        return _content_error(error)
    return None if bad is None else f"the CRC of its {bad} differs"


def _content_error(error: OSError) -> str:
    """Return the message of an error caused by damaged content; re-raise one of the disk."""
    if error.errno not in (None, errno.EINVAL):  # a bad stream; an invalid seek
        raise error
    return str(error)


def set_aside(path: Path, problem: str) -> Path:
    """Rename a file or folder so that it is ignored; return its new path."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{_ASIDE}{number}")):
        number += 1
    os.rename(path, aside)
    log.warning(f"{path} is set aside as {aside.name}: {problem}.")
    return aside


def _links_to(path: Path, link: Path) -> bool:
    return link.is_symlink() and link.exists() and os.path.samefile(path, link)


def _link(link: Path, target: Path) -> None:
    aside = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    os.symlink(os.path.relpath(target, link.parent), aside)
    os.replace(aside, link)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has_zip_end(path: Path) -> bool:
    """Return whether a file is empty, or ends with a zip archive's end record."""
    size = _size(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 22))
        return size == 0 or file.read().startswith(_END_OF_ZIP)
