"""Work shared between ranks: claiming it, the progress of all ranks, and their heartbeats."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

from composer.utils import dist
from torch.distributed import DistNetworkError, DistStoreError

from spin_composer import interrupt
from spin_composer.distributed import from_rank_zero, key_value_store, poll_intervals
from spin_composer.errors import RESUME_REMEDY, EnvironmentFailure, explain, rebuild_error
from spin_composer.play.progress import FIELDS, Counts, Progress
from spin_composer.store.layout import HEARTBEAT_SECONDS

PROGRESS_SECONDS = 1.0
RANKS_PER_PROGRESS_SECOND = 100
HEARTBEAT_TIMEOUT_SECONDS = 180.0
"""A rank without a heartbeat for so long is considered dead."""
_STORE_GONE_ERRORS = (DistNetworkError, DistStoreError)
"""Errors of the key-value store if the process that hosts it is gone."""


class SharedWork:
    """Items of work that ranks claim one by one, in order; creating it is a collective.

    As a context manager it defers signals (the caller checks for them between steps), notifies the
    other ranks if this one fails, and sends heartbeats to rank 0, which ends the work if a rank is
    silent: the launcher of another node may not know that it has died.

    Args:
        count: Number of items.
        on_heartbeat: Called periodically on rank 0; an exception ends the work.
        progress: Has the meter of this rank's progress; rank 0 shows the sums.
    """

    def __init__(
        self,
        count: int,
        on_heartbeat: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ):
        self.count = count
        self._on_heartbeat = on_heartbeat
        self._progress = progress
        self._push_lock = threading.Lock()
        self._key = from_rank_zero(lambda: f"spin/{uuid.uuid4()}")
        self._store = key_value_store()
        self._rank = dist.get_global_rank()
        self._barrier_arrivals = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def claims(self) -> Iterator[int]:
        """Yield the items that this rank has claimed; no other rank gets them."""
        interrupt.check()
        while (position := self._store.add(f"{self._key}/next", 1) - 1) < self.count:
            yield position
            self._check_interrupted()

    def done(self) -> None:
        """Mark an item as done."""
        self._push_counts()  # before rank 0 learns that everything is done
        self._store.add(f"{self._key}/done", 1)
        self._show()

    def wait(self) -> None:
        """Wait until all items are done, by any rank.

        Raises:
            StoreError, EnvironmentFailure, RuntimeError: As :meth:`check`.
        """
        wait = poll_intervals()
        while self._store.add(f"{self._key}/done", 0) < self.count:
            self._check_interrupted()
            next(wait)
        self._show()

    def check(self) -> None:
        """Raise if another rank has failed; the message names the rank.

        Raises:
            InputError, StoreError: The error of that rank.
            EnvironmentFailure: If its machine failed, or its heartbeats stopped.
            RuntimeError: If it raised anything else.
        """
        failed = f"{self._key}/failed"
        if self._store.check([failed]):
            code, _, text = self._store.get(failed).decode().partition(" ")
            raise rebuild_error(int(code), text)

    def _check_interrupted(self) -> None:
        interrupt.check()
        self.check()

    def __enter__(self) -> SharedWork:
        self._deferred = interrupt.deferred()
        self._deferred.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._deferred.__exit__(None, None, None)
        self._stop.set()
        self._thread.join()
        if error is not None:
            self.report_failure(error)

    def barrier(self) -> None:
        """Wait, without a collective or timeout, until all ranks have called this.

        Raises:
            InputError, StoreError, EnvironmentFailure, RuntimeError: See :meth:`check`.
        """
        self._barrier_arrivals += dist.get_world_size()
        self._store.add(f"{self._key}/met", 1)
        wait = poll_intervals()
        while self._store.add(f"{self._key}/met", 0) < self._barrier_arrivals:
            self._check_interrupted()
            next(wait)

    def report_failure(self, error: BaseException) -> None:
        """Notify the other ranks that this one failed, unless a failure was reported before."""
        with suppress(*_STORE_GONE_ERRORS):  # it may be the store's process that failed
            if not self._store.check([f"{self._key}/failed"]):
                code, said = explain(error) or (1, error)
                self._fail(code, f"rank {self._rank} failed in play: {said}")

    def _fail(self, code: int, text: str) -> None:
        self._store.set(f"{self._key}/failed", f"{code} {text}")

    def _push_counts(self) -> None:
        """Add this rank's counts to the sums."""
        if self._progress is not None:
            with self._push_lock:  # called by the heartbeat thread and the main thread
                for name, more in self._progress.meter.pop_changes().items():
                    self._store.add(f"{self._key}/counts/{name}", more)

    def _show(self) -> None:
        done = self._store.add(f"{self._key}/done", 0) if self._rank == 0 else 0
        if self._on_heartbeat is not None and self._rank == 0:
            self._on_heartbeat()
        self._push_counts()
        if self._progress is not None and self._rank == 0:
            sums = {name: self._store.add(f"{self._key}/counts/{name}", 0) for name in FIELDS}
            self._progress.show(Counts(**sums), done)

    def _heartbeat_seconds(self) -> float:
        """Return the interval: short if progress is shown, but bounded by the store's load."""
        shown = max(PROGRESS_SECONDS, dist.get_world_size() / RANKS_PER_PROGRESS_SECOND)
        return min(
            HEARTBEAT_SECONDS if self._progress is None else shown, HEARTBEAT_TIMEOUT_SECONDS / 4
        )

    def _send_heartbeats(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        while not self._stop.wait(self._heartbeat_seconds()):
            try:
                self._store.add(self._heartbeat_key(self._rank), 1)
                self._check_remote_signals()
                self._show()
                if self._rank == 0:
                    self._check_heartbeats(seen)
            except _STORE_GONE_ERRORS:
                return  # the store's process is gone: the main thread raises as well
            except Exception as error:  # else the heartbeats would just stop, as of a dead rank
                self.report_failure(error)
                return

    def _check_remote_signals(self) -> None:
        """Record the signal of an interrupted rank, which stops this rank too."""
        failed = f"{self._key}/failed"
        if self._store.check([failed]):
            code = int(self._store.get(failed).split()[0])
            if code > 128:
                interrupt.record_signal(code - 128)

    def _check_heartbeats(self, seen: dict[int, tuple[int, float]]) -> None:
        """Check every rank's heartbeat; end the work if one is silent."""
        now = time.monotonic()
        for rank in range(dist.get_world_size()):
            beat = self._store.add(self._heartbeat_key(rank), 0)
            if rank not in seen or seen[rank][0] != beat:
                seen[rank] = (beat, now)
            elif now - seen[rank][1] > HEARTBEAT_TIMEOUT_SECONDS:
                self._fail(
                    EnvironmentFailure.exit_code,
                    f"rank {rank} has not reported for {HEARTBEAT_TIMEOUT_SECONDS:g} s in play: "
                    f"its process or its machine is gone. {RESUME_REMEDY}",
                )

    def _heartbeat_key(self, rank: int) -> str:
        return f"{self._key}/pulse/{rank}"


def on_every_node(make: Callable[[], None]) -> None:
    """Run ``make`` on one rank of every node, and wait until all have; a collective.

    Raises:
        StoreError, EnvironmentFailure, RuntimeError: What a node's rank raised, on every rank.
    """
    nodes = dist.get_world_size() // dist.get_local_world_size()
    with SharedWork(nodes) as work:
        if dist.get_local_rank() == 0:
            make()
            work.done()
        work.wait()
