"""Unique names in shared memory for Streaming's datasets.

Streaming numbers its names from 0 and takes the first number that looks free. Two programs that
create datasets at the same time can take the same number: one of them fails, or both overwrite
each other's positions. Here the numbers start at a random one that the run's ranks agree on; other
programs, and Streaming's cleanup, which unlinks names in use, start at 0 and never get that far.
This applies to every StreamingDataset of the process, including llm-foundry's.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from importlib.metadata import version

from spin_composer.errors import EnvironmentFailure

_FIRST = 10**6
"""Where ``clean_stale_shared_memory`` ends."""
_PER_NODE = 10**6
"""Numbers reserved per node: the nodes of a run may be containers that share memory."""
_KEY = "spin/shared-memory"
_numbers: dict[int, int] = {}
"""By process id: a forked process may start a run of its own."""


def use_unique_names() -> None:
    """Make Streaming's names in shared memory start at this run's number from now on.

    Raises:
        EnvironmentFailure: If this version of Streaming chooses names differently.
    """
    from streaming.base.shared import prefix

    parts = ("_each_prefix_int", "_check_and_find", "get_shm_prefix")
    # The function must be looked up in the module on each call, or replacing it has no effect.
    finds = getattr(getattr(prefix, "_check_and_find", None), "__code__", None)
    if not all(hasattr(prefix, part) for part in parts) or (
        "_each_prefix_int" not in getattr(finds, "co_names", ())
    ):
        raise EnvironmentFailure(
            f"mosaicml-streaming {version('mosaicml-streaming')} names its shared memory in "
            "another way than this release knows, so two runs on one machine could mix theirs. "
            "Install mosaicml-streaming 0.12 or 0.13."
        )
    prefix._each_prefix_int = _own_numbers


def _own_numbers() -> Iterator[int]:
    return itertools.count(_agree_on_start())


def _agree_on_start() -> int:
    """Return the first number of this node's ranks, derived from rank 0's."""
    from streaming.base.distributed import get_local_world_size
    from torch import distributed
    from torch.distributed.distributed_c10d import _get_default_store

    mine = _numbers.setdefault(os.getpid(), _FIRST + secrets.randbelow(2**48))
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return mine
    store = _get_default_store()  # not a collective: a backend may have no device yet
    if distributed.get_rank() == 0:
        store.set(_KEY, str(mine))
    node = distributed.get_rank() // get_local_world_size()
    return int(store.get(_KEY)) + node * _PER_NODE
