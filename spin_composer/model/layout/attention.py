"""Attention within the segments of a packed row, for models that use transformers' functions.

Dimensions: T tokens of the row, H heads, K key-value heads, D the size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spin_composer.model.layout.segments import Segments, is_table, segments_of
from spin_composer.model.layout.varlen import VarlenKernel, attend_at_once

IMPLEMENTATION = "spin_segments"
"""The name of the attention function in transformers' registry."""


@dataclass(frozen=True)
class AttentionCall:
    """Shapes and settings of a layer's call of attention."""

    heads: int
    key_heads: int
    size: int
    value_size: int
    dtype: torch.dtype
    scaling: float | None
    window: int | None
    plain: bool
    """Whether there is no soft cap and no sinks."""

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None,
        softcap: float | None, sinks: Tensor | None,
    ) -> AttentionCall:  # fmt: skip
        """Return the call with these arguments of :func:`segment_attention`."""
        return cls(
            query.shape[1], key.shape[1], query.shape[3], value.shape[3], computes_in(query),
            scaling, window, softcap is None and sinks is None,
        )  # fmt: skip

    def can_use(self, kernel: VarlenKernel | None) -> bool:
        """Return whether a kernel supports this; :mod:`mechanism` tries whether it is exact."""
        return kernel is not None and self.plain and self.dtype in kernel.dtypes


def computes_in(query: Tensor) -> torch.dtype:
    """Return the dtype that attention is computed in: autocast's, or the query's without it."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


_LONG = 8
"""A second response so many times as long as its prompt is computed with the prompt's queries, too:
SDPA then needs no mask, and its causal kernel skips half of the scores. Measured on a CPU core, 9
heads of 64, forward and backward: 64 + 1,024 tokens 95 ms instead of 140, but 90 + 125 tokens 7.3
instead of 4.5."""

_SHARES_HEADS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)
"""Whether SDPA's fused kernel of CPUs takes key-value heads that query heads share, which need not
be repeated then: 7 to 19% less time on one core, and less memory. torch 2.7 leaves the kernel for
it, and so do the kernels of GPUs that take a mask."""

_NOT_NEEDED = frozenset(
    {
        "cache_position", "dropout", "is_causal", "output_attentions", "output_hidden_states",
        "output_router_logits", "position_embeddings", "position_ids", "return_dict", "training",
        "use_cache",
    }
)  # fmt: skip


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within segments; transformers' interface of an attention function.

    Args:
        module: The attention layer.
        query: [1, H, T, D].
        key: [1, K, T, D].
        value: [1, K, T, D'].
        attention_mask: The table of the row's segments.
        scaling: Of the scores; 1 / sqrt(D) if None.
        sliding_window: Number of tokens that a query attends to, itself included.
        softcap: Scores are softcap * tanh(scores / softcap).
        s_aux: [H] a logit per head that takes part in the softmax (attention sinks).
        others: Arguments of other attention functions (:data:`_NOT_NEEDED`), which are ignored:
            dropout, which is off, and inputs that masks are built from.

    Returns:
        [1, T, H, D'], and None for the attention weights.

    Raises:
        TypeError: An unknown argument, which might change the result.
    """
    if unknown := {name for name, value in others.items() if value is not None} - _NOT_NEEDED:
        raise TypeError(f"unknown arguments of attention: {', '.join(sorted(unknown))}")
    call = AttentionCall.of(query, key, value, scaling, sliding_window, softcap, s_aux)
    module.spin_call = call  # type: ignore[assignment]
    switch: _Switch = module.spin_switch  # type: ignore[assignment]
    kernel = switch.kernel
    segments = segments_of(attention_mask)
    found = attend_within(
        query, key, value, segments, scaling, sliding_window, softcap, s_aux,
        kernel=kernel if call.can_use(kernel) else None,
    )  # fmt: skip
    return found, None


