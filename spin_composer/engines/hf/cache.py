"""The KV cache of the decode loop: right-aligned rows that join and leave the batch.

Dimensions: R rows, H key-value heads, C columns allocated, L columns filled, P columns of a prompt
batch, D head width.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 64
"""The cache grows by this many columns: one copy per block instead of one per token."""


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name of the cache argument of a model's forward: transformers 5.20 renamed it.

    Args:
        model: Of :func:`~spin_composer.model.unwrap.inner_model`.
    """
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


class RowCache(Cache):
    """Keys and values [R, H, C, D] of each layer, in the dtype that attention computes in.

    Every row's tokens end at column L, whatever its length; the attention mask hides the padding to
    their left and the columns right of L, which hold zeros. Attention gets the whole buffers, which
    are contiguous: a view of the filled columns would be copied by every layer.

    Not a ``DynamicCache``: those are registered pytree nodes, which FSDP2's ``cast_forward_inputs``
    flattens and copies for every layer, losing what the layer appends.

    Args:
        dtype: The dtype that attention computes in. Under autocast, rotary embeddings return fp32
            keys, all of which attention would cast again for every token.
    """

    is_compileable: Any = False  # a property in transformers 5

    def __init__(self, dtype: torch.dtype):
        # Not Cache's own __init__: in transformers 4.51 it does nothing, later it asks for
        # an object per layer, of kinds that hold the filled columns only.
        self.layers: list[Any] = []
        """None: transformers 5 looks for kinds of layers here; an unknown one is a plain cache."""
        self.dtype = dtype
        self.length = 0
        """L; the decode loop moves it, after all layers have written."""
        self.capacity = 0
        """C."""
        self.tensors: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer."""

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Return L."""
        return self.length

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new columns at L; return what its attention reads.

        Args:
            key_states: [R, H, Q, D]: a first batch of P columns, or one column.
            value_states: Likewise.
            layer_idx: Which layer.
            args: Of the rotary embedding, by transformers' version; not needed here.
            kwargs: Likewise.

        Returns:
            Keys and values: of the prompts alone [R, H, P, D], or whole buffers [R, H, C, D].
        """
        new = (key_states.to(self.dtype), value_states.to(self.dtype))
        if layer_idx == len(self.tensors):
            self.tensors.append(new)
            self.capacity = new[0].shape[2]
            return new
        layer = self.tensors[layer_idx]
        for buffer, states in zip(layer, new, strict=True):
            buffer[:, :, self.length : self.length + states.shape[2]] = states
        return layer

    def reserve(self, columns: int) -> bool:
        """Make room for ``columns`` in total; return whether the buffers were reallocated."""
        if columns <= self.capacity:
            return False
        room = round_up(columns) - self.capacity
        for index, layer in enumerate(self.tensors):  # one layer at a time lives twice
            self.tensors[index] = (pad(layer[0], (0, 0, 0, room)), pad(layer[1], (0, 0, 0, room)))
        self.capacity += room
        return True

    def merge(self, keep: Tensor, kept_columns: int, other: RowCache | None) -> None:
        """Keep some rows and add those of another cache, which must not be used afterward.

        Args:
            keep: [K] int64, the rows that stay, in order.
            kept_columns: Columns of the longest of them.
            other: Further rows, or None.
        """
        added = 0 if other is None else other.length
        length = max(kept_columns, added)
        capacity = round_up(length + 1)
        for index, layer in enumerate(self.tensors):
            further = (None, None) if other is None else other.tensors[index]
            made = []
            for buffer, more in zip(layer, further, strict=True):
                rows = len(keep) + (0 if more is None else more.shape[0])
                new = buffer.new_zeros((rows, buffer.shape[1], capacity, buffer.shape[3]))
                tail = buffer[:, :, self.length - kept_columns : self.length]
                new[: len(keep), :, length - kept_columns : length] = tail.index_select(0, keep)
                if more is not None:
                    new[len(keep) :, :, length - added : length] = more[:, :, :added]
                made.append(new)
            self.tensors[index] = (made[0], made[1])
            if other is not None:
                other.tensors[index] = (keep, keep)  # frees its storage
        self.length, self.capacity = length, capacity


def round_up(columns: int) -> int:
    """Round a number of columns up to whole blocks."""
    return -(-columns // BLOCK) * BLOCK
