"""Rows of local tables: text with a header, and parquet."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.errors import InputError, format_value

# A raw row, or a BadRow if it cannot be decoded, with its location.
RawRow = tuple[Location, object]


def read_table(path: Path, file: IO[bytes], delimiter: str) -> Iterator[RawRow]:
    """Read a table with a header; cells are strings."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in rows:
            where, line = Location(str(path), line), rows.line_num + 1
            if not cells:
                continue
            if not names:
                names = cells
                if len(set(names)) < len(names):
                    raise InputError(
                        f"{where}: the header {format_value(names, 120)} has a name twice. Rename "
                        "one."
                    )
                other = next((one for one in ";\t|," if one != delimiter and one in cells[0]), None)
                if len(cells) == 1 and other is not None:
                    raise InputError(
                        f"{where}: the header {format_value(cells[0], 120)} has no {delimiter!r}. "
                        f"Set dataset.hf_kwargs: {{delimiter: {other!r}}}."
                    )
            elif len(cells) != len(names):
                yield where, BadRow(
                    where, "cells and header differ",
                    f"the row has {len(cells)} cells where the header has {len(names)} names",
                    f"Quote texts that hold {delimiter!r}, quotes or line ends.",
                )  # fmt: skip
            else:
                yield where, dict(zip(names, cells, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text after line {line} ({error.reason}). Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise InputError(
            f"{path}: not a table after line {line} ({error}). Quote texts that hold "
            f"{delimiter!r}, quotes or line ends, or use jsonl."
        ) from error


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Read a parquet file; Arrow adds missing keys to structs with the value null."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{path}: the column {twice[0]!r} appears twice. Rename one.")
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Location(str(path), number, "row", filled=True), row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a readable parquet file after row {number} "
            f"({format_value(str(error), 120)}). Write it again."
        ) from error
