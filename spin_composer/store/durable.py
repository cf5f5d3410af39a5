"""Files that survive a crash: small ones with a hash of their content; the mode of weights."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from spin_composer.store.layout import temporary_name


def write_atomically(path: Path, text: str) -> None:
    """Write a small file atomically and durably, also against a power failure."""
    with _staged_file(path, text) as aside:
        os.replace(aside, path)
        fsync(path.parent)


def create_atomically(path: Path, text: str) -> bool:
    """Write a file atomically unless it exists; return whether it was written."""
    with _staged_file(path, text) as aside:
        try:
            os.link(aside, path)  # fails for one of two concurrent writers
        except FileExistsError:
            return False
        fsync(path.parent)
    return True


@contextmanager
def _staged_file(path: Path, text: str) -> Iterator[Path]:
    aside = path.with_name(temporary_name(path.name))
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def dump_hashed(content: Mapping[str, object]) -> str:
    """Return ``content`` as JSON with a hash of itself."""
    text = json.dumps(content)
    return json.dumps({**content, "xxh64": xxhash.xxh64(text.encode()).hexdigest()})


def load_hashed(text: str) -> dict[str, Any]:
    """Return the content of :func:`dump_hashed`; ValueError if its hash differs."""
    content = json_object(text)
    if dump_hashed({k: v for k, v in content.items() if k != "xxh64"}) != text:
        raise ValueError("its hash differs")
    content.pop("xxh64")
    return content


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; ValueError if ``text`` is not one."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it is not JSON object")
    return content


def hash_file(path: Path) -> str:
    """Return the xxh64 of a file's bytes."""
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def apply_umask(folder: Path) -> None:
    """Give a folder's weights the mode that the process's umask says, as any other file has.

    safetensors from 0.8 on writes a private temporary file (mode 0600) and renames it, so that
    other users of a cluster could not read the weights. A file made beside them tells the mode:
    the umask itself cannot be read without setting it, for all threads.
    """
    probe = folder / temporary_name("mode")
    try:
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for path in folder.rglob("*.safetensors"):
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
