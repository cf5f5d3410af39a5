"""Choice of a packed row's attention on a GPU: one call of FlashAttention, or SDPA by branch.

SDPA needs two calls per pair and layer, many small ones. FlashAttention is used if it agrees with
SDPA on the shapes of the model's own calls, forward and backward, and then on its log-probs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from spin_composer.data.microbatches import largest_of_ranks
from spin_composer.model.layout.attention import (
    AttentionCall,
    attend_within,
    latest_call,
    set_kernel,
)
from spin_composer.model.layout.probe import without_tf32
from spin_composer.model.layout.segments import Segment, Segments
from spin_composer.model.layout.varlen import VarlenKernel

log = logging.getLogger(__name__)

_TRIED = (Segment(0, 37, 150, 90), Segment(277, 5, 1, 60), Segment(343, 130, 20, 1))
_WINDOW = 64
"""Window of the calls that are tried for a layer with a window, unless its own is shorter."""


def use_kernel(
    kernel: VarlenKernel,
    layers: Sequence[nn.Module],
    device: torch.device,
    differs: Callable[[], str | None],
) -> None:
    """Let attention layers use a kernel if it is exact; log that, or why not; a collective.

    Args:
        kernel: A kernel for the device.
        layers: Attention layers that have computed a packed row with SDPA.
        device: The model's device.
        differs: Scores pairs again; returns how their log-probs differ from SDPA's, or None.
    """
    reason = refusal({call for layer in layers if (call := latest_call(layer))}, device, kernel)
    if largest_of_ranks(int(reason is not None), device) and reason is None:
        reason = "another rank cannot use it"
    if reason is None:
        set_kernel(layers, kernel)
        reason = differs()
    if reason is None:
        log.info("Packed rows use FlashAttention, one call per layer")
        return
    set_kernel(layers, None)
    log.info("Packed rows use SDPA, not FlashAttention: %s", reason)


def refusal(
    calls: Iterable[AttentionCall], device: torch.device, kernel: VarlenKernel
) -> str | None:
    """Try a kernel on calls of these shapes; return why it cannot be used, or None."""
    for call in calls:
        if not call.plain:
            return "it supports neither soft caps of scores nor attention sinks"
        if call.dtype not in kernel.dtypes:
            return f"it does not support {str(call.dtype).removeprefix('torch.')}"
        try:
            ours, theirs = _errors(call, device, kernel)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not ours <= 2 * theirs:
            return f"its relative error is {ours:.2g}, SDPA's {theirs:.2g}, for {call}"
    return None


def _errors(call: AttentionCall, device: torch.device, kernel: VarlenKernel) -> tuple[float, float]:
    """Return the relative errors of the kernel's and of SDPA's outputs and gradients."""
    draw = torch.Generator(device).manual_seed(0)
    tokens = _TRIED[-1].end
    shapes = (
        (1, call.heads, tokens, call.size),
        (1, call.key_heads, tokens, call.size),
        (1, call.key_heads, tokens, call.value_size),
        (1, tokens, call.heads, call.value_size),
    )
    drawn = [torch.randn(x, generator=draw, device=device).to(call.dtype) for x in shapes]
    window = None if call.window is None else min(call.window, _WINDOW)

    def run(how: VarlenKernel | None, dtype: torch.dtype) -> Tensor:
        query, key, value, weight = (x.to(dtype) for x in drawn)
        leaves = [x.requires_grad_() for x in (query, key, value)]
        out = attend_within(query, key, value, Segments(_TRIED), call.scaling, window, kernel=how)
        gradients = torch.autograd.grad(out, leaves, weight.to(out.dtype))
        return torch.cat([x.double().flatten() for x in (out.detach(), *gradients)])

    with torch.enable_grad(), torch.autocast(device.type, enabled=False), without_tf32():
        truth = run(None, torch.float32)
        found = [run(how, call.dtype) for how in (kernel, None)]
    ours, theirs = (float((x - truth).norm() / truth.norm()) for x in found)
    return ours, theirs
