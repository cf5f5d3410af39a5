"""Coordination of ranks: results of rank 0 on all ranks, errors of any rank, shared folders.

Ranks wait for long operations of another rank by polling the process group's key-value store, not
in a collective, which the process group's timeout would abort.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from composer.utils import dist
from torch.distributed import HashStore
from torch.distributed.distributed_c10d import _get_default_store

from spin_composer.errors import StoreError, explain, rebuild_error
from spin_composer.interrupt import Interrupted
from spin_composer.store.layout import temporary_name

T = TypeVar("T")

POLL_SECONDS = 0.2
_FIRST_POLL_SECONDS = 0.002
_RANKS_PER_POLL_SECOND = 500
_SHARED_FOLDER_SECONDS = 60.0


class KeyValueStore(Protocol):
    """torch's ``Store``, whose stub lacks ``check``."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def get(self, key: str) -> bytes:
        """Return a value; waits until there is one."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys have values."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return the sum."""
        ...


def key_value_store() -> KeyValueStore:
    """Return the process group's key-value store; for a single process, one in memory."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return cast(KeyValueStore, HashStore())
    return cast(KeyValueStore, _get_default_store())


def poll_intervals() -> Iterator[None]:
    """Yield at polling intervals: short at first, then every fifth of a second.

    With a thousand ranks every two seconds, to limit the load of the process that hosts the store.
    """
    longest = max(POLL_SECONDS, dist.get_world_size() / _RANKS_PER_POLL_SECOND)
    seconds = _FIRST_POLL_SECONDS
    while True:
        time.sleep(seconds)
        seconds = min(2 * seconds, longest)
        yield


def from_rank_zero(make: Callable[[], T]) -> T:
    """Call ``make`` on rank 0 and return its result on every rank; a collective without timeout.

    An error is raised on every rank; on the others it is rebuilt from its kind and message. Raised
    on rank 0 alone, it would leave them waiting.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    raised: BaseException | None = None
    store = key_value_store()
    key = [f"spin/{uuid.uuid4()}"]
    dist.broadcast_object_list(key, src=0)
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = make()
        except (Exception, Interrupted) as error:
            raised, outcome[1] = error, explain(error) or (1, f"rank 0 failed: {error!r}")
        store.set(key[0], "made")
    else:
        wait = poll_intervals()
        while not store.check(key):
            next(wait)
    dist.broadcast_object_list(outcome, src=0)
    value, failure = outcome
    if failure is not None:
        raise raised or rebuild_error(*failure)
    return value


def on_all_ranks(make: Callable[[], T]) -> T:
    """Call ``make`` on every rank; return its result if no rank failed; a collective.

    An error is raised on the rank where it occurred, and rebuilt from its message on the others.
    """
    return _raise_from_any_rank(*_capture(make))


def on_each_node_in_turn(make: Callable[[], T]) -> T:
    """Call ``make`` on every rank, on each node by local rank 0 first; a collective.

    The other ranks of the node then find what it has downloaded. Ranks wait without a timeout;
    errors are raised as by :func:`on_all_ranks`.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    store = key_value_store()
    key = [f"spin/{uuid.uuid4()}"]
    dist.broadcast_object_list(key, src=0)
    leader = dist.get_global_rank() - dist.get_local_rank()  # torchrun does not number nodes
    first, done = [f"{key[0]}/{leader}"], f"{key[0]}/done"
    made: list[T] = []
    failure: BaseException | None = None
    leads, wait = dist.get_local_rank() == 0, poll_intervals()
    while not leads and not store.check(first):
        next(wait)
    if leads or store.get(first[0]) == b"made":
        made, failure = _capture(make)
    if leads:
        store.set(first[0], "made" if failure is None else "failed")
    ended, wait = store.add(done, 1), poll_intervals()
    while ended < dist.get_world_size():
        next(wait)
        ended = store.add(done, 0)
    return _raise_from_any_rank(made, failure)


def gather_in_own_time(make: Callable[[], T]) -> list[T]:
    """Call ``make`` on every rank; return the results of all, by rank; a collective.

    Ranks that take longer than others are waited for without a timeout; errors are raised as by
    :func:`on_all_ranks`.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [make()]
    store = key_value_store()
    key = [f"spin/{uuid.uuid4()}"]
    dist.broadcast_object_list(key, src=0)
    made, failure = _capture(make)
    ended, wait = store.add(key[0], 1), poll_intervals()
    while ended < dist.get_world_size():
        next(wait)
        ended = store.add(key[0], 0)
    return cast("list[T]", dist.all_gather_object(_raise_from_any_rank(made, failure)))


def from_local_rank_zero(make: Callable[[], str]) -> str:
    """Call ``make`` on each node's local rank 0; return its text on the node's ranks; a collective.

    Ranks wait without a timeout; errors are raised as by :func:`on_all_ranks`.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    leads = dist.get_local_rank() == 0
    made = on_each_node_in_turn(lambda: make() if leads else "")
    return dist.all_gather_object(made)[dist.get_global_rank() - dist.get_local_rank()]


def _capture(make: Callable[[], T]) -> tuple[list[T], BaseException | None]:
    """Return the result of ``make``, or its error."""
    try:
        return [make()], None
    except (Exception, Interrupted) as error:
        return [], error


def _raise_from_any_rank(made: list[T], failure: BaseException | None) -> T:
    said = None if failure is None else explain(failure) or (1, repr(failure))
    for rank, other in enumerate(dist.all_gather_object(said)):
        if other is not None:
            raise failure or rebuild_error(other[0], f"rank {rank} failed: {other[1]}")
    return made[0]


def node_folder() -> str:
    """Return a new temporary folder of this node, the same on all its ranks; a collective."""
    made = tempfile.mkdtemp() if dist.get_local_rank() == 0 else None
    folder = dist.all_gather_object(made)[dist.get_global_rank() - dist.get_local_rank()]
    assert folder is not None, "the node's first rank makes one"
    return folder


def check_shared(root: Path) -> None:
    """Reject a folder that the ranks do not share: they would wait for each other forever.

    Raises:
        StoreError: Names the ranks that do not see what rank 0 wrote.
    """
    if dist.get_world_size() == 1:
        return

    def touch() -> str:
        # If this process is killed here, play.prepare removes the file by its temporary name.
        name = temporary_name("shared")
        root.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
        return name

    name = from_rank_zero(touch)
    try:
        deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
        while not (seen := (root / name).exists()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            list(root.glob(".shared.*"))  # makes network file systems refresh their cache
        blind = [rank for rank, ok in enumerate(dist.all_gather_object(seen)) if not ok]
    finally:
        if dist.get_global_rank() == 0:
            (root / name).unlink()
    if blind:
        raise StoreError(
            f"{root.absolute()} is not shared: ranks {blind} do not see what rank 0 wrote. Set "
            "algorithms.spin.store to a folder on a file system that all nodes mount, or set "
            "algorithms.spin.remote_store to an object store."
        )
