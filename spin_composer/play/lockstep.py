"""Units made in rounds: if the model stays sharded, scoring is a forward pass of all ranks.

In a round every rank drafts at most one unit, by the completion server and without the model. The
ranks wait for each other without a collective, since generation times vary, and then score in
lockstep: a rank with fewer batches than another scores a dummy batch and discards the result. Then
each rank commits its unit. Meanwhile the server answers the prompts of the next round. A rank that
fails notifies those that wait for it; if its forward pass itself fails, the others hang in theirs,
as in training, until its process has exited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from composer.utils import dist
from torch import Tensor

from spin_composer.data.pairs import Pair, PairBatch, collate_pairs
from spin_composer.interrupt import Interrupted
from spin_composer.play.ahead import DraftAhead
from spin_composer.play.player import Draft, Job, Player, Reports, Scored
from spin_composer.play.sharing import SharedWork


@dataclass(frozen=True)
class Lockstep:
    """Makes units in rounds; see :data:`~spin_composer.play.player.Schedule`.

    Args:
        to_device: Moves a tensor to the device of the collectives.
        reshard: Frees parameters that a forward pass leaves gathered, before ranks draft again.
    """

    to_device: Callable[[Tensor], Tensor]
    reshard: Callable[[], None]

    def __call__(
        self, player: Player, work: SharedWork, iteration: int, jobs: Sequence[Job]
    ) -> Reports:
        """Make this rank's share of ``jobs``; yield the units' reports."""
        world, rank = dist.get_world_size(), dist.get_global_rank()
        rounds = [jobs[first : first + world][rank:][:1] for first in range(0, len(jobs), world)]
        with DraftAhead(player, iteration, work.check) as ahead:
            waits, existing = _start(ahead, rounds[0] if rounds else [])
            for following in [*rounds[1:], []]:
                yield from existing
                drafts = [wait() for wait in waits]
                work.barrier()
                waits, existing = _start(ahead, following)
                done = self._score(player, work, drafts)
                self.reshard()
                yield from (player.commit(iteration, unit) for unit in done)

    def _score(self, player: Player, work: SharedWork, drafts: Sequence[Draft]) -> list[Scored]:
        """Score this rank's drafts in step with the other ranks."""
        step = _LockstepScorer(player.score, self.to_device)
        try:
            done = [replace(player, score=step).score_draft(draft) for draft in drafts]
            step.finish()
        except (Exception, Interrupted) as error:
            work.check()  # if another rank's failure caused this one, raise that
            work.report_failure(error)
            step.abort()
            raise
        return done


def _start(ahead: DraftAhead, jobs: Sequence[Job]) -> tuple[list[Callable[[], Draft]], list[None]]:
    """Start this rank's drafts of a round.

    Returns:
        What waits for each draft, and a None per unit that exists by now.
    """
    missing = [job for job in jobs if not ahead.player.recover(ahead.iteration, *job)]
    return [ahead.start(job) for job in missing], [None] * (len(jobs) - len(missing))


_DONE, _CONTINUES, _FAILED = 0, 1, 2


class _LockstepScorer:
    """A score function that all ranks call equally often, if each ends with `finish`."""

    def __init__(
        self, score: Callable[[PairBatch], Tensor], to_device: Callable[[Tensor], Tensor]
    ) -> None:
        self.score = score
        self.to_device = to_device
        self._in_forward = False

    def __call__(self, batch: PairBatch) -> Tensor:
        self._any_continues(_CONTINUES)
        return self._forward(batch)

    def finish(self) -> None:
        while self._any_continues(_DONE):
            self._forward(_dummy_batch())

    def abort(self) -> None:
        """Stop the other ranks before their next forward pass."""
        if not self._in_forward:
            self._all_reduce_max(_FAILED)

    def _forward(self, batch: PairBatch) -> Tensor:
        self._in_forward = True
        logps = self.score(batch)
        self._in_forward = False
        return logps

    def _any_continues(self, own_state: int) -> bool:
        found = self._all_reduce_max(own_state)
        if found == _FAILED:
            raise RuntimeError("another rank failed while it scored")
        return found == _CONTINUES

    def _all_reduce_max(self, value: int) -> int:
        flag = self.to_device(torch.tensor([value]))
        dist.all_reduce(flag, reduce_operation="MAX")
        return int(flag)


def _dummy_batch() -> PairBatch:
    """Return the smallest pair batch that any model takes."""
    one = np.zeros(1, np.int32)
    return collate_pairs([Pair(one, one, one)])
