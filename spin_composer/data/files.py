"""Rows of local files, read by us so that each keeps its line or row number."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from spin_composer.data.formats import BadRow, Where
from spin_composer.errors import InputError, shown

# A raw row with its place; a row that could not even be decoded comes as its error.
RawRow = tuple[Where, Any]

READABLE = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def suffix(path: str | Path) -> str:
    """Return the file's ending in lower case, with ``.gz`` and what stands before it."""
    ends = [end.lower() for end in Path(path).suffixes]
    return "".join(ends[-2:]) if ends[-1:] == [".gz"] else "".join(ends[-1:])


def read_file(path: str | Path) -> Iterator[RawRow]:
    """Yield the rows of one jsonl, json or parquet file.

    Args:
        path: A file with one of the endings in ``READABLE``.

    Yields:
        The place and the decoded row, or in the row's stead a ``BadRow`` for the caller to
        raise or to count.

    Raises:
        InputError: The file is missing or damaged, or its ending is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. Check the path (it is relative to {Path.cwd()}).")
    ending = suffix(path)
    if ending == ".parquet":
        yield from _read_parquet(path)
    elif ending in READABLE:
        yield from _read_json(path, ending)
    else:
        raise InputError(
            f"{path}: a file ending in {ending!r} is not known. Use {', '.join(READABLE)}."
        )


def _read_json(path: Path, ending: str) -> Iterator[RawRow]:
    """Read one object per line, or (``.json`` only) one list of objects."""
    number = 0
    try:
        with _open(path) as file:
            if not ending.startswith(".jsonl") and _first_byte(path) == b"[":
                yield from _read_json_list(path, file)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = Where(str(path), number)
                    yield where, _decoded(line, where)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: not readable after line {number} ({type(error).__name__}: "
            f"{shown(str(error), 120)}). Copy or compress the file again."
        ) from error


def _decoded(line: bytes, where: Where) -> Any:
    """Return the line's JSON value, or the BadRow that says why it has none."""
    try:
        return json.loads(line.decode("utf-8-sig" if where.number == 1 else "utf-8"))
    except json.JSONDecodeError as error:
        return BadRow(
            where, "not JSON",
            f"{shown(line.decode('utf-8').strip())} is not JSON ({error.msg} at column "
            f"{error.colno})", "Write one JSON object per line.",
        )  # fmt: skip
    except UnicodeDecodeError as error:
        return BadRow(
            where, "not UTF-8", f"{shown(line[:40])} is not UTF-8 text ({error.reason})",
            "Save the file as UTF-8.",
        )  # fmt: skip
    except (ValueError, RecursionError) as error:  # a huge integer, or thousands of brackets
        return BadRow(
            where, "not JSON",
            f"{shown(line[:60])} cannot be read as JSON ({shown(str(error), 120)})",
            "Write a smaller number or a flatter object.",
        )  # fmt: skip


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _first_byte(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(4096).decode("utf-8-sig", errors="replace").lstrip()[:1].encode()


def _read_json_list(path: Path, file: IO[bytes]) -> Iterator[RawRow]:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a JSON list ({shown(str(error), 160)}). Mend it, or use jsonl."
        ) from None
    for number, row in enumerate(rows, start=1):
        yield Where(str(path), number, "row"), row


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Where(str(path), number, "row"), row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a readable parquet file after row {number} ({shown(str(error), 120)}). "
            "Write it again."
        ) from error
