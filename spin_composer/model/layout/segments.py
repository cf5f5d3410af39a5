"""The segments of a packed row: which tokens attend to which.

A row is a sequence of segments, each ``[prompt | first | second]``: ``first`` and ``second`` both
continue the prompt and do not attend to each other; both are causal. A plain sequence is a segment
without a second branch. The table of a row's segments is passed through the model as its attention
mask, because every layer gets the mask, also when activation checkpointing recomputes the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_COLUMNS = 5
"""Start, prompt, first, second, and a zero: transformers 4.51 drops a mask without any zero, as one
that hides nothing."""


@dataclass(frozen=True)
class Segment:
    """One segment of a row, in tokens."""

    start: int
    prompt: int
    first: int
    second: int

    @property
    def end(self) -> int:
        """Start of the next segment."""
        return self.start + self.prompt + self.first + self.second


@dataclass
class Segments:
    """All segments of a row, and a cache of their masks, which all layers share."""

    segments: Sequence[Segment]
    _masks: dict[tuple, Tensor] = field(default_factory=dict)

    def table(self, device: torch.device) -> Tensor:
        """Return the table [1, 1, segments, 5] int64 to pass as the attention mask."""
        rows = [[s.start, s.prompt, s.first, s.second, 0] for s in self.segments]
        table = torch.tensor(rows, dtype=torch.long, device=device)[None, None]
        table.spin_segments = self  # type: ignore[attr-defined]  # so that a GPU need not be waited for
        return table

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """Return the mask [queries, keys] to add to the scores of a causal sequence's last queries.

        Args:
            queries: Number of queries; they are the last of the keys.
            keys: Number of keys.
            window: Number of keys that a query attends to, itself included; None: all before it.
            like: A tensor of the mask's dtype and device.
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
    """Return whether a mask is a segment table: no other mask of 4 dimensions is int64."""
    return isinstance(mask, Tensor) and mask.dim() == 4 and mask.dtype == torch.long


def segments_of(table: Tensor) -> Segments:
    """Return the segments that a table holds."""
    known = getattr(table, "spin_segments", None)
    if known is not None:
        return known
    if table.shape[-1] != _COLUMNS:
        shape = tuple(table.shape)
        raise RuntimeError(f"the model changed the table of segments: its shape is {shape}.")
    return Segments([Segment(*row[:4]) for row in table[0, 0].tolist()])
