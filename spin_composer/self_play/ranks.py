"""Ranks together: rank 0's word on all of them, work shared out, one's failure known to all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from composer.utils import dist
from torch.distributed.distributed_c10d import _get_default_store

from spin_composer.errors import EnvironmentFailure, StoreError
from spin_composer.exits import EXIT_ENVIRONMENT, EXIT_STORE, explain

POLL_SECONDS = 0.2
_SHARED_FOLDER_SECONDS = 60.0


def from_rank_zero(make: Callable[[], Any]) -> Any:
    """Return rank 0's value on every rank; what it raises is raised on every rank.

    Raised on rank 0 alone, it would leave the others waiting for the process group's timeout.
    """
    outcome: list[Any] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def wait_for_rank_zero(make: Callable[[], str]) -> str:
    """Return rank 0's text on every rank, however long it takes to make; a collective at entry.

    Unlike :func:`from_rank_zero` no rank waits in a collective, which the process group's timeout
    would end. What rank 0 raises is raised there; the others raise a RuntimeError that names it.
    """
    key = from_rank_zero(lambda: f"spin/{uuid.uuid4()}")
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    store: Any = _get_default_store()
    if dist.get_global_rank() == 0:
        try:
            text = make()
        except BaseException as error:
            store.set(f"{key}/failed", str(error) or type(error).__name__)
            raise
        store.set(f"{key}/made", text)
        return text
    while not store.check([f"{key}/made"]):
        if store.check([f"{key}/failed"]):
            raise RuntimeError(f"rank 0 failed: {store.get(f'{key}/failed').decode()}")
        time.sleep(POLL_SECONDS)
    return store.get(f"{key}/made").decode()


class SharedWork:
    """A count of pieces of work that ranks take one by one, in order; a collective to make.

    As a context, it tells the other ranks if this one fails within.
    """

    def __init__(self, count: int):
        self.count = count
        self._key = from_rank_zero(lambda: f"spin/{uuid.uuid4()}")
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._store = None if alone else _get_default_store()
        self._met = 0

    def claims(self) -> Iterator[int]:
        """Yield the pieces that this rank is to do; no other rank gets them."""
        if self._store is None:
            yield from range(self.count)
            return
        while (position := self._store.add(f"{self._key}/next", 1) - 1) < self.count:
            yield position

    def meet(self) -> None:
        """Return when all ranks have come here, however long it takes; no collective.

        Raises:
            RuntimeError: As :meth:`check`, if one of them fails instead.
        """
        if self._store is None:
            return
        self._met += dist.get_world_size()
        self._store.add(f"{self._key}/met", 1)
        while self._store.add(f"{self._key}/met", 0) < self._met:
            self.check()
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise if another rank has failed: what it raised where a user can mend that.

        Raises:
            RuntimeError: Names the rank and its error.
        """
        failed = [f"{self._key}/failed"]
        if self._store is not None and self._store.check(failed):  # pyright: ignore
            code, _, text = self._store.get(f"{self._key}/failed").decode().partition(" ")
            kinds = {EXIT_STORE: StoreError, EXIT_ENVIRONMENT: EnvironmentFailure}
            raise kinds.get(int(code), RuntimeError)(text)

    def __enter__(self) -> SharedWork:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self.tell(error)

    def tell(self, error: object) -> None:
        """Tell the other ranks of a failure of this one, unless that is done already."""
        if self._store is not None and not self._store.check([f"{self._key}/failed"]):  # pyright: ignore
            code, said = (isinstance(error, Exception) and explain(error)) or (1, error)
            text = f"rank {dist.get_global_rank()} failed in play: {said}"
            self._store.set(f"{self._key}/failed", f"{code} {text}")


def check_shared(root: Path) -> None:
    """Refuse a folder that ranks do not share: they would wait for one another forever.

    Raises:
        StoreError: Names the ranks that do not see what rank 0 wrote.
    """
    if dist.get_world_size() == 1:
        return

    def touch() -> str:
        name = f".shared-{uuid.uuid4().hex}"
        root.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
        return name

    name = from_rank_zero(touch)
    deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
    while not (seen := (root / name).exists()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        list(root.glob(".shared-*"))  # makes network file systems look again
    blind = [rank for rank, ok in enumerate(dist.all_gather_object(seen)) if not ok]
    if dist.get_global_rank() == 0:
        (root / name).unlink()
    if blind:
        raise StoreError(
            f"{root.absolute()} is not shared: ranks {blind} do not see what rank 0 wrote. "
            "Set spin.store to a folder on a file system that all nodes mount."
        )
