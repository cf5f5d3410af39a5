"""Ctrl-C, SIGTERM and the like: noted at once, obeyed where nothing is left half done.

The handler notes the signal. Where ranks work together (play, training) that is all: they look at
what is noted between two steps of the work, and agree where to stop. Elsewhere (imports, the model,
the data) it also raises :class:`Interrupted` at once, as Composer's own handler would.

A thread of this module hears every signal even while the main thread is within a collective or a
kernel: it ends the process on a second Ctrl-C, and when the work has not come to a place to stop
in time, as ``kill -9`` would, after which a run goes on. Launchers kill half a minute after a
signal, whatever ranks do.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

MESSAGE = "interrupted; the same command goes on"
LIMIT_SECONDS = 15.0
"""From a signal to the end of a process that has not stopped by itself."""
_LEAST_TO_LEAVE_SECONDS = 2.0
_AGAIN_SECONDS = 0.2
_AGAIN_LAUNCHED_SECONDS = 1.0
"""A launcher passes Ctrl-C on to ranks that a terminal sent it to: that is no second one."""
_FATAL = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ends the process, with the exit code of a shell: 128 + its number.

    A SystemExit: under ``llmfoundry train`` it leaves without a traceback, too.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class _SignalWatch:
    """The signals of this process, from :meth:`install` to :meth:`uninstall`."""

    exit_deadline: float | None = None
    """When the process of the last interruption is to have ended; None if it may take its time."""

    def __init__(self) -> None:
        self.installed: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        """The handler before ours, by signal."""
        self.owns_process = False
        """The process is ours from the command line to its exit."""
        self.number = 0
        self.since = 0.0
        self.message = MESSAGE
        self.announced = False
        self.raised = False
        self.deferred = 0
        self.between_events = False
        self.no_deadline = False
        """Set while a checkpoint is still to be saved, however long that takes."""
        self.publish: Callable[[int], None] = lambda number: None
        """Lets the other ranks know, that one which loses this rank may say why."""
        self.poll: Callable[[], int] = lambda: 0
        """Returns the signal that another rank has told of, or 0."""
        self._first_at: float | None = None
        self._pipe: tuple[int, int] | None = None
        self._old_wakeup = -1

    def install(self, numbers: tuple[int, ...], owns_process: bool) -> None:
        if threading.current_thread() is not threading.main_thread() or hasattr(sys, "ps1"):
            return  # only the main thread may; in an interactive session Ctrl-C ends no process
        self.owns_process = self.owns_process or owns_process
        for number in numbers:
            old = signal.getsignal(number)
            if old != self._handle:  # Composer installs its own when it is imported
                self.installed[number] = old
                signal.signal(number, self._handle)
        if self._pipe is None:
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=self._pipe, daemon=True).start()

    def uninstall(self) -> None:
        # What was saved for this signal may have to be uploaded yet.
        _SignalWatch.exit_deadline = (
            self.since + LIMIT_SECONDS if self.number and not self.no_deadline else None
        )
        for number, old in self.installed.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, old)
        pipe = self._pipe
        if pipe is not None:
            signal.set_wakeup_fd(self._old_wakeup)
            os.write(pipe[1], b"\0")  # which wakes the thread, and ends it
            os.close(pipe[1])
        self.__init__()

    def note(self, number: int) -> None:
        if not self.number:
            self.since = time.monotonic()
            self.number = number
            if self._pipe is not None:
                with suppress(OSError):
                    os.write(self._pipe[1], b"\0")  # the thread has a time to keep from now on

    def exception(self, number: int) -> Interrupted:
        """Return what ends the process, and say so."""
        self.note(number)
        self.raised = True
        announce()
        # llm-foundry's log level is debug unless told: Composer tells of each callback it closes.
        logging.getLogger("composer").setLevel(logging.INFO)
        self.publish(number)
        if not self.owns_process:
            self.uninstall()  # what comes now is the caller's
        return Interrupted(number)

    def _handle(self, number: int, frame: object) -> None:
        del frame
        self.note(number)
        if not (self.deferred or self.between_events or self.raised):
            raise self.exception(number)

    def _listen(self, read_end: int, write_end: int) -> None:
        selector = selectors.DefaultSelector()  # select.select takes no descriptor above 1023
        selector.register(read_end, selectors.EVENT_READ)
        while self._pipe == (read_end, write_end):
            selector.select(self._seconds_left())
            try:
                heard = os.read(read_end, 4096)
            except BlockingIOError:
                heard = b"\0"
            if not heard:
                break
            for number in heard:
                if number in self.installed:
                    self._on_signal(number)
            left = self._seconds_left()
            if left is not None and left <= 0:
                self.end()
        selector.close()
        os.close(read_end)

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self.note(number)
            return
        least = _AGAIN_LAUNCHED_SECONDS if "WORLD_SIZE" in os.environ else _AGAIN_SECONDS
        if number == signal.SIGINT and now - self._first_at >= least:
            self.end()

    def _seconds_left(self) -> float | None:
        """Return the time until the process is ended; None if nothing ends it."""
        if not self.number:
            return None
        if self.no_deadline:
            return 1.0  # then look again
        return max(0.0, self.since + LIMIT_SECONDS - time.monotonic())

    def end(self) -> None:
        """End the process now."""
        if not self.announced and _is_rank_zero():
            os.write(2, f"{self.message}\n".encode())  # another thread may hold Python's own stream
        os._exit(128 + self.number)


_watch = _SignalWatch()


def install(*more: int, owns_process: bool = False) -> None:
    """Listen for Ctrl-C and SIGTERM, and for the signals given; again after Composer is imported.

    Args:
        more: Other signals.
        owns_process: The process is ours until it exits; else the caller decides what follows.
    """
    _watch.install((*_FATAL, *more), owns_process)


def owns_process() -> bool:
    """Tell whether the process is ours up to its exit."""
    return _watch.owns_process


def uninstall() -> None:
    """Let signals be what they were, and forget what was noted."""
    _watch.uninstall()


def pending_signal() -> int:
    """Return the number of the signal that is to end the process, or 0."""
    return _watch.number


def record_signal(number: int) -> None:
    """Note a signal that another rank got."""
    _watch.note(number)


def check() -> None:
    """Stop here if a signal was noted; to be called between two steps of what is deferred.

    Raises:
        Interrupted: If one was.
    """
    if _watch.number:
        raise _watch.exception(_watch.number)


def exception_for(number: int) -> Interrupted:
    """Return the exception that ends this process as another rank's ``number`` ends that one."""
    return _watch.exception(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, signals are noted only; whoever works there calls :func:`check`."""
    _watch.deferred += 1
    try:
        yield
    finally:
        _watch.deferred = max(0, _watch.deferred - 1)


def set_deferred(on: bool, no_deadline: bool = False) -> None:
    """Begin or end a :func:`deferred` that lies between two events.

    Args:
        on: Begin it.
        no_deadline: Meanwhile the process is not ended however far away a place to stop is.
    """
    if _watch.no_deadline and not on:
        _watch.since = time.monotonic()
    _watch.between_events, _watch.no_deadline = on, on and no_deadline


def connect_ranks(publish: Callable[[int], None], poll: Callable[[], int]) -> None:
    """Give the ways by which ranks learn of one another's signals."""
    _watch.publish, _watch.poll = publish, poll


def signal_causing(error: BaseException) -> int:
    """Return the number of the signal of which an error is the consequence, or 0.

    What goes wrong after a signal (a rank that is gone, a file cut short) is taken to be.
    """
    if isinstance(error, Interrupted):
        return error.number
    return _watch.number or _watch.poll()


def announce() -> None:
    """Print, once and on rank 0, that the run was interrupted."""
    if not _watch.announced and _is_rank_zero():
        _watch.announced = True
        print(_watch.message, file=sys.stderr, flush=True)


def set_resume_checkpoint(checkpoint: str) -> None:
    """Let the line name the checkpoint that was saved for this interruption."""
    _watch.message = f"{MESSAGE} from {checkpoint}, which was saved before"


def exit_process(code: int | str | None) -> None:
    """Exit; after an interruption the process ends soon, whatever its threads still wait for."""
    if isinstance(code, int) and code > 128:
        if _watch.exit_deadline is not None:
            left = max(_LEAST_TO_LEAVE_SECONDS, _watch.exit_deadline - time.monotonic())
            timer = threading.Timer(left, os._exit, [code])
            timer.daemon = True
            timer.start()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher's, to a process that ends anyway
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.exit(code)


def _is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _reset_in_child() -> None:
    """Make a forked process none of ours: it would write to our pipe, and ignore its parent."""
    if not _watch.installed:
        return
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in _watch.installed:
            # A loader's worker goes on until the batch under way is done; its parent ends it.
            busy = _watch.deferred or _watch.between_events
            ignored = number not in _FATAL or (number == signal.SIGINT and busy)
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    for end in _watch._pipe or ():
        os.close(end)
    _watch.__init__()


os.register_at_fork(after_in_child=_reset_in_child)
