"""The segments of a packed row: which tokens attend to which.

A row holds segments one after another, each ``[prompt | first | second]``: ``first`` and ``second``
both follow the prompt and do not see each other; both are causal. A plain sequence is a segment
without a second branch. The table of a row's segments goes through the model in the place of its
attention mask, which every layer gets, also when a checkpointed layer is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_COLUMNS = 5
"""Start, prompt, first, second; and a zero, without which transformers 4.51 takes a mask for one
that hides nothing, and drops it."""


@dataclass(frozen=True)
class Segment:
    """One segment of a row, in tokens."""

    start: int
    prompt: int
    first: int
    second: int

    @property
    def end(self) -> int:
        """Return where the next one starts."""
        return self.start + self.prompt + self.first + self.second


@dataclass
class Segments:
    """All segments of a row, and the masks that were made for them, which all layers share."""

    segments: Sequence[Segment]
    _masks: dict[tuple, Tensor] = field(default_factory=dict)

    def table(self, device: torch.device) -> Tensor:
        """Return the table [1, 1, segments, 5] int64 that stands for the attention mask."""
        rows = [[s.start, s.prompt, s.first, s.second, 0] for s in self.segments]
        table = torch.tensor(rows, dtype=torch.long, device=device)[None, None]
        table.spin_segments = self  # type: ignore[attr-defined]  # spares the wait for a GPU
        return table

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """Return the mask [queries, keys] to add to scores: the last queries of a causal sequence.

        Args:
            queries: Number of queries; they are at the end of the keys.
            keys: Number of keys.
            window: Number of the last keys that a query sees, itself included; None: all.
            like: Of the dtype and device that the mask is to have.
        """
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._masks:
            distance = torch.arange(keys - queries, keys, device=like.device)[:, None]
            distance = distance - torch.arange(keys, device=like.device)  # how far back a key lies
            hidden = distance < 0
            if window is not None:
                hidden |= distance >= window
            mask = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(hidden, float("-inf"))
        return self._masks[key]


def is_table(mask: object) -> bool:
    """Tell a table of segments from a mask: no mask of 4 dimensions has whole numbers."""
    return isinstance(mask, Tensor) and mask.dim() == 4 and mask.dtype == torch.long


def segments_of(table: Tensor) -> Segments:
    """Return the segments that a table holds."""
    known = getattr(table, "spin_segments", None)
    if known is not None:
        return known
    if table.shape[-1] != _COLUMNS:
        raise RuntimeError(f"a table of segments was changed on its way: it is {table.shape}.")
    return Segments([Segment(*row[:4]) for row in table[0, 0].tolist()])
