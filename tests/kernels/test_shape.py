"""How logits are cut into chunks of rows."""

from __future__ import annotations

import pytest
import torch

from spin_kernels.shape import accumulation_dtype, chunk_size, padded_vocab, row_chunks

NUM_ROWS = (0, 1, 127, 128, 129, 1025, 4097)
MAX_ROWS = (-3, 0, 1, 2, 100, 127, 128, 129, 300, 1025, 5000)


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 1000, 32000, 50257])
def test_padded_vocabulary_is_the_next_multiple_of_16(vocab: int) -> None:
    assert padded_vocab(vocab) % 16 == 0
    assert vocab <= padded_vocab(vocab) < vocab + 16


def test_sums_are_in_fp64_only_for_fp64() -> None:
    assert accumulation_dtype(torch.float64) == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert accumulation_dtype(dtype) == torch.float32


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("max_rows", MAX_ROWS)
def test_chunk_fits_its_bound_and_is_full_tiles_where_several_tiles_fit(
    num_rows: int, max_rows: int
) -> None:
    size = chunk_size(num_rows, max_rows)
    assert 1 <= size <= max(1, max_rows)
    if num_rows <= max_rows:
        assert size == max(1, num_rows)
    elif max_rows >= 128:
        assert size % 128 == 0


def test_chunks_are_of_nearly_one_size() -> None:
    # By the bound alone: 384, 384 and 257 rows. 1025 rows by the largest possible 896: 896 and 129.
    assert chunk_size(1025, 500) == 384
    assert chunk_size(1025, 1000) == 640


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("size", [1, 2, 127, 128, 5000])
def test_row_chunks_cover_every_row_once_in_order(num_rows: int, size: int) -> None:
    chunks = row_chunks(num_rows, size)
    assert [row for c in chunks for row in range(c.start, c.stop)] == list(range(num_rows))
    assert all(0 < c.stop - c.start <= size for c in chunks)
