"""Attention within the segments of a packed row by one call of FlashAttention.

Dimensions: T tokens of the row, S causal sequences, H heads, K key-value heads, D the size of a
head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from spin_composer.model.layout.segments import CausalSequences


@dataclass(frozen=True)
class VarlenKernel:
    """Attention of packed sequences of different lengths."""

    attend: Callable[..., Tensor]
    """(query [queries, H, D], key and value [keys, K, D], bounds of queries and of keys [S + 1],
    most queries, most keys, scale=, window_size=) -> [queries, H, D]. Causal; the last query of a
    sequence is at its last key; a query attends to at most ``left`` keys before its own, with
    ``window_size`` (left, 0), and to all with (-1, 0)."""
    dtypes: frozenset[torch.dtype]
    """The dtypes that it supports."""


def attend_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: CausalSequences,
    kernel: VarlenKernel,
    dtype: torch.dtype,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend within segments.

    Args:
        query: [1, H, T, D].
        key: [1, K, T, D].
        value: [1, K, T, D].
        sequences: Of the segments.
        kernel: The kernel.
        dtype: The dtype to compute in, one of the kernel's.
        scaling: Of the scores; 1 / sqrt(D) if None.
        window: Number of keys that a query attends to, itself included; None: all before it.

    Returns:
        [1, T, H, D].
    """
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    if sequences.keys is not None:
        k, v = k.index_select(0, sequences.keys), v.index_select(0, sequences.keys)
    return kernel.attend(
        q, k, v, sequences.query_bounds, sequences.key_bounds,
        sequences.most_queries, sequences.most_keys,
        scale=scaling, window_size=(-1 if window is None else window - 1, 0),
    )[None]  # fmt: skip


def flash_kernel() -> VarlenKernel | None:
    """Return torch's FlashAttention of packed sequences, for CUDA; None before torch 2.10."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    return VarlenKernel(_torch_varlen, frozenset((torch.bfloat16, torch.float16)))


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, *sizes: Any, **how: Any) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if _shares_heads():
        how["enable_gqa"] = True
    elif (shared_by := query.shape[1] // key.shape[1]) > 1:
        key, value = (x.repeat_interleave(shared_by, dim=1) for x in (key, value))
    found = varlen_attn(query, key, value, *sizes, **how)
    assert isinstance(found, Tensor)  # a tuple only with return_aux
    return found


@cache
def _shares_heads() -> bool:
    """Return whether ``varlen_attn`` accepts fewer key-value heads, as newer versions do."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
