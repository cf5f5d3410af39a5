"""Tokenization in several processes, with the results of one.

Processes are forked, like those of torch's DataLoader, once the first rows are tokenized: each has
the tokenizer, the compiled template and any ``preprocessing_fn`` as they are, without pickling them
or importing anything. What happens once per data set (a note on the first row of its kind, a
warning, an error) must not happen once per process: a process that comes upon it gives its rows
back, and they are tokenized where one process would have tokenized them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.counts import DataReport
from spin_composer.data.examples import Example
from spin_composer.data.files import RawRow
from spin_composer.errors import EnvironmentFailure

Build = Callable[[Location, object, DataReport], Example]

_CHUNK_ROWS = 128
_CHUNKS_PER_PROCESS = 3
_MOST_PROCESSES = 16
"""The process that reads the rows serves no more."""
_WATCH_SECONDS = 1.0


def num_processes(given: int | None) -> int:
    """Return how many processes tokenize: the setting, else one per core that this one may use."""
    if "fork" not in multiprocessing.get_all_start_methods() or _may_start_none():
        return 1
    if given is not None:
        return given
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES)


def _may_start_none() -> bool:
    """Tell whether this is a process of a pool, which Python does not let start others."""
    return multiprocessing.current_process().daemon


@dataclass(frozen=True)
class TokenizedRows:
    """The results of some successive rows, quick to send to another process."""

    tokens: np.ndarray
    """[sum P + R] int32, prompts and responses one after another."""
    lengths: np.ndarray
    """[n, 2] int64, tokens of each prompt and response."""
    truncated: np.ndarray
    """[n] bool."""
    faults: list[BadRow]
    """The errors of the rows that are left out, in order."""
    report: DataReport
    """The counts, the rows that are left out among those read only."""

    def examples(self) -> list[Example]:
        """Return the examples, whose ids stay in one array."""
        parts = np.split(self.tokens, np.cumsum(self.lengths.reshape(-1))[:-1])
        return [
            Example(parts[2 * i], parts[2 * i + 1], bool(cut))
            for i, cut in enumerate(self.truncated)
        ]


class Parallel:
    """Processes that tokenize rows.

    Args:
        build: Returns a row's example; called in the processes, which begin as copies of this one.
        skip: Leave bad rows out.
        processes: How many.
    """

    def __init__(self, build: Build, skip: bool, processes: int) -> None:
        self._pool = ProcessPoolExecutor(
            processes, multiprocessing.get_context("fork"), _begin, (build, skip, os.getpid())
        )
        self._most = processes * _CHUNKS_PER_PROCESS
        self._sent: deque[tuple[list[RawRow], Future[TokenizedRows | None]]] = deque()
        self._rows: Iterator[RawRow] = iter(())

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def tokenize(
        self, rows: Iterator[RawRow], report: DataReport
    ) -> Iterator[tuple[list[RawRow], TokenizedRows | None]]:
        """Yield rows and their results, in order; None for rows that the caller must tokenize.

        Args:
            rows: All further rows.
            report: The counts so far, which the caller keeps up to date.

        Raises:
            EnvironmentFailure: A process was killed.
        """
        self._rows = rows
        try:
            while self._fill(report):
                given, future = self._sent.popleft()
                failure = future.exception()
                if isinstance(failure, BrokenProcessPool):
                    raise failure
                # Any other says that rows, or what is made of them, cannot be sent: they stay here.
                yield given, future.result() if failure is None else None
        except BrokenProcessPool as failure:  # also of sending rows
            raise EnvironmentFailure(
                "train_loader.dataset: a process that tokenizes rows was killed, probably for "
                "lack of memory. Set train_loader.dataset.num_proc to fewer processes."
            ) from failure

    def rest(self) -> Iterator[RawRow]:
        """Return the rows that follow those that were yielded last."""
        return chain(chain.from_iterable(given for given, _ in self._sent), self._rows)

    def _fill(self, report: DataReport) -> bool:
        """Keep the processes busy; return whether there is anything to wait for."""
        while len(self._sent) < self._most:
            given = list(islice(self._rows, _CHUNK_ROWS))
            if not given:
                break
            with warnings.catch_warnings():
                # Python's of 3.12 on: other threads may hold locks. The copies use none of theirs.
                warnings.filterwarnings("ignore", ".*fork\\(\\) may lead", DeprecationWarning)
                self._sent.append((given, self._pool.submit(_tokenize, given, report.begun())))
        return bool(self._sent)


_build: Build
_skip: bool


def _begin(build: Build, skip: bool, parent: int) -> None:
    """Prepare a process: it ends with its parent, which alone hears of interrupts."""
    global _build, _skip
    _build, _skip = build, skip
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _tokenize(rows: Sequence[RawRow], begun: DataReport) -> TokenizedRows | None:
    """Return the results of rows; None if there is anything to note, to warn of or to raise."""
    report, faults, examples = replace(begun, notes=list(begun.notes)), [], []
    with _Records() as records:
        for where, row in rows:
            report.rows += 1
            try:
                examples.append(_build(where, row, report))
            except BadRow as fault:
                if not _skip:
                    return None
                faults.append(fault)
            except Exception:  # it is raised where the rows are tokenized again
                return None
    if report.notes != begun.notes or records.seen:
        return None
    parts = [part for example in examples for part in (example.prompt, example.response)]
    return TokenizedRows(
        np.concatenate(parts) if parts else np.empty(0, np.int32),
        np.array([len(part) for part in parts], np.int64).reshape(-1, 2),
        np.array([example.truncated for example in examples], bool),
        faults,
        report.since(begun),
    )


class _Records(logging.Handler):
    """Keeps back what this package logs: the process that began this one is to log it."""

    def __init__(self) -> None:
        super().__init__()
        self._logger = logging.getLogger("spin_composer")
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        self.seen = True

    def __enter__(self) -> _Records:
        self._before = self._logger.handlers, self._logger.propagate
        self._logger.handlers, self._logger.propagate = [self], False
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._logger.handlers, self._logger.propagate = self._before
