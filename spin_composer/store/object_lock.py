"""The lock of a store in an object store; see ``store.lock``.

``run.lock`` names the owner, and ``run.beat`` changes every few seconds while the lock is held.
Not all object stores can create an object only if it does not exist. Two runs that acquire a free
lock at the same time therefore both write it, wait, and read it to see who won; concurrent writes
must be visible after that wait. A released lock is an empty object.
"""

from __future__ import annotations

import json
import time

from spin_composer.store.layout import HEARTBEAT, LOCK
from spin_composer.store.object_folder import ObjectFolder

PROPAGATION_SECONDS = 3.0
"""Time after which concurrent writes are assumed to be visible."""


class LockObject:
    """A lock that is an object (a :class:`~spin_composer.store.lock.LockBackend`).

    Args:
        remote: The store's folder in the object store.
    """

    def __init__(self, remote: ObjectFolder):
        self.remote = remote
        self.name = remote.url
        self._beats = 0

    def prepare(self) -> None:
        """See :class:`LockBackend`; a bucket needs no preparation."""

    def read(self) -> str | None:
        """See :class:`LockBackend`."""
        return self.remote.read_text(LOCK) or None

    def create(self, content: str) -> bool:
        """See :class:`LockBackend`."""
        if self.read() is not None:
            return False
        self.remote.write_text(LOCK, content)
        time.sleep(PROPAGATION_SECONDS)
        if self.read() != content:
            return False
        self.touch()
        return True

    def remove(self, content: str) -> None:
        """See :class:`LockBackend`."""
        if self.read() == content:
            self.remote.write_text(LOCK, "")

    def touch(self) -> None:
        """See :class:`LockBackend`; ``spin-composer status`` shows the time."""
        self._beats += 1
        self.remote.write_text(HEARTBEAT, json.dumps({"beat": self._beats, "time": time.time()}))

    def last_touched(self) -> object:
        """See :class:`LockBackend`."""
        return self.remote.read_text(HEARTBEAT)
