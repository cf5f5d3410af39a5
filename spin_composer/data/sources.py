"""Raw rows of a ``dataset:`` block: choose the reader for its source."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spin_composer.data.bad_row import Location
from spin_composer.data.cache_folder import cache_folder, is_of_cache
from spin_composer.data.files import (
    READABLE,
    RawRow,
    known_endings,
    not_found_error,
    read_file,
    suffix,
)
from spin_composer.data.mds import read_mds
from spin_composer.data.splits import split_rows
from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import DatasetConfig

log = logging.getLogger(__name__)

_BUILDERS = {
    "json": tuple(end for end in READABLE if end.startswith((".json", ".ndjson"))),
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "parquet": (".parquet",),
}
# Endings of data files, as in llm-foundry, and of files that a download leaves next to them.
_OF_DATA = (".csv", ".json", ".jsonl", ".parquet")
_OF_DOWNLOADS = (".lock", ".metadata")
_WHERE = "train_loader.dataset"
# Arguments of load_dataset that our own readers support.
_READ_BY_US = {"field", "delimiter", "sep"}


def read_rows(config: DatasetConfig, alone: bool = False) -> Iterator[RawRow]:
    """Yield every row of the configured source, in order, with its location.

    Files and MDS shards are read by our own readers, so that errors name file and line; everything
    else by ``datasets.load_dataset``. On several ranks this is a collective for remote data.

    Args:
        config: The checked ``dataset:`` block.
        alone: Other ranks do not read: no collective. Only for data of this machine.

    Yields:
        The row's location, and the row, or a ``BadRow`` if it cannot be decoded.

    Raises:
        InputError: The data cannot be found or opened.
    """
    if config.hf_name is None:
        return read_mds(config, alone)
    name = os.path.expanduser(config.hf_name)
    if "://" in name:
        return _read_remote_folder(name, config)
    if os.path.isfile(name):
        if suffix(name) in READABLE and set(config.hf_kwargs) <= _READ_BY_US:
            own = _own_options(config)
            return split_rows(
                lambda: read_file(name, **own), lambda: sum(1 for _ in read_file(name, **own)),
                config.split, name,
            )  # fmt: skip
        return _read_files([name], config)
    if os.path.isdir(name):
        return _read_folder(name, config)
    if name in _BUILDERS and "data_files" in config.hf_kwargs:
        files = local_data_files(config)
        if files is not None and all(suffix(file) in _BUILDERS[name] for file in files):
            return _read_files(files, config)
    elif not is_builder(name) and looks_like_a_path(name):
        raise not_found_error(f"{_WHERE}.hf_name={format_value(name, 200)}", "file or folder")
    return _load_dataset(name, config, _named_files(name, config))


def _named_files(name: str, config: DatasetConfig) -> dict[str, object]:
    """Return the argument by which ``datasets`` reads the files that we find for its patterns."""
    files = None
    if is_builder(name) and "data_files" in config.hf_kwargs:
        files = local_data_files(config)
    if files is None:
        return {}
    return {"data_files": {config.split or "train": list(map(os.path.abspath, files))}}


def is_builder(name: str) -> bool:
    """Return whether ``hf_name`` is a kind of file that ``datasets`` reads, not the data."""
    return name in ("text", *_BUILDERS)


def open_dataset(config: DatasetConfig) -> object:
    """Return the data set of the Hugging Face hub that a block names.

    Raises:
        InputError: It cannot be opened.
    """
    assert config.hf_name is not None, "a block of a hub's data set has its name"
    return _loaded(os.path.expanduser(config.hf_name), config)


def source_keys(source: str, split: str) -> dict[str, object]:
    """Return the ``dataset:`` keys for a source given on the command line.

    Args:
        source: A file, folder, Hugging Face name, MDS folder or MDS URI.
        split: The split, or the subfolder of an MDS data set.

    Raises:
        InputError: The MDS folder has no such subfolder.
    """
    path = os.path.expanduser(source)
    is_mds = os.path.isfile(os.path.join(path, "index.json"))
    # The default, train, is also given for data without subfolders.
    if is_mds and split == "train":
        return {"local": path}
    if os.path.isfile(os.path.join(path, split, "index.json")):
        return {"local": path, "split": split}
    if is_mds:
        raise InputError(
            f"split={split!r}: the MDS data set {format_value(source, 200)} has no such subfolder. "
            "Leave the split out to read all its rows."
        )
    if "://" in source:
        return {"remote": source} if split == "train" else {"remote": source, "split": split}
    return {"hf_name": source, "split": split}


def looks_like_a_path(name: str) -> bool:
    """Return whether ``hf_name`` is meant to be a file or folder."""
    return name.startswith((".", "/")) or name.count("/") > 1 or suffix(name) in READABLE


def _own_options(config: DatasetConfig) -> dict[str, Any]:
    """Return the options in ``hf_kwargs`` for our own readers."""
    given = config.hf_kwargs
    return {"field": given.get("field"), "delimiter": given.get("delimiter") or given.get("sep")}


def _read_files(files: list[str], config: DatasetConfig) -> Iterator[RawRow]:
    others = sorted(set(config.hf_kwargs) - {"data_files", "data_dir"} - _READ_BY_US)
    if others or any(suffix(file) not in READABLE for file in files):
        by_ending = {suffix(file).removesuffix(".gz").removesuffix(".zst")[1:] for file in files}
        builder = by_ending.pop() if len(by_ending) == 1 else ""
        more: dict[str, object] = {"data_files": list(map(os.path.abspath, files))}
        if builder == "tsv" and not {"delimiter", "sep"} & set(config.hf_kwargs):
            more["delimiter"] = "\t"
        builder = {"jsonl": "json", "ndjson": "json", "tsv": "csv", "txt": "text"}.get(
            builder, builder
        )
        if builder not in ("json", "csv", "parquet", "text"):
            raise InputError(
                f"{_WHERE}.hf_name={format_value(config.hf_name)}: files of this kind are not "
                f"known. Use {known_endings()}."
            )
        return _load_dataset(builder, config, more, default_split="train")
    own = _own_options(config)
    return (row for file in files for row in read_file(file, **own))


def local_data_files(config: DatasetConfig) -> list[str] | None:
    """Return the files that ``hf_kwargs.data_files`` names for the split, if they are local."""
    named = config.hf_kwargs["data_files"]
    split = config.split or "train"
    if "[" in split or "+" in split:
        return None
    if isinstance(named, dict):
        if split not in named:
            raise InputError(
                f"{_WHERE}.split={split!r} is none of hf_kwargs.data_files ({', '.join(named)}). "
                "Name one of them."
            )
        named = named[split]
    elif split != "train":
        raise InputError(
            f"{_WHERE}.split={split!r}: data_files without split names are the split train. "
            "Set split: train, or write data_files: {split: file}."
        )
    patterns = [named] if isinstance(named, str) else list(named)
    root = os.path.expanduser(str(config.hf_kwargs.get("data_dir") or ""))
    files = []
    for pattern in patterns:
        if "://" in pattern:
            return None
        pattern = os.path.join(root, os.path.expanduser(pattern))
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise not_found_error(f"{_WHERE}.hf_kwargs.data_files={format_value(pattern)}")
        files += found
    return files


def _read_folder(folder: str, config: DatasetConfig) -> Iterator[RawRow]:
    """Read a folder: one of ``save_to_disk``, an MDS data set, or data files by split."""
    listing = set(os.listdir(folder))
    if listing & {"dataset_dict.json", "state.json"}:
        return _load_from_disk(folder, config)
    if "index.json" in listing:
        raise InputError(
            f"{_WHERE}.hf_name={format_value(folder)} is an MDS data set. Set local: {folder} "
            "instead."
        )
    _require_split(config)
    if config.safe_load:
        _check_safe(folder)
    files = files_of_folder(folder, config)
    return _load_dataset(folder, config) if files is None else _read_files(files, config)


def files_of_folder(folder: str, config: DatasetConfig) -> list[str] | None:
    """Return which files of a folder are read; None if ``datasets`` chooses and reads them.

    Raises:
        InputError: There is no such split.
    """
    saved = {"dataset_dict.json", "state.json"} & set(os.listdir(folder))
    split = config.split
    if saved or split is None or config.hf_kwargs or "[" in split or "+" in split:
        return None
    root = cache_folder(config)
    files = [file for file in _split_files(folder, split) if not is_of_cache(file, root)]
    endings = {suffix(file) for file in files}
    if not endings <= set(READABLE) or (".parquet" in endings and len(endings) > 1):
        return None
    return files


def _split_files(folder: str, split: str) -> list[str]:
    """Return the files of a split, found by the rules of ``datasets``."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

    exact = [os.path.join(folder, split + end) for end in READABLE]
    exact = [file for file in exact if os.path.isfile(file)]
    try:
        patterns = get_data_patterns(os.path.abspath(folder))
    except EmptyDatasetError:
        patterns = {}
    if str(split) not in map(str, patterns):
        if exact:
            return exact
        have = ", ".join(map(str, patterns)) or "none"
        raise InputError(
            f"{_WHERE}.split={split!r}: {folder} has no such split (it has: {have}). "
            f"Put {split}.jsonl or {split}.parquet there, or name another split."
        )
    files: list[str] = []
    for pattern in patterns[split]:
        # One of several patterns may match nothing: together they match something.
        with contextlib.suppress(FileNotFoundError):
            found = resolve_pattern(pattern, os.path.abspath(folder))
            files += [file for file in found if file not in files]
    return files


