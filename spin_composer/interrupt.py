"""Graceful handling of Ctrl-C, SIGTERM and other signals.

The handler records the signal. While ranks work together (play, training) it does nothing else:
they check for recorded signals between steps, and agree where to stop. Elsewhere (imports, model,
data) it raises :class:`Interrupted` immediately, as Composer's own handler would.

A thread of this module notices every signal even while the main thread is in a collective or a
kernel: it ends the process on a second Ctrl-C, or if the work does not reach a stopping point in
time. That is like ``kill -9``, after which a run can be resumed. Launchers kill processes half a
minute after a signal in any case.
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

MESSAGE = "interrupted; the same command resumes the run"
LIMIT_SECONDS = 15.0
"""Time from a signal until a process that has not stopped by itself is ended."""
_LEAST_TO_LEAVE_SECONDS = 2.0
_AGAIN_SECONDS = 0.2
_AGAIN_LAUNCHED_SECONDS = 1.0
"""A launcher forwards the Ctrl-C that the terminal has sent to its ranks too: it counts once."""
_FATAL = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ends the process, with a shell's exit code: 128 + its number.

    A SystemExit, so that ``llmfoundry train`` exits without a traceback too.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class _SignalWatch:
    """The state of signal handling, from :meth:`install` to :meth:`uninstall`."""

    exit_deadline: float | None = None
    """When the process must have exited after an interruption; None without a deadline."""

    def __init__(self) -> None:
        self.installed: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        """The previous handler of each signal."""
        self.owns_process = False
        """This package controls the process until it exits (command line)."""
        self.number = 0
        self.since = 0.0
        self.message = MESSAGE
        self.announced = False
        self.raised = False
        self.deferred = 0
        self.between_events = False
        self.no_deadline = False
        """Set while a checkpoint is still to be saved, which may take any time."""
        self.publish: Callable[[int], None] = lambda number: None
        """Publishes the signal, so that ranks that lose this one can tell why."""
        self.poll: Callable[[], int] = lambda: 0
        """Returns the signal that another rank has published, or 0."""
        self._first_at: float | None = None
        self._pipe: tuple[int, int] | None = None
        self._old_wakeup = -1

    def install(self, numbers: tuple[int, ...], owns_process: bool) -> None:
        if threading.current_thread() is not threading.main_thread() or hasattr(sys, "ps1"):
            return  # only the main thread may; Ctrl-C does not end an interactive session
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
        # A checkpoint that was saved after the signal may still have to be uploaded.
        _SignalWatch.exit_deadline = (
            self.since + LIMIT_SECONDS if self.number and not self.no_deadline else None
        )
        for number, old in self.installed.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, old)
        pipe = self._pipe
        if pipe is not None:
            signal.set_wakeup_fd(self._old_wakeup)
            os.write(pipe[1], b"\0")  # wakes the thread, which then exits
            os.close(pipe[1])
        self.__init__()

    def note(self, number: int) -> None:
        if not self.number:
            self.since = time.monotonic()
            self.number = number
            if self._pipe is not None:
                with suppress(OSError):
                    os.write(self._pipe[1], b"\0")  # wakes the thread: it has a deadline now

    def exception(self, number: int) -> Interrupted:
        """Announce the interruption and return the exception that ends the process."""
        self.note(number)
        self.raised = True
        announce()
        # llm-foundry's default log level is debug: Composer would log each callback it closes.
        logging.getLogger("composer").setLevel(logging.INFO)
        self.publish(number)
        if not self.owns_process:
            self.uninstall()  # from here on the caller is in control
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
        """Return the time until the process is ended; None without a deadline."""
        if not self.number:
            return None
        if self.no_deadline:
            return 1.0  # then check again
        return max(0.0, self.since + LIMIT_SECONDS - time.monotonic())

    def end(self) -> None:
        """End the process now."""
        if not self.announced and _is_rank_zero():
            os.write(2, f"{self.message}\n".encode())  # another thread may hold the stream's lock
        os._exit(128 + self.number)


_watch = _SignalWatch()


def install(*more: int, owns_process: bool = False) -> None:
    """Handle Ctrl-C, SIGTERM and other signals; call it again after Composer was imported.

    Args:
        more: Other signals.
        owns_process: This package controls the process until it exits.
    """
    _watch.install((*_FATAL, *more), owns_process)


def owns_process() -> bool:
    """Return whether this package controls the process until it exits."""
    return _watch.owns_process


def uninstall() -> None:
    """Restore the previous handlers, and forget recorded signals."""
    _watch.uninstall()


def pending_signal() -> int:
    """Return the number of the recorded signal, or 0."""
    return _watch.number


def record_signal(number: int) -> None:
    """Record a signal that another rank received."""
    _watch.note(number)


def check() -> None:
    """Stop here if a signal was recorded; to be called between steps while signals are deferred.

    In another thread than the main one nothing happens: the main thread stops, and ends what it has
    started.

    Raises:
        Interrupted: If a signal was recorded.
    """
    if _watch.number and threading.current_thread() is threading.main_thread():
        raise _watch.exception(_watch.number)


def exception_for(number: int) -> Interrupted:
    """Return the exception that ends this process because of a signal."""
    return _watch.exception(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Only record signals within the context; the code in it calls :func:`check`."""
    _watch.deferred += 1
    try:
        yield
    finally:
        _watch.deferred = max(0, _watch.deferred - 1)


def set_deferred(on: bool, no_deadline: bool = False) -> None:
    """Start or stop deferring signals between two events; see :func:`deferred`.

    Args:
        on: Start it.
        no_deadline: Do not end the process while signals are deferred.
    """
    if _watch.no_deadline and not on:
        _watch.since = time.monotonic()
    _watch.between_events, _watch.no_deadline = on, on and no_deadline


def connect_ranks(publish: Callable[[int], None], poll: Callable[[], int]) -> None:
    """Set the functions by which ranks exchange signals."""
    _watch.publish, _watch.poll = publish, poll


def signal_causing(error: BaseException) -> int:
    """Return the number of the signal that caused an error, or 0.

    Any error after a signal (a lost rank, a truncated file) is attributed to it.
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
    """Add the checkpoint that was saved after the signal to the message."""
    _watch.message = f"{MESSAGE} from {checkpoint}, which was saved before"


def exit_process(code: int | str | None) -> None:
    """Exit; after an interruption the process ends soon even if threads are still blocked."""
    if isinstance(code, int) and code > 128:
        if _watch.exit_deadline is not None:
            left = max(_LEAST_TO_LEAVE_SECONDS, _watch.exit_deadline - time.monotonic())
            timer = threading.Timer(left, os._exit, [code])
            timer.daemon = True
            timer.start()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it to exiting processes
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.exit(code)


def _is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _reset_in_child() -> None:
    """Reset signal handling in a forked process: it would write to the parent's pipe."""
    if not _watch.installed:
        return
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in _watch.installed:
            # A data loader's worker finishes the current batch; its parent ends it.
            busy = _watch.deferred or _watch.between_events
            ignored = number not in _FATAL or (number == signal.SIGINT and busy)
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    for end in _watch._pipe or ():
        os.close(end)
    _watch.__init__()


os.register_at_fork(after_in_child=_reset_in_child)
