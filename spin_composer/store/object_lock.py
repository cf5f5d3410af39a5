"""The lock of a store in an object store: see ``lock``, which holds it.

``run.lock`` names the owner, and ``run.beat`` changes every few seconds while it is held. Object
stores have no operation that fails if an object exists and that all of them know, so two runs that
take a free lock at the same moment both write it, wait, and read whose it became: the writes of
one moment must have settled within the wait. A lock that is given back becomes empty.
"""

from __future__ import annotations

import json
import time

from spin_composer.store.layout import HEARTBEAT, LOCK
from spin_composer.store.object_folder import ObjectFolder

PROPAGATION_SECONDS = 3.0
"""How long two writes of the same moment may take to be seen."""


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
        """See :class:`LockBackend`; the time in it is for people (``spin-composer status``)."""
        self._beats += 1
        self.remote.write_text(HEARTBEAT, json.dumps({"beat": self._beats, "time": time.time()}))

    def last_touched(self) -> object:
        """See :class:`LockBackend`."""
        return self.remote.read_text(HEARTBEAT)