def _check_safe(folder: str) -> None:
    allowed = {*_OF_DATA, *_OF_DOWNLOADS}
    for root, _, files in os.walk(folder):
        for file in files:
            if Path(file).suffix not in allowed and file != ".gitignore":
                raise InputError(
                    f"{os.path.join(root, file)}: safe_load allows only "
                    f"{', '.join(sorted(allowed))} files. Move it away, or set safe_load: false."
                )


def _load_from_disk(folder: str, config: DatasetConfig) -> Iterator[RawRow]:
    import datasets

    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:
        raise InputError(
            f"{_WHERE}.hf_name={format_value(folder, 200)}: not a readable saved Dataset "
            f"({type(error).__name__}: {format_value(str(error), 120)}). Save it again."
        ) from error
    names = ["train"]
    if isinstance(saved, datasets.DatasetDict):
        split = _require_split(config).partition("[")[0]
        if split not in saved:
            raise InputError(
                f"{_WHERE}.split={split!r}: {folder} has no such split (it has: "
                f"{', '.join(map(str, saved))}). Name one of them."
            )
        saved, names = saved[split], [split]
    elif saved.split is not None and str(saved.split) != "train":
        names.append(str(saved.split))
    return split_rows(
        lambda: _numbered(saved, folder), lambda: len(saved), config.split, folder, names
    )


