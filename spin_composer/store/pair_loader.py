"""The data loader of an iteration's pairs, read by MosaicML Streaming."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NoReturn, cast

import torch
from streaming import StreamingDataset
from torch.utils.data import DataLoader

from spin_composer.data.examples import Example
from spin_composer.data.microbatches import TokenBudget
from spin_composer.data.pairs import Pair, collate_pairs
from spin_composer.errors import InputError
from spin_composer.shared_memory import use_unique_names
from spin_composer.store.base import Store
from spin_composer.store.layout import UNITS
from spin_composer.store.unit import StoredPair, pair_from_sample

use_unique_names()  # on import: a user's evaluation loaders may be created before ours

_CANONICAL_NODES = 1
"""Fixed, so that the order of pairs is the same on any number of nodes and ranks."""


class PairDataset(StreamingDataset):
    """The pairs of an iteration's merged units, reshuffled every epoch."""

    @property
    def state_dict(self) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Not available: the position comes from the checkpoint's clock, see :func:`resume_at`.

        Composer would save Streaming's state, and could not load a sharded checkpoint with it: at
        that time the Trainer still has the SFT loader, whose dataset has no state.
        """
        raise AttributeError("state_dict")

    def __iter__(self) -> Iterator[Pair]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield the epoch's pairs of this rank and worker."""
        for sample in super().__iter__():
            yield pair_from_sample(cast(StoredPair, sample))


def num_batches(num_pairs: int, global_batch_size: int, iteration: int) -> int:
    """Return the number of full global batches of an epoch.

    Raises:
        InputError: If there is none.
    """
    batches = num_pairs // global_batch_size
    if batches == 0:
        raise InputError(
            f"global_train_batch_size={global_batch_size} pairs is more than the {num_pairs} "
            f"pairs of iteration {iteration}. Use a smaller batch or more data."
        )
    return batches


def build_pair_loader(
    store: Store,
    iteration: int,
    num_pairs: int,
    like: DataLoader[Example],
    world_size: int,
    seed: int,
    budget: TokenBudget | None = None,
) -> DataLoader[Pair]:
    """Return the loader of an iteration's pair batches; a collective.

    An epoch is trimmed to full global batches; each epoch drops a different remainder.

    Args:
        store: The store, with the iteration's units merged.
        iteration: Index of the iteration.
        num_pairs: Number of its pairs.
        like: The SFT loader; its batch size (pairs per rank) and worker settings are used.
        world_size: Number of ranks.
        seed: Seed of the run; the order depends on it and on the iteration.
        budget: What a microbatch may hold.
    """
    batch_size = like.batch_size
    assert batch_size is not None
    batches = num_batches(num_pairs, batch_size * world_size, iteration)
    dataset = PairDataset(
        local=str(store.folder(iteration) / UNITS),
        epoch_size=batches * batch_size * world_size,
        batch_size=batch_size,
        shuffle=True,
        shuffle_seed=_shuffle_seed(seed, iteration),
        num_canonical_nodes=_CANONICAL_NODES,
        allow_unsafe_types=False,
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=partial(collate_pairs, budget=budget),
        drop_last=True,
        num_workers=like.num_workers,
        pin_memory=like.pin_memory and torch.cuda.is_available(),
        prefetch_factor=like.prefetch_factor,
        persistent_workers=like.persistent_workers,
        timeout=like.timeout,
    )


def resume_at(
    loader: DataLoader[Pair], seed: int, iteration: int, epoch: int, sample: int, num_nodes: int
) -> None:
    """Set a loader to a position within its iteration, for a resumed run.

    Args:
        loader: Made by :func:`build_pair_loader`.
        seed: Seed of the run.
        iteration: Index of the iteration.
        epoch: Epoch within the iteration.
        sample: Pairs of that epoch already trained on, over all ranks.
        num_nodes: Number of nodes of the run.
    """
    assert isinstance(loader.dataset, PairDataset)
    loader.dataset.load_state_dict(
        {
            "epoch": epoch,
            "sample_in_epoch": sample,
            "num_canonical_nodes": _CANONICAL_NODES,
            "shuffle_seed": _shuffle_seed(seed, iteration),
            "initial_physical_nodes": num_nodes,
        }
    )


def _shuffle_seed(seed: int, iteration: int) -> int:
    # Streaming seeds epoch e with seed + e, so seeds of iterations must be far apart.
    return (seed + 1_000_003 * iteration) % 2**31
