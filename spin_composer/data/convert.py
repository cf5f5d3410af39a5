"""``spin-composer data convert``: write any supported SFT data set as MDS shards.

Columns are text or JSON, never pickled: ``prompt`` and ``response``, or ``messages``, with
``tools`` and ``chat_template_kwargs`` if rows have them. SPIN's loader reads the result, and so
does llm-foundry's StreamingFinetuningDataset if turns have only role and content, and roles have
llm-foundry's names.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.counts import DataReport
from spin_composer.data.formats import Kind, to_foundry_row
from spin_composer.data.preprocess import make_preprocessor, preprocess_row
from spin_composer.data.rows import Row
from spin_composer.data.sources import read_rows
from spin_composer.data.tokenizers import load_tokenizer
from spin_composer.data.turns import Role
from spin_composer.errors import InputError
from spin_composer.settings.dataset import DatasetConfig
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from spin_composer.data.example_builder import ExampleBuilder

_COLUMNS: dict[Kind, dict[str, str]] = {
    "plain": {"prompt": "str", "response": "str"},
    "chat": {"messages": "json"},
}
# Columns that are written only if a row has them.
_AT_NEED = ("tools", "chat_template_kwargs")


SHARD_BYTES = 1 << 26
"""Largest size of a shard before compression."""


class _NeedsColumn(Exception):
    """A row has a column that earlier shards lack."""


@dataclass
class ConvertReport:
    """What was written."""

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


def convert_config(
    config: DatasetConfig,
    destination: str,
    title: str | None = None,
    tokenizer_name: str | None = None,
    tokenizer_kwargs: Config | None = None,
    compression: str | None = None,
) -> ConvertReport:
    """Write the data of a dataset block as MDS, atomically (to a temporary folder, then renamed).

    Args:
        config: The block, checked.
        destination: The folder to create; it must not exist, or must be empty.
        title: Name of the data in messages; the block's source if not given.
        tokenizer_name: If given, each row is also tokenized and checked as in training.
        tokenizer_kwargs: ``tokenizer.kwargs``.
        compression: Streaming's name of a compression, such as ``zstd``; none by default.

    Returns:
        What was written.

    Raises:
        InputError: The destination exists, or a row is bad, or the source cannot be read.
    """
    target = _validate_destination(destination)
    check = (
        None if tokenizer_name is None else _RowValidator(config, tokenizer_name, tokenizer_kwargs)
    )
    report = DataReport()
    rows = _iter_formatted(config, report, check)
    # Before the slow imports and the progress bar: a missing or bad source fails immediately.
    first = list(islice(rows, 1))
    if not first:
        seen = f" First: {report.faults[0]}" if report.faults else ""
        raise InputError(
            f"{title or config.source}: it has no usable row. Give it at least one.{seen}"
        )
    _check_compression(compression)
    kind = first[0][0]
    columns, rows = dict(_COLUMNS[kind]), chain(first, rows)
    with (
        _staging_folder(target, destination) as folder,
        _progress_bar(f"Writing {target}") as advance,
    ):
        while True:
            try:
                _write(columns, rows, folder, compression, advance)
                break
            except _NeedsColumn as needed:  # rare: start over, with the column for all rows
                columns[str(needed)] = "json"
                shutil.rmtree(folder)
                os.mkdir(folder)
                report = DataReport()
                rows = _iter_formatted(config, report, check)
    shards = [file for file in target.iterdir() if file.name.startswith("shard.")]
    return ConvertReport(
        kind, report.kept, len(shards), sum(file.stat().st_size for file in shards),
        report.dropped,
    )  # fmt: skip


class _RowValidator:
    """Tokenizes rows to find those that cannot be trained on."""

    def __init__(self, config: DatasetConfig, name: str, kwargs: Config | None) -> None:
        self._config, self._name, self._kwargs = config, name, kwargs
        self._builder: ExampleBuilder | None = None

    def __call__(self, kind: Kind, row: Row, where: Location, report: DataReport) -> None:
        if self._builder is None:  # at the first row, so that a missing source is found first
            from spin_composer.data.example_builder import ExampleBuilder

            tokenizer = load_tokenizer(self._name, self._kwargs)
            self._builder = ExampleBuilder(tokenizer, self._config)
        self._builder(kind, row, where, report)


def _validate_destination(destination: str) -> Path:
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


@contextmanager
def _staging_folder(target: Path, destination: str) -> Iterator[str]:
    """Yield a temporary folder to write to; it becomes ``target``, or is removed on an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _not_writable(destination, error) from error
    try:
        yield folder
        os.chmod(folder, 0o755)  # mkdtemp creates private folders
        if target.is_dir():
            target.rmdir()
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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


def _iter_formatted(
    config: DatasetConfig, report: DataReport, check: _RowValidator | None = None
) -> Iterator[tuple[Kind, Row]]:
    """Yield each row's kind and the row in llm-foundry's format; count them in ``report``."""
    rows = read_rows(config)  # before the preprocessor, which may import llm-foundry
    preprocess = make_preprocessor(config)
    first: Kind | None = None
    for where, row in rows:
        report.rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if preprocess is not None:
                row = preprocess_row(preprocess, row, where)
            kind, formatted = to_foundry_row(row, where, report)
            if check is not None and kind == (first or kind):
                check(kind, formatted, where, report)
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
    columns: Mapping[str, str],
    rows: Iterator[tuple[Kind, Row]],
    folder: str,
    compression: str | None,
    advance: Callable[[], None],
) -> None:
    """Write all rows into ``folder``.

    Raises:
        _NeedsColumn: A row has a column that is not among ``columns``.
    """
    from streaming import MDSWriter

    # No `with`: after an exception it would still write an index.json.
    writer = MDSWriter(
        out=folder, columns=dict(columns), compression=compression, hashes=["xxh64"],
        size_limit=SHARD_BYTES,
    )  # fmt: skip
    for _, row in rows:
        for column in _AT_NEED:
            if column in row and column not in columns:
                raise _NeedsColumn(column)
        writer.write({column: _as_written(row.get(column)) for column in columns})
        advance()
    writer.finish()


def _as_written(value: object) -> object:
    """Return a column's value; turns under the role that the row has, as templates may know it."""
    if not isinstance(value, list):
        return value
    return [
        {**turn, "role": turn["role"].spelled} if isinstance(turn.get("role"), Role) else turn
        for turn in value
    ]


@contextmanager
def _progress_bar(text: str) -> Iterator[Callable[[], None]]:
    """Yield a function to call once per row."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed} rows"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns) as bar:
        task = bar.add_task(text, total=None)
        yield lambda: bar.advance(task)
        bar.update(task, total=bar.tasks[0].completed)