def _read_remote_folder(name: str, config: DatasetConfig) -> Iterator[RawRow]:
    """Download ``{split}.jsonl`` (or json, csv, parquet) from a remote folder, and read it.

    llm-foundry's own download does not create its target folder, which http needs.
    """
    from composer.utils import dist, get_file

    from spin_composer.distributed import node_folder

    split = _require_split(config)
    folder = node_folder()
    with dist.run_local_rank_zero_first():
        for ending in _OF_DATA if dist.get_local_rank() == 0 else ():
            file = f"{name.rstrip('/')}/{split}{ending}"
            try:
                get_file(file, os.path.join(folder, split + ending), progress_bar=False)
                break
            except FileNotFoundError:
                continue
            except Exception as error:  # each store has its own errors: no credentials, no network
                raise InputError(
                    f"{_WHERE}.hf_name={format_value(name, 120)}: {file} cannot be downloaded "
                    f"({type(error).__name__}: {format_value(str(error), 160)}). Check the address "
                    "and the store's credentials."
                ) from error
    files = [os.path.join(folder, file) for file in sorted(os.listdir(folder))]
    if not files:
        raise InputError(
            f"{_WHERE}.hf_name={format_value(name, 120)}: {split} with one of the endings "
            f"{', '.join(_OF_DATA)} is not there. Check the folder and the split."
        )
    return _read_files(files, config)


def _load_dataset(
    name: str,
    config: DatasetConfig,
    more: dict[str, object] | None = None,
    default_split: str | None = None,
) -> Iterator[RawRow]:
    """Read what only ``datasets`` supports: hub names, other file types, slices of splits."""
    split = config.split or default_split or _require_split(config)
    return _numbered(_loaded(name, config, more, split), f"{config.source}[{split}]")


def _loaded(
    name: str,
    config: DatasetConfig,
    more: dict[str, object] | None = None,
    split: str | None = None,
) -> Iterable[object]:
    import datasets

    split = split or _require_split(config)
    arguments = {**config.hf_kwargs, **(more or {})}
    # Explicit, so that an environment variable cannot turn it on unnoticed.
    arguments.setdefault("trust_remote_code", False)
    try:
        if config.safe_load and not os.path.isdir(name):
            name = _safe_download(name, arguments)
        return datasets.load_dataset(name, split=split, **arguments)
    except Exception as error:
        inner = error.__cause__ or error  # DatasetGenerationError has no message of its own
        raise InputError(
            f"{_WHERE}.hf_name={format_value(config.source, 200)}, split={split!r}: "
            f"datasets.load_dataset fails with {type(inner).__name__}: "
            f"{format_value(str(inner), 200)}. Check the name, the split and hf_kwargs."
        ) from error


def _safe_download(name: str, arguments: dict[str, Any]) -> str:
    """Download only the data files of a hub data set, no code."""
    import huggingface_hub

    folder = huggingface_hub.snapshot_download(
        name,
        repo_type="dataset",
        allow_patterns=["*" + ending for ending in _OF_DATA],
        token=arguments.pop("token", None),
        revision=arguments.pop("revision", None),
    )
    arguments.pop("trust_remote_code", None)
    return folder


def _numbered(rows: Iterable[object], source: str) -> Iterator[RawRow]:
    return ((Location(source, i, "row", filled=True), row) for i, row in enumerate(rows, start=1))


def _require_split(config: DatasetConfig) -> str:
    if config.split is None:
        raise InputError(
            f"{_WHERE}.split=None: {format_value(config.hf_name)} needs a split. Set split: train."
        )
    return config.split
