"""What the rows of a ``dataset:`` block are, told without reading them: the content of its files.

Like git's index: a file's hash is remembered beside its inode, size and times of change, and counts
while they stay. The time of the last change of the inode cannot be set by a program, so that a file
written anew under its old modification time is found. Only a file that changed within the clock's
precision before it was hashed could pass unnoticed; its hash is not remembered. Nor are those of a
file system in user space (a mounted bucket): its times may be those that another machine has set.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import xxhash

from spin_composer.data.cache_folder import cache_folder, is_of_cache
from spin_composer.data.sources import (
    files_of_folder,
    is_builder,
    local_data_files,
    looks_like_a_path,
    open_dataset,
)
from spin_composer.settings.dataset import DatasetConfig
from spin_composer.store.durable import dump_hashed, hash_file, load_hashed, write_atomically

_SMALL_BYTES = 1 << 18
_PRECISION_NS = 2_000_000_000


def local_files(config: DatasetConfig) -> list[Path] | None:
    """Return the local files that a block reads.

    Returns:
        Of a folder those that are read, or all if it is not known which; none for a data set of the
        Hugging Face hub; None for data that other machines have, of which it is not known what is
        read, or where nothing is.

    Raises:
        InputError: Files that the block names are missing.
    """
    if config.hf_name is None:
        return _stream_files(config)
    name = os.path.expanduser(config.hf_name)
    if "://" in name:
        return None
    if is_builder(name):
        named = local_data_files(config) if "data_files" in config.hf_kwargs else None
        return None if named is None else [Path(file) for file in named]
    if not os.path.exists(name):
        return None if looks_like_a_path(name) else []
    if os.path.isdir(name) and (chosen := files_of_folder(name, config)) is not None:
        return [Path(file) for file in chosen] or None
    root = cache_folder(config)
    files = [file for file in _files_below(Path(name)) if not is_of_cache(file, root)]
    elsewhere = {"data_files", "data_dir"} & set(config.hf_kwargs)
    return None if elsewhere or any(file.suffix == ".py" for file in files) else files or None


def _stream_files(config: DatasetConfig) -> list[Path] | None:
    streams = list((config.streams or {}).values()) or [
        {"local": config.local, "remote": config.remote, **config.stream_config}
    ]
    if config.stream_name != "stream" or any(stream.get("remote") for stream in streams):
        return None
    folders = [
        Path(str(stream["local"])) / (stream.get("split") or config.split or "")
        for stream in streams
    ]
    return [file for folder in folders for file in _files_below(folder)] or None


def _files_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        Path(folder) / name for folder, _, names in os.walk(path, followlinks=True)
        for name in names
    )  # fmt: skip


def is_small(files: Iterable[Path], limit: int | None = None) -> bool:
    """Tell whether files are smaller than a limit: what is tokenized sooner than found kept."""
    found = sum(file.stat().st_size for file in files)
    return found < (_SMALL_BYTES if limit is None else limit)


def source_identity(config: DatasetConfig, files: list[Path], memory: Path) -> str | None:
    """Return what a block's rows are: equal for equal content and equal paths.

    Args:
        config: The checked block.
        files: Of :func:`local_files`; none of the Hugging Face hub.
        memory: A folder that remembers the hashes of files.

    Returns:
        None for a hub's data set that is streamed, so that its content is not known.

    Raises:
        InputError: The hub's data set cannot be opened.
        OSError: A file cannot be read.
    """
    if not files:
        made = getattr(open_dataset(config), "_fingerprint", None)
        return None if made is None else f"datasets {made}"
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(json.dumps([str(file), _content_hash(file, memory)]).encode())
    return digest.hexdigest()


def file_states(files: Iterable[Path]) -> list[tuple[int, ...]]:
    """Return device, inode, size and times (modified, changed; ns) of files, which a change moves.

    Raises:
        OSError: A file is missing.
    """
    found = [file.stat() for file in files]
    return [(x.st_dev, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for x in found]


def _content_hash(file: Path, memory: Path) -> str:
    """Return the hash of a file's bytes, remembered if the file has not changed."""
    (state,) = map(list, file_states([file]))
    name = xxhash.xxh64(os.path.abspath(file).encode("utf-8", "surrogateescape")).hexdigest()
    record = memory / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):  # no record, or a damaged one: anew
        known = load_hashed(record.read_text(encoding="utf-8"))
        if known["state"] == state:
            return str(known["hash"])
    now = time.time_ns()
    made = hash_file(file)
    if now - max(state[-2:]) > _PRECISION_NS and not _is_in_user_space(state[0]):
        with contextlib.suppress(OSError):  # it only saves time; who keeps examples says so
            memory.mkdir(parents=True, exist_ok=True)
            write_atomically(record, dump_hashed({"state": state, "hash": made}))
    return made


@cache
def _is_in_user_space(device: int) -> bool:
    """Tell whether a file system is FUSE's."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return file_system(device, mounts).startswith("fuse")


def file_system(device: int, mounts: str) -> str:
    """Return the kind of a mounted file system; empty if it is not known.

    Args:
        device: ``st_dev`` of its files.
        mounts: The content of ``/proc/self/mountinfo``.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.split()[0]
    return ""
