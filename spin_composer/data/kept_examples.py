"""Examples kept in a folder: arrays that are mapped into memory, and what else belongs to them.

    <cache>/<key>/tokens.npy       [sum P + R] int32
    <cache>/<key>/ends.npy         [n, 2] int64
    <cache>/<key>/truncated.npy    [n] bool
    <cache>/<key>/examples.json    counts, notes, stop rule, first rows; hashed

The folder is written aside and renamed, so that it is there wholly or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from spin_composer.data.bad_row import Location
from spin_composer.data.cache_folder import ABOUT, hold, staging_name
from spin_composer.data.counts import DataReport
from spin_composer.data.examples import ExampleDataset
from spin_composer.data.origin import Origin
from spin_composer.data.rows import Row
from spin_composer.data.stop import StopRule
from spin_composer.data.turns import Role
from spin_composer.store.durable import dump_hashed, fsync, load_hashed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.settings.dataset import DatasetConfig

_FORMAT = 1


class NotKept(Exception):
    """The examples cannot be kept: they would not come back as they are."""


class Damaged(Exception):
    """A folder does not hold the examples that were written to it."""


def save(examples: ExampleDataset, folder: Path, replace: bool = False) -> None:
    """Write examples to a new folder; another process may write the same at the same time.

    Args:
        examples: Made by ``build_examples``.
        folder: Where to; its name is the examples' key.
        replace: What is there is damaged.

    Raises:
        OSError: It cannot be written.
        NotKept: Their first rows hold what JSON does not.
    """
    arrays = examples.arrays()
    text = dump_hashed(_about(examples, arrays))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, old = staging_name(folder), staging_name(folder)
    try:
        aside.mkdir()
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
            fsync(aside / f"{name}.npy")
        (aside / ABOUT).write_text(text, encoding="utf-8")
        fsync(aside / ABOUT)
        fsync(aside)
        if replace:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(folder, old)
        try:
            os.rename(aside, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process was faster: it wrote the same.
        fsync(folder.parent)
    finally:
        for path in (aside, old):
            shutil.rmtree(path, ignore_errors=True)


def load(
    folder: Path, tokenizer: PreTrainedTokenizerBase, config: DatasetConfig, verify: bool
) -> ExampleDataset | None:
    """Return the examples of a folder; None if there is none.

    Args:
        folder: Of :func:`save`.
        tokenizer: The tokenizer that they were made with.
        config: The settings.
        verify: Compare the hashes of the arrays, too, not only their sizes.

    Raises:
        Damaged: The folder holds something else, or another version wrote it.
    """
    try:
        about = load_hashed((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists():
            raise Damaged(f"{ABOUT} is missing") from None
        return None
    except ValueError as error:
        raise Damaged(f"{ABOUT}: {error}") from error
    if about.get("format") != _FORMAT:
        raise Damaged(f"it is of format {about.get('format')}, not {_FORMAT}")
    arrays = {}
    for name, (dtype, shape, digest) in about["arrays"].items():
        array = arrays[name] = _mapped(folder / f"{name}.npy", dtype, shape)
        if verify and _hash(array) != digest:
            raise Damaged(f"{name}.npy: its hash differs")
    rows = [(Location(**where), kind, _unpacked(row)) for where, kind, row in about["rows"]]
    rule = StopRule(**about["rule"])
    examples = ExampleDataset(
        **arrays,
        stop_token_id=rule.token_id,
        kind=about["kind"],
        report=DataReport.from_plain(about["report"]),
        origin=Origin(tokenizer, config, rows, about["next_turn_stops"], rule, about["warnings"]),
        fingerprint=about["fingerprint"],
        max_token_id=about["max_token_id"],
    )
    return examples if hold(folder, examples) else None


def _about(examples: ExampleDataset, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return all but the arrays, in JSON's types."""
    origin = examples.origin
    assert origin is not None, "examples made by hand have no key"
    rows = [[asdict(where), kind, _packed(row)] for where, kind, row in origin.rows]
    try:
        same = json.loads(json.dumps(rows)) == rows
    except (TypeError, ValueError):
        same = False
    if not same:
        raise NotKept("their first rows hold values that JSON does not have")
    return {
        "format": _FORMAT,
        "kind": examples.kind,
        "fingerprint": examples.fingerprint,
        "max_token_id": examples.max_token_id,
        "report": examples.report.plain(),
        "rule": asdict(origin.rule),
        "next_turn_stops": origin.next_turn_stops,
        "warnings": origin.warnings,
        "rows": rows,
        "arrays": {
            name: [array.dtype.str, list(array.shape), _hash(array)]
            for name, array in arrays.items()
        },
    }


def _mapped(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    """Return an array of a file; pages that are written to are this process's own."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:  # numpy's, of a missing or shortened file
        raise Damaged(f"{path.name}: {error}") from error
    if array.dtype.str != dtype or list(array.shape) != shape:
        raise Damaged(f"{path.name} holds {array.dtype} {array.shape}, not {dtype} {shape}")
    return array


def _hash(array: np.ndarray) -> str:
    return xxhash.xxh64(np.ascontiguousarray(array).data).hexdigest()


def _packed(row: Row) -> list[Any]:
    """Return a row and its own words for roles, which are no part of JSON's text."""
    turns = row.get("messages") or ()
    return [row, [getattr(turn["role"], "spelled", None) for turn in turns]]


def _unpacked(packed: list[Any]) -> Row:
    row, words = packed
    for turn, word in zip(row.get("messages") or (), words, strict=True):
        if word is not None:
            turn["role"] = Role.of(turn["role"], word)
    return row
