"""Names in shared memory that no other run on the machine uses.

Streaming numbers its names from 0 and takes the first number that looks free. Two programs that
make datasets at the same moment can take the same one: one of them fails, or both read and write
one another's positions. Here the numbers begin at one of this run's own, which its ranks agree on;
other programs, and Streaming's cleaning, which unlinks names in use, begin at 0 and never come
that far. It holds for every StreamingDataset of the process, llm-foundry's too.
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
"""Numbers of a node's own: nodes of one run may be containers that share memory, too."""
_KEY = "spin/shared-memory"
_numbers: dict[int, int] = {}
"""By process: one that is forked off a run may begin a run of its own."""


def use_unique_names() -> None:
    """Have Streaming's names in shared memory begin at this run's own number from now on.

    Raises:
        EnvironmentFailure: If Streaming is of a version that chooses names in another way.
    """
    from streaming.base.shared import prefix

    parts = ("_each_prefix_int", "_check_and_find", "get_shm_prefix")
    # It must be looked up in the module each time, or a replacement has no effect.
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
    """Return the number that this node's ranks begin at, which follows from rank 0's."""
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
