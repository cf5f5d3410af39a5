"""Readers of local files, which keep the line or row number of each row."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.tables import RawRow, read_parquet, read_table
from spin_composer.errors import InputError, format_value

__all__ = ["READABLE", "RawRow", "known_endings", "read_file", "suffix"]

_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PACKED = (".gz", ".zst")
READABLE = (*_TEXT, *(end + packed for end in _TEXT for packed in _PACKED), ".parquet")
_MAGIC = {
    b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1": ".parquet",
    b"PK\x03\x04": ".zip", b"BZh": ".bz2", b"\xfd7zXZ": ".xz",
}  # fmt: skip


def suffix(path: str | Path) -> str:
    """Return the file's suffix in lower case, including the one before ``.gz`` or ``.zst``."""
    ends = [end.lower() for end in Path(path).suffixes]
    return "".join(ends[-2:]) if ends[-1:] and ends[-1] in _PACKED else "".join(ends[-1:])


def known_endings() -> str:
    """Return the supported file endings, for messages."""
    return f"{', '.join(_TEXT)} (also with {' or '.join(_PACKED)}) or .parquet"


def not_found_error(what: object, kind: str = "file") -> InputError:
    """Return the error for a path that does not exist, or a setting with such a path."""
    return InputError(f"{what}: no such {kind}. Check the path (it is relative to {Path.cwd()}).")


def read_file(
    path: str | Path, field: str | None = None, delimiter: str | None = None
) -> Iterator[RawRow]:
    """Yield the rows of one file.

    Args:
        path: A file with one of the endings in ``READABLE``.
        field: The field with the list of rows, for a ``.json`` that is one object.
        delimiter: The delimiter of a table, if it is not the default of the ending.

    Yields:
        The location and the decoded row, or a ``BadRow`` instead, which the caller raises or
        counts.

    Raises:
        InputError: The file is missing or damaged, or its ending is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise not_found_error(path)
    ending = suffix(path)
    if ending not in READABLE:
        raise InputError(
            f"{path}: a file ending in {ending!r} is not known. Use {known_endings()}."
        )
    _check_magic(path, ending)
    if ending == ".parquet":
        yield from read_parquet(path)
    else:
        yield from _read_text(path, ending, field, delimiter)


def _check_magic(path: Path, ending: str) -> None:
    """Reject a file whose first bytes do not match its ending."""
    with path.open("rb") as file:
        head = file.read(8)
    found = next((end for magic, end in _MAGIC.items() if head.startswith(magic)), "")
    packed = ending if ending == ".parquet" else Path(path).suffix.lower()
    packed = packed if packed in (*_PACKED, ".parquet") else ""
    if not head or found == packed:
        return
    if packed and not found:
        raise InputError(
            f"{path}: not a readable {packed} file (it begins with {format_value(head)}). Give it "
            "the ending of what it is, or copy or compress the file again."
        )
    remedy = f"Name it so: ...{found}" if found in (*_PACKED, ".parquet") else "Unpack it"
    raise InputError(f"{path}: its content is that of a {found} file. {remedy}.")


def _read_text(
    path: Path, ending: str, field: str | None, delimiter: str | None
) -> Iterator[RawRow]:
    """Read one object per line, one list of objects (``.json`` only), or a table with a header."""
    number = 0
    try:
        with _open(path) as file:
            if ending.startswith((".csv", ".tsv")):
                usual = "\t" if ending.startswith(".tsv") else ","
                rows = read_table(path, file, delimiter or usual)
            elif field is not None:
                rows = _read_json_list(path, file, field)
            elif ending.startswith(".json") and not ending.startswith(".jsonl"):
                rows = _read_json(path, file)
            else:
                rows = _read_lines(path, file)
            for where, row in rows:
                number = where.number
                yield where, row
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: not readable after line {number} ({type(error).__name__}: "
            f"{format_value(str(error), 120)}). Copy or compress the file again."
        ) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        import pyarrow

        return cast(IO[bytes], io.BufferedReader(pyarrow.input_stream(str(path), "zstd")))  # type: ignore
    return path.open("rb")


def _read_lines(path: Path, file: IO[bytes]) -> Iterator[RawRow]:
    for number, line in enumerate(file, start=1):
        if line.strip(b" \t\r\n\xef\xbb\xbf"):
            where = Location(str(path), number)
            yield where, _decode_json(line, where)


class _DuplicateKey(ValueError):
    """An object has the same name twice."""


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object from its pairs; for a duplicate name json would keep only the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return made


def _decode_json(line: bytes, where: Location) -> Any:
    """Return the line's JSON value, or a BadRow with the problem."""
    try:
        text = line.decode("utf-8-sig" if where.number == 1 else "utf-8")
        return json.loads(text, object_pairs_hook=_object_without_duplicates)
    except json.JSONDecodeError as error:
        return BadRow(
            where, "not JSON",
            f"{format_value(line.decode('utf-8').strip())} is not JSON ({error.msg} at column "
            f"{error.colno})", "Write one JSON object per line.",
        )  # fmt: skip
    except UnicodeDecodeError as error:
        return BadRow(
            where, "not UTF-8", f"{format_value(line[:40])} is not UTF-8 text ({error.reason})",
            "Save the file as UTF-8.",
        )  # fmt: skip
    except _DuplicateKey as error:
        return BadRow(
            where, "a name twice",
            f"the field {format_value(str(error))} appears twice in one object",
            "Keep one of them.",
        )  # fmt: skip
    except (ValueError, RecursionError) as error:  # a huge integer, or thousands of brackets
        return BadRow(
            where, "not JSON",
            f"{format_value(line[:60])} cannot be read as JSON ({format_value(str(error), 120)})",
            "Write a smaller number or a flatter object.",
        )  # fmt: skip


