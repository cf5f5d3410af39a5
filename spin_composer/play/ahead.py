"""The next unit's prompts are answered elsewhere while this rank scores and stores a unit.

For engines whose generation needs neither the model nor this rank's device: a server would wait
while a unit is scored. Only the answering is moved to a thread, and at most one unit is ahead;
units are claimed, scored and stored by the main thread, in the order of their claims.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from types import TracebackType

from spin_composer import interrupt
from spin_composer.play.plan import PlayUnit
from spin_composer.play.player import Draft, Job, Player, Reports
from spin_composer.play.sharing import SharedWork

_POLL_SECONDS = 0.2


class _Abandoned(Exception):
    """Ends the answering of a unit that nobody waits for anymore."""


class DraftAhead:
    """Drafts one unit at a time in a thread, which has ended when the context ends.

    Args:
        player: Makes the drafts.
        iteration: Index of the iteration.
        check: Called while a draft is waited for; raises if another rank has failed.
    """

    def __init__(self, player: Player, iteration: int, check: Callable[[], None]):
        self.player = player
        self.iteration = iteration
        self._check = check
        self._abandon = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, job: Job) -> Callable[[], Draft]:
        """Start to draft a unit; return what waits for the draft, or raises what drafting raised.

        Args:
            job: A unit that is replayed is read when it is waited for, by the caller's thread: the
                store is used by one thread only.
        """
        if not isinstance(job[1], PlayUnit):
            return lambda: self.player.draft(self.iteration, *job)
        future: Future[Draft] = Future()
        # A daemon: an interruption that ends the process must not wait for a server.
        self._thread = threading.Thread(target=self._draft, args=(job, future), daemon=True)
        self._thread.start()
        return lambda: self._wait_for(future)

    def _wait_for(self, future: Future[Draft]) -> Draft:
        """Wait for a draft in the main thread, which alone stops at a signal."""
        while not wait([future], _POLL_SECONDS).done:
            interrupt.check()
            self._check()
        return future.result()

    def _draft(self, job: Job, future: Future[Draft]) -> None:
        try:
            future.set_result(self.player.draft(self.iteration, *job, self._check_wanted))
        except BaseException as error:  # raised again by future.result()
            future.set_exception(error)

    def _check_wanted(self) -> None:
        if self._abandon.is_set():
            raise _Abandoned

    def __enter__(self) -> DraftAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._abandon.set()
        if self._thread is not None:
            self._thread.join()


def run_ahead(player: Player, work: SharedWork, iteration: int, jobs: Sequence[Job]) -> Reports:
    """Make units independently of the other ranks, the next one's prompts answered meanwhile.

    A :data:`~spin_composer.play.player.Schedule`. A rank claims a unit once the one before has been
    answered, so that none waits here that another rank could make.
    """
    with DraftAhead(player, iteration, work.check) as ahead:
        answered: Draft | None = None
        for position in work.claims():
            if player.recover(iteration, *jobs[position]):
                yield None
                continue
            answers = ahead.start(jobs[position])
            if answered is not None:
                yield player.finish(iteration, answered)
            answered = answers()
        if answered is not None:
            yield player.finish(iteration, answered)