def attend_within(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    *,
    kernel: VarlenKernel | None,
) -> Tensor:
    """Return [1, T, H, D'], with a kernel in one call, or with SDPA branch by branch.

    The arguments are those of :func:`segment_attention`; a kernel supports no soft cap or sinks.
    """
    if kernel is not None:
        sequences, dtype = segments.sequences(query.device), computes_in(query)
        return attend_at_once(query, key, value, sequences, kernel, dtype, scaling, window)
    if not _SHARES_HEADS or query.device.type != "cpu" or softcap is not None or sinks is not None:
        key, value = _per_head(key, query.shape[1]), _per_head(value, query.shape[1])
    how = (segments, scaling, window, softcap, sinks)
    # Split once: the gradient of each slice would be as large as the whole row.
    sizes = [
        n for s in segments.segments
        for n in (s.prompt + s.first, *([s.second] if s.second else []))
    ]  # fmt: skip
    branches = zip(*(states.split(sizes, 2) for states in (query, key, value)), strict=True)
    parts = []
    for segment in segments.segments:
        q, k, v = first = next(branches)
        parts.append(_attend(q, k, v, *how))
        if segment.second:
            prompt = [states[:, :, : segment.prompt] for states in first]
            q, *own = next(branches)
            k, v = (torch.cat(x, 2) for x in zip(prompt[1:], own, strict=True))
            unmasked = (
                softcap is None and sinks is None and (window is None or k.shape[2] <= window)
            )
            if unmasked and segment.second >= _LONG * segment.prompt:
                q = torch.cat((prompt[0], q), 2)
                parts.append(_attend(q, k, v, *how)[:, :, segment.prompt :])
            else:
                parts.append(_attend(q, k, v, *how))
    return torch.cat([part.transpose(1, 2) for part in parts], 1)


def _per_head(states: Tensor, num_heads: int) -> Tensor:
    """Repeat key-value heads [1, K, T, D] for the query heads that share them."""
    shared_by = num_heads // states.shape[1]
    return states if shared_by == 1 else states.repeat_interleave(shared_by, dim=1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return [1, H, Q, D'] of the last Q tokens of a causal sequence of Q or more."""
    queries, keys = query.shape[2], key.shape[2]
    window_applies = window is not None and keys > window
    if softcap is None and sinks is None:
        causal = queries == keys and not window_applies
        return scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=causal,
            attn_mask=None if causal else segments.mask(
                queries, keys, window if window_applies else None, query
            ),
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + segments.mask(queries, keys, window if window_applies else None, scores)
    if sinks is not None:
        sink_logits = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink_logits), -1)
    weights = torch.softmax(scores.float(), -1).to(value.dtype)
    return weights[..., :keys] @ value


class _Switch:
    """Hooks that switch a layer to :func:`segment_attention` while its mask is a segment table."""

    def __init__(self) -> None:
        self.before: list[str | None] = []
        self.kernel: VarlenKernel | None = None

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        config: Any = module.config
        if any(map(is_table, (*args, *kwargs.values()))):
            self.before.append(config._attn_implementation)
            config._attn_implementation = IMPLEMENTATION
        else:
            self.before.append(None)

    def leave(self, module: nn.Module, args: tuple, output: object) -> None:
        del args, output
        before, config = self.before.pop(), module.config
        if before is not None:
            config._attn_implementation = before  # type: ignore[union-attr]


def latest_call(layer: nn.Module) -> AttentionCall | None:
    """Return a layer's last call of :func:`segment_attention`."""
    return getattr(layer, "spin_call", None)


def set_kernel(layers: Iterable[nn.Module], kernel: VarlenKernel | None) -> None:
    """Let layers compute packed rows with a kernel, or with SDPA if it is None."""
    for layer in layers:
        layer.spin_switch.kernel = kernel  # type: ignore[union-attr]


def install_segment_attention(model: nn.Module) -> list[nn.Module]:
    """Make the attention layers of a Hugging Face model accept segment tables; return the layers.

    They use SDPA until :func:`set_kernel`. Any other mask is handled as before. A second call does
    nothing.
    """
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, segment_attention)
    layers = [
        module
        for module in model.modules()
        if "Attention" in type(module).__name__ and hasattr(module, "config")
    ]
    for layer in layers:
        if not hasattr(layer, "spin_switch"):
            switch = layer.spin_switch = _Switch()  # type: ignore[assignment]
            layer.register_forward_pre_hook(switch.enter, with_kwargs=True)
            layer.register_forward_hook(switch.leave, always_call=True)
    return layers