def _read_json(path: Path, file: IO[bytes]) -> Iterator[RawRow]:
    """Read a ``.json``: one list of objects, or one object per line as in jsonl."""
    head = file.read(4096)
    with _open(path) as again:
        if head.decode("utf-8-sig", errors="replace").lstrip()[:1] == "[":
            yield from _read_json_list(path, again)
            return
        lines = _read_lines(path, again)
        first = next(lines, None)
        if first is None:
            return
        if _is_bad_row(first[1]) or _find_rows_field(first[1]):
            _check_not_one_object(path)
        yield first
        yield from lines


def _is_bad_row(row: object) -> bool:
    return isinstance(row, BadRow) and row.reason == "not JSON"


def _find_rows_field(row: object) -> str | None:
    """Return the field of an object that seems to contain the rows, if any."""
    if not isinstance(row, dict) or set(row) & {"messages", "conversations", "prompt", "input"}:
        return None
    return next(
        (key for key, value in row.items()
         if isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
         and not all("role" in one or "from" in one for one in value)), None
    )  # fmt: skip


def _check_not_one_object(path: Path) -> None:
    """Reject a ``.json`` that is one object; name the field with the rows."""
    with _open(path) as file:
        try:
            whole = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return  # the whole file is not JSON either: the line's error is more specific
    field = _find_rows_field(whole)
    remedy = (
        f"Set dataset.hf_kwargs: {{field: {field}}}, where the rows are, or save them as jsonl."
        if field is not None
        else "Write one object per line (jsonl), or a list of objects."
    )
    keys = format_value(sorted(map(str, whole)) if isinstance(whole, dict) else whole, 120)
    raise InputError(f"{path}: the file is one object with the fields {keys}, not rows. {remedy}")


def _read_json_list(path: Path, file: IO[bytes], field: str | None = None) -> Iterator[RawRow]:
    try:
        rows = json.loads(
            file.read().decode("utf-8-sig"), object_pairs_hook=_object_without_duplicates
        )
    except _DuplicateKey as error:
        raise InputError(
            f"{path}: the field {format_value(str(error))} appears twice in one object. Keep one "
            "of them."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a JSON list ({format_value(str(error), 160)}). Fix it, or use jsonl."
        ) from None
    if field is not None:
        inner = rows.get(field) if isinstance(rows, dict) else None
        if not isinstance(inner, list):
            keys = format_value(sorted(map(str, rows)) if isinstance(rows, dict) else rows, 120)
            raise InputError(
                f"{path}: hf_kwargs.field={field!r} names no list of rows: the file has {keys}. "
                "Name the field that holds them."
            )
        rows = inner
    for number, row in enumerate(rows, start=1):
        yield Location(str(path), number, "row"), row
