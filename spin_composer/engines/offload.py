"""The optimizer's state in host memory for the time of play, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

HOST = torch.device("cpu")


@contextmanager
def offloaded(
    optimizers: Sequence[torch.optim.Optimizer], host: torch.device = HOST
) -> Iterator[int]:
    """Hold the optimizers' state on the host within; it comes back bit for bit, also on error.

    Yields the bytes that were moved. Of a DTensor (FSDP2) this rank's shard is moved.

    Args:
        optimizers: Whose ``state`` is moved.
        host: Where to.
    """
    homes: list[tuple[dict[str, Any], str, torch.device]] = []
    try:
        for state in [s for optimizer in optimizers for s in optimizer.state.values()]:
            for name in [name for name, value in state.items() if isinstance(value, Tensor)]:
                homes.append((state, name, _local(state[name]).device))
                _move(state, name, host)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for generation, or a server, to take
        yield sum(_local(state[name]).nbytes for state, name, _ in homes)
    finally:
        for state, name, device in homes:
            _move(state, name, device)


def _move(state: dict[str, Any], name: str, device: torch.device) -> None:
    """Replace a tensor, or a DTensor's shard, by a copy on a device."""
    value = state[name]
    copy = _local(value).to(device, copy=True)
    if isinstance(value, DTensor):
        value._local_tensor = copy  # the DTensor itself stays: its mesh is of the other device
    else:
        state[name] = copy


def _local(tensor: Any) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
