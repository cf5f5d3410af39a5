"""Microbatches limited by tokens: which pairs of a batch are computed together.

Pairs are assigned by length, the longest first. Composer loops over each rank's own microbatches,
and a sharded model runs collectives in each, so all ranks use the largest number that any needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from composer.utils import dist

from spin_composer.settings.spin import LayoutName


class PairSize(NamedTuple):
    """Tokens of a pair."""

    prompt: int
    real: int
    generated: int

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return self.prompt + max(self.real, self.generated)


@dataclass(frozen=True)
class TokenBudget:
    """Limit of a microbatch on one device.

    Args:
        tokens: Most positions of a forward pass, padding included; a pair that exceeds it is a
            microbatch by itself.
        layout: The layout of pairs, not ``auto``.
    """

    tokens: int
    layout: LayoutName

    def cost(self, sizes: Sequence[PairSize]) -> int:
        """Return the number of positions of a microbatch of these pairs."""
        if self.layout == "padded":
            return 2 * len(sizes) * max(size.longest for size in sizes)
        prompts = 1 if self.layout == "shared" else 2
        return sum(prompts * size.prompt + size.real + size.generated for size in sizes)

    def deal(self, sizes: Sequence[PairSize], share: float = 1.0) -> list[list[int]]:
        """Return the indices of the pairs of each microbatch.

        Args:
            sizes: Those of all pairs of a rank's batch.
            share: Fraction of the budget to use; Composer's ``auto`` halves it when out of memory.
        """
        limit = self.tokens * share
        groups: list[list[int]] = []
        for pair in sorted(range(len(sizes)), key=lambda i: (-sum(sizes[i]), i)):
            fits = groups and self.cost([sizes[i] for i in (*groups[-1], pair)]) <= limit
            if fits:
                groups[-1].append(pair)
            else:
                groups.append([pair])
        return groups

    def split(self, groups: list[list[int]], sizes: Sequence[PairSize], count: int) -> None:
        """Halve the largest microbatches, in place, until there are ``count`` or one per pair."""
        while len(groups) < min(count, len(sizes)):
            several = [group for group in groups if len(group) > 1]
            largest = max(several, key=lambda group: self.cost([sizes[i] for i in group]))
            half = len(largest) // 2
            groups.append(largest[half:])
            del largest[half:]


def largest_of_ranks(count: int, device: torch.device) -> int:
    """Return the largest count over all ranks; a collective."""
    found = torch.tensor([count], device=device)
    dist.all_reduce(found, reduce_operation="MAX")
    return int(found)
