"""Slices of a split (``train[:99%]``, ``train[10:20]+train[50:]``) for our own readers.

``datasets`` applies them to what it loads; a local file or a saved Dataset has no splits, and
ignoring a slice there would put held-out rows into the training set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice

from spin_composer.data.files import RawRow
from spin_composer.errors import InputError, format_value

_WHERE = "train_loader.dataset"


def split_rows(
    read: Callable[[], Iterator[RawRow]],
    num_rows: Callable[[], int],
    split: str | None,
    source: str,
    names: Collection[str] = ("train",),
) -> Iterator[RawRow]:
    """Return the rows of ``split``, numbered as in the whole source.

    Args:
        read: Returns an iterator over all rows.
        num_rows: Counts the rows; called only if the split is a slice.
        split: None or a plain name for all rows, or slices in the syntax of ``datasets``.
        source: The file or folder, for messages.
        names: Accepted names of the source's only split.

    Raises:
        InputError: The split has another name, or is not a slice.
    """
    if split is None or split in names:
        return read()
    asked = [part.partition("[")[0].strip() for part in split.split("+")]
    if any(name not in names for name in asked):
        raise InputError(
            f"{_WHERE}.split={split!r}: {format_value(source, 200)} has only the split "
            f"{' or '.join(names)}. Set split: {next(iter(names))} (or a slice of it, such as "
            f"{next(iter(names))}[:99%]), or name the file or folder of the rows that you mean."
        )
    from datasets import ReadInstruction

    total = num_rows()
    try:
        slices = ReadInstruction.from_spec(split).to_absolute(dict.fromkeys(asked, total))
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"{_WHERE}.split={split!r} is not a slice of the {total} rows of "
            f"{format_value(source, 200)} ({format_value(str(error), 120)}). Write it as "
            "train[:99%] or train[10:20]."
        ) from error
    return chain.from_iterable(islice(read(), part.from_, part.to) for part in slices)
