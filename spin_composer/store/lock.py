"""The lock of a store: one run at a time; the lock of a crashed run is taken over.

``<root>/run.lock`` names its owner (host, process, run) and is touched every few seconds. It does
not use ``flock``, which shared file systems implement differently. The file is created by ``link``,
which fails if it exists, and removed by ``rename``, in which only one process can succeed; both are
atomic on NFS. On the owner's machine, its process is looked up; from another machine the lock is
watched, and counts as held while it is touched. ``object_lock`` does the same for object stores.
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
from typing import Protocol

import psutil

from spin_composer.errors import EnvironmentFailure, StoreError
from spin_composer.store.layout import HEARTBEAT_SECONDS, LOCK, temporary_name

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A lock of another machine is taken over if it is not touched for so long."""

_active_locks: list[StoreLock] = []


def this_process() -> dict[str, object]:
    """Return the identity of this process, unique across machines.

    Returns:
        ``host``; ``machine``, the boot id and the PID namespace (process ids are only valid within
        one); ``pid``; ``started``, in clock ticks since boot, which distinguishes a process from a
        later one with the same id.
    """
    return {
        "host": socket.gethostname(),
        "machine": f"{_boot_id()} {_pid_namespace()}",
        "pid": os.getpid(),
        "started": _start_ticks(psutil.Process()),
    }


class LockBackend(Protocol):
    """Storage of a lock: a file on a shared file system, or an object in an object store."""

    name: str
    """Name for messages."""

    def prepare(self) -> None:
        """Prepare the storage."""
        ...

    def read(self) -> str | None:
        """Return the lock's content; None if there is no lock."""
        ...

    def create(self, content: str) -> bool:
        """Create the lock; return False if another process has it."""
        ...

    def remove(self, content: str) -> None:
        """Remove the lock whose content is ``content``; leave any other."""
        ...

    def touch(self) -> None:
        """Renew the lock's heartbeat."""
        ...

    def last_touched(self) -> object:
        """Return a value that changes whenever the lock is touched."""
        ...


class LockFile:
    """A lock that is a file in a store's folder."""

    def __init__(self, root: Path):
        self.path = root / LOCK
        self.name = str(root)

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            EnvironmentFailure: If a file has the store's name.
        """
        if self.path.parent.is_file():
            raise EnvironmentFailure(
                f"{self.path.parent} is a file. Set algorithms.spin.store to a folder that the run "
                "may write."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> str | None:
        """See :class:`LockBackend`."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def create(self, content: str) -> bool:
        """See :class:`LockBackend`."""
        aside = self.path.with_name(temporary_name(LOCK))
        try:
            aside.write_text(content, encoding="utf-8")
            os.link(aside, self.path)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def remove(self, content: str) -> None:
        """See :class:`LockBackend`; a lock that another process created meanwhile is put back."""
        aside = self.path.with_name(temporary_name(LOCK))
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        try:
            if aside.read_text(encoding="utf-8") != content:
                os.link(aside, self.path)
        except FileExistsError:
            pass  # a third process has acquired it
        finally:
            aside.unlink(missing_ok=True)

    def touch(self) -> None:
        """See :class:`LockBackend`."""
        os.utime(self.path)

    def last_touched(self) -> object:
        """See :class:`LockBackend`."""
        try:
            with open(
                self.path, "rb"
            ) as file:  # opening a file makes NFS revalidate its attributes
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return 0


