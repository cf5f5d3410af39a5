"""``spin-composer data convert``: any supported SFT data set as MDS shards.

Columns are text or JSON, never pickled: ``prompt`` and ``response``, or ``messages``. SPIN's
loader and llm-foundry's own StreamingFinetuningDataset both read the result.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from spin_composer.data.config import DatasetConfig
from spin_composer.data.counts import DataReport
from spin_composer.data.formats import BadRow, Kind, to_foundry_row
from spin_composer.data.preprocess import make_preprocessor, preprocess_row
from spin_composer.data.sources import read_rows, source_keys
from spin_composer.errors import InputError

_COLUMNS: dict[Kind, dict[str, str]] = {
    "plain": {"prompt": "str", "response": "str"},
    "chat": {"messages": "json"},
}


@dataclass
class ConvertReport:
    """What was written."""

    destination: str
    """The MDS folder."""
    kind: Kind
    """plain or chat."""
    rows: int
    """Rows written."""
    shards: int
    """Shard files."""
    bytes: int
    """Size of all shard files."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Bad rows left out, by reason."""


def convert_dataset(
    source: str,
    destination: str,
    split: str = "train",
    preprocessing_fn: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    compression: str | None = None,
    shard_bytes: int = 1 << 26,
    progress: bool = True,
) -> ConvertReport:
    """Write a data set as MDS: aside first, then renamed, so that it exists wholly or not at all.

    Args:
        source: A file, folder, Hugging Face name, MDS folder or MDS URI.
        destination: The folder to make; it must not exist (an empty one may).
        split: The source's split.
        preprocessing_fn: ``module:function`` applied to each row first.
        on_bad_row: ``error``, or ``skip`` to leave bad rows out and count them.
        compression: Streaming's name of a compression, such as ``zstd``; none by default.
        shard_bytes: Largest size of a shard before compression.
        progress: Show a progress bar.

    Returns:
        What was written.

    Raises:
        InputError: The destination exists, or a row is bad, or the source cannot be read.
    """
    target = _checked_destination(destination)
    config = DatasetConfig(
        max_seq_len=2, preprocessing_fn=preprocessing_fn, on_bad_row=on_bad_row,
        **source_keys(source, split),
    )  # fmt: skip
    report = DataReport()
    rows = _formatted(config, report)
    # Before the slow import of streaming and the bar: a missing or bad source fails at once.
    first = list(islice(rows, 1))
    if not first:
        seen = f" First: {report.faults[0]}" if report.faults else ""
        raise InputError(f"{source}: it has no usable row. Give it at least one.{seen}")
    _check_compression(compression)
    aside = _folder_beside(target, destination)
    try:
        with _progress_bar(f"Writing {target}", progress) as advance:
            kind = first[0][0]
            _write(kind, chain(first, rows), aside, compression, shard_bytes, advance)
        os.chmod(aside, 0o755)  # mkdtemp makes private folders
        if target.is_dir():
            target.rmdir()
        os.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shards = [file for file in target.iterdir() if file.name.startswith("shard.")]
    return ConvertReport(
        str(target), kind, report.kept, len(shards), sum(file.stat().st_size for file in shards),
        report.dropped,
    )  # fmt: skip


def _checked_destination(destination: str) -> Path:
    if "://" in destination:
        raise InputError(
            f"destination={destination!r}: writing to a remote place is not supported. Write to a "
            "local folder, copy it, and upload index.json last."
        )
    target = Path(destination).expanduser().absolute()
    try:
        taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise _not_writable(destination, error) from error
    if taken:
        raise InputError(
            f"destination={destination!r} exists already. Remove it, or name another folder."
        )
    return target


def _folder_beside(target: Path, destination: str) -> str:
    """Make the folder that the data set is written to first."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _not_writable(destination, error) from error


def _not_writable(destination: str, error: OSError) -> InputError:
    in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "a file is in its way" if in_the_way else error.strerror or str(error)
    return InputError(
        f"destination={destination!r} cannot be written ({reason}). "
        "Name a folder within one that you may write to."
    )


def _check_compression(compression: str | None) -> None:
    if not compression:
        return
    from streaming.base.compression import get_compressions, is_compression

    if not is_compression(compression):
        known = sorted({name.partition(":")[0] for name in get_compressions()})
        raise InputError(
            f"compression={compression!r} is not known. Use one of {', '.join(known)}, with a "
            "level after a colon if wanted (zstd:7)."
        )


def _formatted(config: DatasetConfig, report: DataReport) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Yield each row's kind and llm-foundry's form of it, counting into ``report``."""
    rows = read_rows(config)  # before the preprocessor, which imports llm-foundry
    preprocess = make_preprocessor(config)
    first: Kind | None = None
    for where, row in rows:
        report.rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if preprocess is not None:
                row = preprocess_row(preprocess, row, where)
            kind, formatted = to_foundry_row(row, where)
        except BadRow as fault:
            if config.on_bad_row == "error":
                raise
            report.drop(fault)
            continue
        first = first or kind
        if kind != first:
            raise InputError(
                f"{where}: a {kind} row in a data set that began with {first} rows. "
                "Convert one kind at a time."
            )
        report.kept += 1
        yield kind, formatted


def _write(
    kind: Kind,
    rows: Iterator[tuple[Kind, dict[str, Any]]],
    folder: str,
    compression: str | None,
    shard_bytes: int,
    advance: Any,
) -> None:
    """Write all rows into ``folder``."""
    from streaming import MDSWriter

    # No `with`: leaving it by an exception would still write an index.json.
    writer = MDSWriter(
        out=folder, columns=_COLUMNS[kind], compression=compression, hashes=["xxh64"],
        size_limit=shard_bytes,
    )  # fmt: skip
    for _, row in rows:
        writer.write(_in_column_order(kind, row))
        advance()
    writer.finish()


def _in_column_order(kind: Kind, row: dict[str, Any]) -> dict[str, Any]:
    return {column: row[column] for column in _COLUMNS[kind]}


@contextmanager
def _progress_bar(text: str, shown_to_user: bool) -> Iterator[Any]:
    """Yield a function to call once per row."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed} rows"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not shown_to_user) as bar:
        task = bar.add_task(text, total=None)
        yield lambda: bar.advance(task)
        bar.update(task, total=bar.tasks[0].completed)
