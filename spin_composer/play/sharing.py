"""Work shared out between ranks: who takes what, how far all are, and whether all still live."""

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
"""A rank that was not heard for so long is taken to be dead."""
_STORE_GONE_ERRORS = (DistNetworkError, DistStoreError)
"""What the key-value store raises where the process at its other end is gone."""


class SharedWork:
    """A count of pieces of work that ranks take one by one, in order; a collective to make.

    As a context, it defers signals, for which whoever works within looks between steps; it tells
    the other ranks if this one fails within, and each rank's heartbeat to
    rank 0, which ends the work if one is not heard any more: the launcher of another node may not
    know that it has died.

    Args:
        count: Pieces.
        on_heartbeat: Called now and then on rank 0; what it raises ends the work.
        progress: Whose meter counts what this rank does within pieces; shown the sums on rank 0.
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
        """Yield the pieces that this rank is to do; no other rank gets them."""
        interrupt.check()
        while (position := self._store.add(f"{self._key}/next", 1) - 1) < self.count:
            yield position
            self._check_interrupted()

    def done(self) -> None:
        """Count a piece as done."""
        self._push_counts()  # so that rank 0 has it when it learns that all is done
        self._store.add(f"{self._key}/done", 1)
        self._show()

    def wait(self) -> None:
        """Return when all pieces are done, by whatever rank.

        Raises:
            StoreError, EnvironmentFailure, RuntimeError: As :meth:`check`.
        """
        wait = poll_intervals()
        while self._store.add(f"{self._key}/done", 0) < self.count:
            self._check_interrupted()
            next(wait)
        self._show()

    def check(self) -> None:
        """Raise if another rank has failed: what it raised where a user can correct that.

        Raises:
            InputError, StoreError: What it met.
            EnvironmentFailure: If its machine failed, or it is not heard any more.
            RuntimeError: If it raised anything else; all name the rank.
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
        """Return when all ranks have come here, however long it takes; no collective.

        Raises:
            InputError, StoreError, EnvironmentFailure, RuntimeError: As :meth:`check`, if one of
                them fails instead.
        """
        self._barrier_arrivals += dist.get_world_size()
        self._store.add(f"{self._key}/met", 1)
        wait = poll_intervals()
        while self._store.add(f"{self._key}/met", 0) < self._barrier_arrivals:
            self._check_interrupted()
            next(wait)

    def report_failure(self, error: BaseException) -> None:
        """Tell the other ranks that this one failed, unless another failure was reported before."""
        with suppress(*_STORE_GONE_ERRORS):  # the store's process may be what failed
            if not self._store.check([f"{self._key}/failed"]):
                code, said = explain(error) or (1, error)
                self._fail(code, f"rank {self._rank} failed in play: {said}")

    def _fail(self, code: int, text: str) -> None:
        self._store.set(f"{self._key}/failed", f"{code} {text}")

    def _push_counts(self) -> None:
        """Add this rank's counts to those of all."""
        if self._progress is not None:
            with self._push_lock:  # the heartbeat's thread and the rank's own
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
        """Often where a user looks on, and never more often than one process can answer."""
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
                return  # the store's process is gone, which the rank's own thread meets as well
            except Exception as error:  # the thread stops, which is not the silence of a dead rank
                self.report_failure(error)
                return

    def _check_remote_signals(self) -> None:
        """Stop this rank's work, wherever it is, if another rank was interrupted."""
        failed = f"{self._key}/failed"
        if self._store.check([failed]):
            code = int(self._store.get(failed).split()[0])
            if code > 128:
                interrupt.record_signal(code - 128)

    def _check_heartbeats(self, seen: dict[int, tuple[int, float]]) -> None:
        """Compare every rank's pulse with the last one heard; end the work if one is silent."""
        now = time.monotonic()
        for rank in range(dist.get_world_size()):
            beat = self._store.add(self._heartbeat_key(rank), 0)
            if rank not in seen or seen[rank][0] != beat:
                seen[rank] = (beat, now)
            elif now - seen[rank][1] > HEARTBEAT_TIMEOUT_SECONDS:
                self._fail(
                    EnvironmentFailure.exit_code,
                    f"rank {rank} was not heard for {HEARTBEAT_TIMEOUT_SECONDS:g} s in play: its "
                    f"process or its machine is gone. {RESUME_REMEDY}",
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