class StoreLock:
    """The lock of a store; to be held on one rank only.

    Args:
        backend: Where the lock is kept.
    """

    def __init__(self, backend: LockBackend):
        self.backend = backend
        self._content = ""
        self._stop = threading.Event()
        self._lost = False
        self._failure: Exception | None = None

    def acquire(self, run_name: str) -> None:
        """Acquire the lock, also from a crashed run or from an earlier run of this process.

        Raises:
            StoreError: If another run holds it; names it and the remedy.
            EnvironmentFailure: If a file has the store's name.
        """
        if self._content and self.backend.read() == self._content:
            return
        self.backend.prepare()
        owner = {**this_process(), "run": run_name, "token": uuid.uuid4().hex}
        self._content = json.dumps(owner)
        while not self.backend.create(self._content):
            content = self.backend.read()
            if content is None:
                continue  # released meanwhile
            self._require_dead_owner(content)
            self.backend.remove(content)
        self._lost, self._failure, self._stop = False, None, threading.Event()
        _active_locks.append(self)
        threading.Thread(target=self._heartbeat, args=(self._stop,), daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """Raise if another run has taken over the lock, which happens after a long suspension.

        Raises:
            StoreError: Names the other run.
        """
        if self._failure is not None:
            raise RuntimeError(f"{self.backend.name} is not touched any more") from self._failure
        if self._lost:
            raise StoreError(
                f"{self.backend.name} was taken over by another run ({self.backend.read()}) while "
                "this one did not respond. Continue only one of them."
            )

    def release(self) -> None:
        """Release the lock if this object holds it."""
        self._stop.set()
        if self in _active_locks:
            _active_locks.remove(self)
        atexit.unregister(self.release)
        # A forked process has a copy of this object, but not the lock.
        content, self._content = self._content, ""
        if content and self._is_ours(content) and self.backend.read() == content:
            self.backend.remove(content)

    def _is_ours(self, found: str) -> bool:
        """Return whether this process holds a lock, by this object or by an earlier Trainer."""
        try:
            owner = json.loads(found)
            return {name: owner[name] for name in this_process()} == this_process()
        except (ValueError, KeyError, TypeError):
            return False

    def _require_dead_owner(self, content: str) -> None:
        try:
            owner = json.loads(content)
            pid, machine = int(owner["pid"]), owner["machine"]
        except (ValueError, KeyError, TypeError):
            owner = None
        me = this_process()
        if owner is not None and machine == me["machine"]:
            if pid == me["pid"]:
                return
            alive = _is_running(pid, owner.get("started"))
        else:
            alive = self._is_live(content)
        if alive:
            raise StoreError(
                f"{self.backend.name} is in use by {_describe_owner(owner)}. Wait for that run or "
                "stop it; or give this one a run_name or algorithms.spin.store of its own."
            )
        log.warning(
            f"{self.backend.name}: the lock of {_describe_owner(owner)}, which has died, is taken."
        )

    def _is_live(self, content: str) -> bool:
        """Watch a lock for the duration of a lease, without comparing clocks of two machines."""
        log.warning(
            f"the lock of {self.backend.name} is another machine's; watching it for "
            f"{LEASE_SECONDS:g} s."
        )
        before = self.backend.last_touched()
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            if self.backend.read() != content:
                return False  # released, or taken over by another run: try again
            if self.backend.last_touched() != before:
                return True
        return False

    def _heartbeat(self, stop: threading.Event) -> None:
        missed = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                found = self.backend.read()
                missed = missed + 1 if found is None else 0
                if missed > 1 or (found is not None and not self._is_ours(found)):
                    self._lost = not stop.is_set()
                    return
                if found is not None:
                    self.backend.touch()
            except (OSError, EnvironmentFailure) as error:  # temporarily unavailable: try again
                log.warning(f"{self.backend.name}: {error}")
            except Exception as error:  # without heartbeats others would take over the lock
                self._failure = error
                return


def release_all() -> None:
    """Release all locks that this process holds.

    This also happens at exit, but then clients of object stores cannot write any more.
    """
    for lock in list(_active_locks):
        lock.release()


def _describe_owner(owner: dict[str, object] | None) -> str:
    if owner is None:
        return "an unreadable owner"
    return f"run {owner.get('run')!r} (process {owner.get('pid')} on {owner.get('host')})"


def _is_running(pid: int, started: str | None) -> bool:
    """Return whether a process of this machine is running, and is not a zombie.

    Args:
        pid: Its id in this PID namespace.
        started: See :func:`this_process`; None if unknown: any process with the id matches.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        return started in (None, _start_ticks(process))
    except (psutil.NoSuchProcess, ValueError):  # ValueError: an invalid id
        return False
    except psutil.AccessDenied:  # it exists and may be the owner
        return True


def _start_ticks(process: psutil.Process) -> str:
    """Return when a process started, in clock ticks since boot.

    psutil's ``create_time`` is this plus the time of boot, which moves when the clock is set.
    """
    booted = psutil.boot_time()
    return str(round((process.create_time() - booted) * os.sysconf("SC_CLK_TCK")))


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
