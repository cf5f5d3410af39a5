"""One run at a time on a store: a lock that a crashed run's successor takes over.

``<root>/run.lock`` names its owner (host, process, run) and is touched every few seconds. No
``flock``: shared file systems differ in what they make of it. The file is made by ``link``,
which fails if it exists, and taken away by ``rename``, which only one process can do; both are
atomic on NFS. On the owner's own machine its process is looked up; on another machine the lock
is watched, and is its owner's as long as somebody touches it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from spin_composer.errors import EnvironmentFailure, StoreError

log = logging.getLogger(__name__)

FILE_NAME = "run.lock"
HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, as far as the system tells it."""
    return {
        "host": socket.gethostname(),
        "machine": f"{_text('/proc/sys/kernel/random/boot_id')} {_namespace()}",
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }


class StoreLock:
    """The lock of a store's folder. Hold it on one rank only.

    Args:
        root: The store's folder.
        lease_seconds: A lock of another machine that nobody touched for so long is taken over.
    """

    def __init__(self, root: Path, lease_seconds: float = LEASE_SECONDS):
        self.path = root / FILE_NAME
        self.lease_seconds = lease_seconds
        self._content = ""
        self._stop = threading.Event()
        self._lost = False

    def acquire(self, run_name: str) -> None:
        """Take the lock, also from a run that crashed, or from an earlier one of this process.

        Raises:
            StoreError: If another run holds it; names it and the remedy.
            EnvironmentFailure: If the store's folder cannot be one.
        """
        if self._content and self._read() == self._content:
            return
        if self.path.parent.is_file():
            raise EnvironmentFailure(
                f"{self.path.parent} is a file. Set spin.store to a folder that the run may write."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        owner = {**this_process(), "run": run_name, "token": uuid.uuid4().hex}
        self._content = json.dumps(owner)
        while not self._create():
            held = self._read()
            if held is None:
                continue  # released meanwhile
            self._require_dead(held)
            self._remove(held)
        self._lost, self._stop = False, threading.Event()
        threading.Thread(target=self._beat, args=(self._stop,), daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """Raise if another run took the lock, as it may if this one was long suspended.

        Raises:
            StoreError: Names the other run.
        """
        if self._lost:
            raise StoreError(
                f"{self.path.parent} was taken over by another run ({self._read()}) while this one "
                "did not answer. Let one of them go on."
            )

    def release(self) -> None:
        """Give the lock back if it is this object's."""
        self._stop.set()
        atexit.unregister(self.release)
        # A forked process has this object too, but not the lock.
        if self._content and self._read() == self._content and self._is_ours(self._content):
            self.path.unlink(missing_ok=True)
        self._content = ""

    def _create(self) -> bool:
        aside = self.path.with_name(f".{FILE_NAME}.{uuid.uuid4().hex[:8]}")
        try:
            aside.write_text(self._content)
            os.link(aside, self.path)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _is_ours(self, found: str) -> bool:
        """Tell whether a lock is this process's: this object's, or that of another Trainer."""
        try:
            owner = json.loads(found)
            return {name: owner[name] for name in this_process()} == this_process()
        except (ValueError, KeyError, TypeError):
            return False

    def _read(self) -> str | None:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None

    def _require_dead(self, held: str) -> None:
        try:
            owner = json.loads(held)
            pid, machine = int(owner["pid"]), owner["machine"]
        except (ValueError, KeyError, TypeError):
            owner = None
        me = this_process()
        if owner is not None and machine == me["machine"]:
            if pid == me["pid"]:
                return
            alive = _start_time(pid) == owner["started"]
        else:
            alive = self._is_touched(held)
        if alive:
            raise StoreError(
                f"{self.path.parent} is in use by {_shown(owner)}. Wait for that run or stop it; "
                "or give this one a run_name or spin.store of its own."
            )
        log.warning(f"{self.path.parent}: the lock of {_shown(owner)}, which has died, is taken.")

    def _is_touched(self, held: str) -> bool:
        """Watch a lock for the lease; clocks of two machines are not compared."""
        log.warning(f"{self.path} is another machine's; watching it for {self.lease_seconds:g} s.")
        before = self._touched_ns()
        deadline = time.monotonic() + self.lease_seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.lease_seconds / 10))
            if self._read() != held:
                return False  # released, or another successor was quicker: look again
            if self._touched_ns() != before:
                return True
        return False

    def _touched_ns(self) -> int:
        try:
            with open(self.path) as file:  # opening makes a network file system look again
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return 0

    def _remove(self, held: str) -> None:
        """Take away the dead owner's lock; put back one that came in between."""
        aside = self.path.with_name(f".{FILE_NAME}.{uuid.uuid4().hex[:8]}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        try:
            if aside.read_text() != held:
                os.link(aside, self.path)
        except FileExistsError:
            pass  # a third one has it
        finally:
            aside.unlink(missing_ok=True)

    def _beat(self, stop: threading.Event) -> None:
        missed = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                found = self._read()
                missed = missed + 1 if found is None else 0
                if missed > 1 or (found is not None and not self._is_ours(found)):
                    self._lost = not stop.is_set()
                    return
                if found is not None:
                    os.utime(self.path)
            except OSError as error:  # the file system is away for a moment: try again
                log.warning(f"{self.path}: {error}")


def _shown(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "an unreadable owner"
    return f"run {owner.get('run')!r} (process {owner.get('pid')} on {owner.get('host')})"


def _start_time(pid: int) -> str | None:
    """Return when a process started, in ticks since boot; None if it is not there or a zombie."""
    fields = (_text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return None if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
