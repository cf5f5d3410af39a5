"""The transform from raw logits to the softmax's input, and the division of rows into chunks.

Dimensions: N scored tokens, V vocabulary, W >= V columns of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_COLUMN_ALIGNMENT = 16
"""The columns of a chunk are a multiple of this, so that every row begins on a 16-byte boundary:
cuBLAS and the row kernels need that for vectorized loads."""

_ROW_TILE = 128
"""The rows of a chunk that is larger than this are a multiple of it: full tiles in the GEMM."""


@dataclass(frozen=True)
class LogitScale:
    """The transform of raw logits u: z = u / temperature; with a softcap c: z = c tanh(z / c)."""

    temperature: float = 1.0
    softcap: float | None = None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums over values of ``dtype``: fp64 for fp64, fp32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def padded_vocab(vocab: int) -> int:
    """Return W, the number of columns that a chunk of logits is allocated with."""
    return -(-vocab // _COLUMN_ALIGNMENT) * _COLUMN_ALIGNMENT


def chunk_size(num_rows: int, max_rows: int) -> int:
    """Return the number of rows per chunk: full tiles where possible, chunks of similar size.

    A last chunk of a few rows would read the whole weight for them.

    Args:
        num_rows: N.
        max_rows: upper bound on the rows of a chunk; less than 1 counts as 1.

    Returns:
        A number in [1, max(1, max_rows)].
    """
    max_rows = max(1, max_rows)
    if num_rows <= max_rows:
        return max(1, num_rows)
    if max_rows > _ROW_TILE:
        max_rows -= max_rows % _ROW_TILE
    even = -(-num_rows // -(-num_rows // max_rows))
    return min(max_rows, -(-even // _ROW_TILE) * _ROW_TILE)


def row_chunks(num_rows: int, size: int) -> list[slice]:
    """Return slices of ``size`` rows that cover ``num_rows`` rows; the last may be shorter."""
    return [slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]
