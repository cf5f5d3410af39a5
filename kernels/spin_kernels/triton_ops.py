"""The row operations on a GPU: functions that launch the Triton kernels.

Defines the same functions as ``torch_ops``, where their arguments are described. They accumulate in
fp32.

Dimensions: C rows of a chunk, W columns of its matrix, V <= W vocabulary (the columns from V on are
padding, which these functions may read and overwrite), D model width, N values, S segments.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from spin_kernels.shape import LogitScale
from spin_kernels.triton_kernels import (
    rows_backward_kernel,
    rows_kernel,
    scale_kernel,
    segment_sums_kernel,
    target_logits_kernel,
    targets_ok_kernel,
)

IS_INTERPRETED = not isinstance(rows_kernel, triton.JITFunction)
"""Whether ``TRITON_INTERPRET=1`` was set when this module was imported: CPU tensors are allowed."""

# (bytes per block, warps), in increasing order. The first block that holds a row is used; a row
# that exceeds the last is processed in a loop over blocks. That is 16 to 64 bytes per thread,
# loaded 16 at a time. The kernel that also computes the gradient reads each row twice: fewer rows
# in flight let the second read hit the L2 cache.
ROW_CONFIGS = ((2048, 4), (8192, 8), (32768, 16))
GRADIENT_CONFIGS = ((2048, 4), (16384, 16))
BACKWARD_CONFIGS = ((2048, 4), (16384, 8))
_DOT_BLOCK, _SUM_BLOCK, _SCALE_BLOCK, _TARGETS_BLOCK = 1024, 1024, 4096, 4096


def work_bytes(dtype: torch.dtype, scale: LogitScale) -> int:
    """Return the peak number of bytes per logit while a chunk is processed: the chunk itself."""
    del scale
    return dtype.itemsize


def logps(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, row maxima and logs of the sums of exp(logit - maximum), each [C] fp32.

    ``z`` [C, W] is never written, whatever ``keep`` says.
    """
    del keep
    result = tuple(torch.empty_like(targets, dtype=torch.float32) for _ in range(3))
    _launch_rows(z, vocab, targets, exact, scale, result, gradient=False)
    return result  # type: ignore[return-value]


def logps_and_gradient_(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale
) -> Tensor:
    """Return the log-probs [C], and overwrite z [C, W] with d logps / d raw logits."""
    out = torch.empty_like(targets, dtype=torch.float32)
    _launch_rows(z, vocab, targets, exact, scale, (out, out, out), gradient=True)
    return out


def _launch_rows(
    z: Tensor,
    vocab: int,
    targets: Tensor,
    exact: Tensor | None,
    scale: LogitScale,
    out: tuple[Tensor, ...],
    gradient: bool,
) -> None:
    block, num_warps = _config(GRADIENT_CONFIGS if gradient else ROW_CONFIGS, z, vocab)
    _launch(
        rows_kernel,
        z.shape[0],
        z,
        targets,
        targets if exact is None else exact,
        *out,
        *z.stride(),
        z.shape[1],
        vocab,
        1.0 / scale.temperature,
        scale.softcap or 0.0,
        HAS_EXACT=exact is not None,
        HAS_CAP=scale.softcap is not None,
        GRADIENT=gradient,
        BLOCK=block,
        num_warps=num_warps,
    )


def logps_backward(
    z: Tensor,
    vocab: int,
    targets: Tensor,
    exact: Tensor | None,
    normalizer: tuple[Tensor, Tensor],
    grad: Tensor,
    scale: LogitScale,
    out: Tensor,
) -> None:
    """Write grad [C] * d logps / d raw logits to ``out`` [C, W], which may be ``z`` [C, W]."""
    block, num_warps = _config(BACKWARD_CONFIGS, z, vocab)
    _launch(
        rows_backward_kernel,
        z.shape[0] * triton.cdiv(vocab, block),
        z,
        out,
        targets,
        targets if exact is None else exact,
        *normalizer,
        grad,
        *z.stride(),
        *out.stride(),
        z.shape[1],
        vocab,
        1.0 / scale.temperature,
        scale.softcap or 0.0,
        HAS_EXACT=exact is not None,
        HAS_CAP=scale.softcap is not None,
        BLOCK=block,
        num_warps=num_warps,
    )


def target_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return hidden[c] . weight[targets[c]] + bias[targets[c]] [C] fp32; 0 if ignored."""
    out = torch.empty_like(targets, dtype=torch.float32)
    _launch(
        target_logits_kernel,
        hidden.shape[0],
        hidden,
        weight,
        weight if bias is None else bias,
        targets,
        out,
        *hidden.stride(),
        *weight.stride(),
        hidden.shape[1],
        HAS_BIAS=bias is not None,
        BLOCK=_DOT_BLOCK,
        num_warps=4,
    )
    return out


def targets_ok(targets: Tensor, vocab: int) -> Tensor:
    """Return [1] bool: whether every target [N] (at least one) is in [0, vocab) or -100."""
    out = torch.empty(1, dtype=torch.bool, device=targets.device)
    num_rows, block = targets.shape[0], _TARGETS_BLOCK
    _launch(targets_ok_kernel, 1, targets, out, num_rows, vocab, BLOCK=block, num_warps=8)
    return out


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums [S] fp32 of values [N] fp32 between offsets [S + 1], accumulated in fp64."""
    out = torch.empty(offsets.shape[0] - 1, dtype=torch.float32, device=values.device)
    _launch(segment_sums_kernel, len(out), values, offsets, out, BLOCK=_SUM_BLOCK, num_warps=4)
    return out


def scale_(x: Tensor, scalar: Tensor) -> Tensor:
    """Multiply a contiguous ``x`` in place by a 0-dimensional tensor on its device, and return it.

    A scalar of 1 is detected on the device, and x is then not read.
    """
    blocks = triton.cdiv(x.numel(), _SCALE_BLOCK)
    _launch(scale_kernel, blocks, x, scalar, x.numel(), BLOCK=_SCALE_BLOCK, num_warps=4)
    return x


def _config(configs: tuple[tuple[int, int], ...], z: Tensor, vocab: int) -> tuple[int, int]:
    """Return the columns per block and the number of warps for rows of ``vocab`` columns of z."""
    item = z.element_size()
    size, num_warps = next((c for c in configs if c[0] >= vocab * item), configs[-1])
    return size // item, num_warps


def _launch(kernel: Any, num_programs: int, first: Tensor, *args: Any, **meta: Any) -> None:
    """Launch a kernel with a grid of ``num_programs`` on the first argument's device.

    An empty grid, which CUDA does not allow, launches nothing.
    """
    if num_programs:
        on_gpu = first.device.type == "cuda"
        with torch.cuda.device(first.device) if on_gpu else nullcontext():
            kernel[(num_programs,)](first, *args, **meta)
