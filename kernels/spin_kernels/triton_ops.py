"""The row operations on a GPU: Triton kernels, and the functions that launch them.

Same functions as in ``torch_ops``. Every kernel runs one program per row (or per block of a row),
uses no atomics and gives the same bits twice.

Dimensions: C rows of a chunk, W columns of its matrix, V <= W vocabulary (the columns from V on are
padding, which these functions may read and overwrite), D model width, S sequences.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spin_kernels.shape import LogitScale

_IGNORED = tl.constexpr(-100)
# In place of -inf as the first running maximum: -inf - -inf would be nan.
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _final_logits(z, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP):
    """Return the logits that the softmax sees: exact at the target, scaled, capped; -inf padding.

    tanh(x) is 1 - 2 / (exp(2x) + 1): absolutely exact to 1e-7, which is what a logit needs.
    """
    z = z.to(tl.float32)
    if HAS_EXACT:
        z = tl.where(cols == target, exact, z)
    z = z * inverse_temperature
    if HAS_CAP:
        z = softcap - 2.0 * softcap / (tl.exp(2.0 * z / softcap) + 1.0)
    return tl.where(cols < vocab, z, -float("inf"))


@triton.jit
def _logit_gradient(z, cols, target, top, log_total, inverse_temperature, softcap, HAS_CAP):
    """Return d logp / d raw logit of a block: (onehot - softmax), back through cap and scale."""
    p = tl.exp(z - top - log_total)
    d = tl.where(cols == target, 1.0 - p, -p)
    if HAS_CAP:
        slope = 1.0 - (z / softcap) * (z / softcap)
        # Padding is -inf here, and its slope too; what is written there is never read.
        d = d * slope
    return d * inverse_temperature


@triton.jit
def _rows_kernel(
    z_ptr,  # [C, W]; overwritten with the gradient if GRADIENT
    targets_ptr,  # [C] int64
    exact_ptr,  # [C] fp32 if HAS_EXACT
    logps_ptr,  # [C] fp32
    top_ptr,  # [C] fp32 unless GRADIENT
    log_total_ptr,  # [C] fp32 unless GRADIENT
    stride_row,
    stride_col,
    width,
    vocab,
    inverse_temperature,
    softcap,
    HAS_EXACT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: log-prob of its target by an online log-sum-exp; then the gradient in place.

    The second pass goes backwards, over what the caches still hold of the first.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    z_ptr += row * stride_row
    offsets = tl.arange(0, BLOCK).to(tl.int64)
    if target == _IGNORED:
        tl.store(logps_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, vocab, BLOCK):
                cols = start + offsets
                zero = tl.zeros([BLOCK], z_ptr.dtype.element_ty)
                tl.store(z_ptr + cols * stride_col, zero, mask=cols < width)
        else:
            tl.store(top_ptr + row, 0.0)
            tl.store(log_total_ptr + row, 0.0)
    else:
        exact = 0.0
        if HAS_EXACT:
            exact = tl.load(exact_ptr + row)
            picked = exact
        else:
            picked = tl.load(z_ptr + target * stride_col).to(tl.float32)
        picked = picked * inverse_temperature
        if HAS_CAP:
            picked = softcap - 2.0 * softcap / (tl.exp(2.0 * picked / softcap) + 1.0)

        top = tl.full((), _LOWEST, tl.float32)
        total = tl.full((), 0.0, tl.float32)
        # One block ahead, so that its loads are under way while this one is reduced.
        ahead = tl.load(z_ptr + offsets * stride_col, mask=offsets < width, other=0.0)
        for start in range(0, vocab, BLOCK):
            block = ahead
            cols = start + offsets
            after = cols + BLOCK
            ahead = tl.load(z_ptr + after * stride_col, mask=after < width, other=0.0)
            z = _final_logits(
                block, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP
            )
            new_top = tl.maximum(top, tl.max(z, 0))
            total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
            top = new_top
        log_total = tl.log(total)
        tl.store(logps_ptr + row, picked - top - log_total)

        if GRADIENT:
            num_blocks = tl.cdiv(vocab, BLOCK)
            for i in range(0, num_blocks):
                cols = (num_blocks - 1 - i) * BLOCK + offsets
                block = tl.load(z_ptr + cols * stride_col, mask=cols < width, other=0.0)
                z = _final_logits(
                    block,
                    cols,
                    vocab,
                    target,
                    exact,
                    inverse_temperature,
                    softcap,
                    HAS_EXACT,
                    HAS_CAP,
                )
                d = _logit_gradient(
                    z, cols, target, top, log_total, inverse_temperature, softcap, HAS_CAP
                )
                d = d.to(z_ptr.dtype.element_ty)
                tl.store(z_ptr + cols * stride_col, d, mask=cols < width)
        else:
            tl.store(top_ptr + row, top)
            tl.store(log_total_ptr + row, log_total)


@triton.jit
def _rows_backward_kernel(
    z_ptr,  # [C, W]
    out_ptr,  # [C, W'], may be z
    targets_ptr,  # [C] int64
    exact_ptr,  # [C] fp32 if HAS_EXACT
    top_ptr,  # [C] fp32
    log_total_ptr,  # [C] fp32
    grad_ptr,  # [C] fp32
    stride_row,
    stride_col,
    out_stride_row,
    out_stride_col,
    width,
    vocab,
    inverse_temperature,
    softcap,
    HAS_EXACT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row: grad * d logp / d raw logit, zero in a row without target."""
    num_blocks = tl.cdiv(vocab, BLOCK)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    cols = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    target = tl.load(targets_ptr + row)
    inside = cols < width
    exact = 0.0
    if HAS_EXACT:
        exact = tl.load(exact_ptr + row)
    block = tl.load(z_ptr + row * stride_row + cols * stride_col, mask=inside, other=0.0)
    z = _final_logits(
        block, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP
    )
    top, log_total = tl.load(top_ptr + row), tl.load(log_total_ptr + row)
    d = _logit_gradient(z, cols, target, top, log_total, inverse_temperature, softcap, HAS_CAP)
    d = tl.where(target == _IGNORED, 0.0, d * tl.load(grad_ptr + row))
    out_ptr += row * out_stride_row
    tl.store(out_ptr + cols * out_stride_col, d.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _target_logits_kernel(
    hidden_ptr,  # [C, D]
    weight_ptr,  # [V, D]
    bias_ptr,  # [V] if HAS_BIAS
    targets_ptr,  # [C] int64
    out_ptr,  # [C] fp32
    hidden_stride_row,
    hidden_stride_col,
    weight_stride_row,
    weight_stride_col,
    depth,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: hidden . weight[target] + bias[target], summed in fp32; 0 without target."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    total = tl.zeros([BLOCK], tl.float32)
    if target != _IGNORED:
        for start in range(0, depth, BLOCK):
            k = start + tl.arange(0, BLOCK).to(tl.int64)
            h_ptrs = hidden_ptr + row * hidden_stride_row + k * hidden_stride_col
            w_ptrs = weight_ptr + target * weight_stride_row + k * weight_stride_col
            h = tl.load(h_ptrs, mask=k < depth, other=0.0).to(tl.float32)
            w = tl.load(w_ptrs, mask=k < depth, other=0.0).to(tl.float32)
            total += h * w
    value = tl.sum(total, 0)
    if HAS_BIAS:
        b = tl.load(bias_ptr + target, mask=target != _IGNORED, other=0.0)
        value += b.to(tl.float32)
    tl.store(out_ptr + row, value)


@triton.jit
def _segment_sums_kernel(values_ptr, offsets_ptr, out_ptr, BLOCK: tl.constexpr):
    """One sequence: the sum of its values in fp64."""
    sequence = tl.program_id(0)
    first, last = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + i, mask=i < last, other=0.0).to(tl.float64)
    tl.store(out_ptr + sequence, tl.sum(total, 0).to(tl.float32))


@triton.jit
def _scale_kernel(x_ptr, scalar_ptr, numel, BLOCK: tl.constexpr):
    """x *= scalar; nothing is read where the scalar is 1."""
    scalar = tl.load(scalar_ptr).to(tl.float32)
    if scalar != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < numel).to(tl.float32) * scalar
        tl.store(x_ptr + i, x.to(x_ptr.dtype.element_ty), mask=i < numel)


