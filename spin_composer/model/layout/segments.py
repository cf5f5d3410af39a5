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


@dataclass(frozen=True)
class CausalSequences:
    """The branches of all segments as causal sequences, whose queries are their last tokens.

    ``[prompt | first]`` is one, with as many queries as keys; ``second`` is another, with the keys
    of the prompt before its own. Queries are the row's tokens in order. There are S sequences.
    """

    query_bounds: Tensor
    """int32 [S + 1]: cumulative numbers of queries."""
    key_bounds: Tensor
    """int32 [S + 1]: cumulative numbers of keys."""
    most_queries: int
    """Queries of the sequence with the most."""
    most_keys: int
    """Keys of the sequence with the most."""
    keys: Tensor | None
    """int64 [keys]: positions of the keys in the row; None if the keys are the row itself."""


@dataclass
class Segments:
    """All segments of a row, and a cache of what attention needs, which all layers share."""

    segments: Sequence[Segment]
    _masks: dict[tuple, Tensor] = field(default_factory=dict)
    _sequences: CausalSequences | None = None

    def table(self, device: torch.device) -> Tensor:
        """Return the table [1, 1, segments, 5] int64 to pass as the attention mask."""
        rows = [[s.start, s.prompt, s.first, s.second, 0] for s in self.segments]
        table = torch.tensor(rows, dtype=torch.long, device=device)[None, None]
        table.spin_segments = self  # type: ignore[attr-defined]  # so that a GPU need not be waited for
        return table

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """Return the mask [queries, keys] to add to the scores of a causal sequence's last queries.

        It is a slice of one mask that all segments share.

        Args:
            queries: Number of queries; they are the last of the keys.
            keys: Number of keys.
            window: Number of keys that a query attends to, itself included; None: all before it.
            like: A tensor of the mask's dtype and device.
        """
        before = keys - queries
        whole = self._whole_mask(before > 0, window, like)
        most = whole.shape[1] - whole.shape[0]
        part = whole[:queries, most - before : most + queries]
        if like.device.type == "cpu":
            return part
        # GPU kernels need aligned rows, which a slice may not have.
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._masks:
            self._masks[key] = part.contiguous()
        return self._masks[key]

    def _whole_mask(self, after_a_prompt: bool, window: int | None, like: Tensor) -> Tensor:
        """Return the mask whose slices all segments use."""
        key = (after_a_prompt, window, like.dtype, like.device)
        if key not in self._masks:
            if after_a_prompt:
                queries = max(s.second for s in self.segments)
                before = max(s.prompt for s in self.segments)
            else:
                queries = max(max(s.prompt + s.first, s.second) for s in self.segments)
                before = 0
            self._masks[key] = _causal_mask(queries, before, window, like)
        return self._masks[key]

    def sequences(self, device: torch.device) -> CausalSequences:
        """Return the causal sequences of the segments, with tensors on a device."""
        if self._sequences is None:
            self._sequences = _causal_sequences(self.segments, device)
        return self._sequences


def _causal_mask(queries: int, before: int, window: int | None, like: Tensor) -> Tensor:
    """Return a mask [queries, before + queries]: 0 where a query sees a key, else -inf."""
    places = torch.arange(before + queries, device=like.device)
    distance = places[before:, None] - places  # how far back a key lies
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, float("-inf"))


def _causal_sequences(segments: Sequence[Segment], device: torch.device) -> CausalSequences:
    queries, keys, places = [0], [0], []
    for segment in segments:
        after = segment.start + segment.prompt + segment.first
        queries.append(after - segment.start)
        keys.append(after - segment.start)
        places.append(torch.arange(segment.start, after))
        if segment.second:
            queries.append(segment.second)
            keys.append(segment.prompt + segment.second)
            places.append(torch.arange(segment.start, segment.start + segment.prompt))
            places.append(torch.arange(after, segment.end))

    def bounds(sizes: list[int]) -> Tensor:
        return torch.tensor(sizes).cumsum(0).to(device, torch.int32)

    query_bounds = bounds(queries)
    if queries == keys:  # one tensor: torch's cuDNN kernel takes no other
        return CausalSequences(query_bounds, query_bounds, max(queries), max(keys), None)
    return CausalSequences(
        query_bounds, bounds(keys), max(queries), max(keys), torch.cat(places).to(device)
    )


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
