"""How logits become the softmax's input, and how they are cut into chunks of rows.

Dimensions: N scored tokens, V vocabulary, W columns of a chunk (V, padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_PADDING = 16
"""Chunks have a multiple of this many columns, so that every row begins on a 16-byte boundary:
cuBLAS and the row kernels need that for wide loads."""

_TILE = 128
"""Chunks of more rows than this have a multiple of it: the matrix units' tiles are full then."""


@dataclass(frozen=True)
class LogitScale:
    """What happens to raw logits u: z = u / temperature; with softcap: z = c tanh(z / c)."""

    temperature: float = 1.0
    softcap: float | None = None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return fp64 for fp64 and fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def padded_vocab(vocab: int) -> int:
    """Return W, the columns that a chunk of logits is allocated with."""
    return -(-vocab // _PADDING) * _PADDING


def chunk_size(num_rows: int, max_rows: int) -> int:
    """Return the rows of a chunk: at most ``max_rows``, full tiles, all chunks of nearly one size.

    A last chunk of a few rows would read the whole weight for them.
    """
    max_rows = max(1, max_rows)
    if num_rows <= max_rows:
        return max(1, num_rows)
    if max_rows > _TILE:
        max_rows -= max_rows % _TILE
    even = -(-num_rows // -(-num_rows // max_rows))
    return min(max_rows, -(-even // _TILE) * _TILE)


def row_chunks(num_rows: int, size: int) -> list[slice]:
    """Return slices of ``size`` rows over ``num_rows`` rows; the last may be shorter."""
    return [slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]