IS_INTERPRETED = not isinstance(_rows_kernel, triton.JITFunction)
"""Whether ``TRITON_INTERPRET=1`` was set when this module was imported: CPU tensors are allowed."""

# (columns of a block, warps): a row is a loop over blocks. 32 elements a thread keep 64 bytes of
# bf16 in flight per thread; larger blocks spill.
ROW_CONFIGS = ((1024, 4), (4096, 8), (16384, 16))
BACKWARD_CONFIGS = ((1024, 4), (8192, 8))
_DOT_BLOCK, _SUM_BLOCK, _SCALE_BLOCK = 1024, 1024, 4096


def work_bytes(dtype: torch.dtype, scale: LogitScale) -> int:
    """Return the bytes per logit alive while a chunk is worked on: the chunk itself."""
    del scale
    return dtype.itemsize


def logps(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probs [C] of targets [C] under raw logits z [C, W], and their norm.

    The norm is the largest logit [C] and the log [C] of the sum over it. ``z`` is only read
    (``keep`` matters to ``torch_ops`` alone).
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
    block, num_warps = _config(ROW_CONFIGS, vocab)
    _launch(
        _rows_kernel,
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
    norm: tuple[Tensor, Tensor],
    grad: Tensor,
    scale: LogitScale,
    out: Tensor,
) -> None:
    """Write grad [C] * d logps / d raw logits to ``out`` [C, W], which may be z [C, W]."""
    block, num_warps = _config(BACKWARD_CONFIGS, vocab)
    _launch(
        _rows_backward_kernel,
        z.shape[0] * triton.cdiv(vocab, block),
        z,
        out,
        targets,
        targets if exact is None else exact,
        *norm,
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
    """Return hidden[c] . weight[targets[c]] + bias[targets[c]] [C] in fp32; 0 without target."""
    out = torch.empty_like(targets, dtype=torch.float32)
    _launch(
        _target_logits_kernel,
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


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums [S] of values [N] between offsets [S + 1] int64, made in fp64."""
    out = torch.empty(offsets.shape[0] - 1, dtype=torch.float32, device=values.device)
    _launch(
        _segment_sums_kernel, len(out), values, offsets, out, BLOCK=_SUM_BLOCK, num_warps=4
    )
    return out


def scale_(x: Tensor, scalar: Tensor) -> Tensor:
    """Multiply a contiguous ``x`` by a scalar on its device, in place; free where it is 1."""
    blocks = triton.cdiv(x.numel(), _SCALE_BLOCK)
    _launch(_scale_kernel, blocks, x, scalar, x.numel(), BLOCK=_SCALE_BLOCK, num_warps=4)
    return x


def _config(configs: tuple[tuple[int, int], ...], vocab: int) -> tuple[int, int]:
    """Return the first configuration whose block holds the row, else the largest."""
    return next((c for c in configs if c[0] >= vocab), configs[-1])


def _launch(kernel: Any, num_programs: int, first: Tensor, *args: Any, **meta: Any) -> None:
    """Run ``num_programs`` programs on the device of the first argument; none for an empty one."""
    if num_programs:
        on_gpu = first.device.type == "cuda"
        with torch.cuda.device(first.device) if on_gpu else nullcontext():
            kernel[(num_programs,)](first, *args, **meta)
