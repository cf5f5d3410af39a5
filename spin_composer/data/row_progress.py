"""The progress of tokenization: a bar on rank 0's terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)

_ROWS_PER_LINE = 50_000


class RowProgress:
    """Shows how many rows are tokenized, on rank 0.

    Args:
        stream: A bar is drawn on it if it is a terminal; stderr if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._shows = _is_rank_zero()
        self._stream = stream or sys.stderr
        self._start, self._rows = time.monotonic(), 0
        self._bar: tqdm | None = None

    def __enter__(self) -> RowProgress:
        if self._shows and self._stream.isatty():
            self._bar = tqdm(
                desc="SPIN data", unit=" rows", file=self._stream, dynamic_ncols=True, delay=1
            )
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, rows: int) -> None:
        """Show the number of rows so far."""
        if self._bar is not None:
            self._bar.update(rows - self._rows)
        elif self._shows and rows // _ROWS_PER_LINE > self._rows // _ROWS_PER_LINE:
            seconds = max(time.monotonic() - self._start, 1e-9)
            log.info("SPIN data: %d rows tokenized, %.0f rows/s.", rows, rows / seconds)
        self._rows = rows


def _is_rank_zero() -> bool:
    if "composer" not in sys.modules:  # a command: importing it would take seconds
        return True
    from composer.utils import dist

    return dist.get_global_rank() == 0
