"""Triton kernels of the row operations; ``triton_ops`` launches them.

No kernel uses atomics: all are deterministic. Matrix offsets are int64, because N * V exceeds 2^31
at 16,744 rows of 128,256 columns. Column indices are int32, which take half as many registers.

Dimensions: C rows of a chunk, W columns of its matrix, V <= W vocabulary (the columns from V on are
padding, which may be read and overwritten), D model width, N values, S segments.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spin_kernels.targets import IGNORE_INDEX

_IGNORE_INDEX = tl.constexpr(IGNORE_INDEX)
# The initial running maximum. Not -inf, because -inf - -inf is NaN.
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _capped(z, softcap):
    """Return softcap * tanh(z / softcap).

    tanh(x) = 1 - 2 / (exp(2x) + 1) has an absolute error of 1e-7, sufficient for a logit.
    """
    return softcap - 2.0 * softcap / (tl.exp(2.0 * z / softcap) + 1.0)


@triton.jit
def _final_logits(z, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP):
    """Return the softmax's input: scaled and capped logits, -inf in the padding.

    With HAS_EXACT the target's raw logit is replaced by ``exact``.
    """
    z = z.to(tl.float32)
    if HAS_EXACT:
        z = tl.where(cols == target, exact, z)
    z = z * inverse_temperature
    if HAS_CAP:
        z = _capped(z, softcap)
    return tl.where(cols < vocab, z, -float("inf"))


@triton.jit
def _logit_gradient(z, cols, target, row_max, log_sum, inverse_temperature, softcap, HAS_CAP):
    """Return d logp / d raw logit: onehot - softmax, times the slopes of softcap and scale."""
    p = tl.exp(z - row_max - log_sum)
    d = tl.where(cols == target, 1.0 - p, -p)
    if HAS_CAP:
        slope = 1.0 - (z / softcap) * (z / softcap)
        # In the padding z and slope are -inf; the gradient there is never read.
        d = d * slope
    return d * inverse_temperature


@triton.jit
def rows_kernel(
    z_ptr,  # [C, W] raw logits; overwritten with the gradient if GRADIENT
    targets_ptr,  # [C] int64
    exact_ptr,  # [C] fp32 if HAS_EXACT
    logps_ptr,  # [C] fp32
    row_max_ptr,  # [C] fp32 unless GRADIENT
    log_sum_ptr,  # [C] fp32 unless GRADIENT
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
    """One program per row: its target's log-prob by an online log-sum-exp, then its gradient.

    The second pass visits the blocks in reverse order, beginning with those still in cache.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    z_ptr += row * stride_row
    offsets = tl.arange(0, BLOCK)
    if target == _IGNORE_INDEX:
        tl.store(logps_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, vocab, BLOCK):
                cols = start + offsets
                zero = tl.zeros([BLOCK], z_ptr.dtype.element_ty)
                tl.store(z_ptr + cols.to(tl.int64) * stride_col, zero, mask=cols < width)
        else:
            tl.store(row_max_ptr + row, 0.0)
            tl.store(log_sum_ptr + row, 0.0)
    else:
        exact = 0.0
        if HAS_EXACT:
            exact = tl.load(exact_ptr + row)
            target_logit = exact
        else:
            target_logit = tl.load(z_ptr + target * stride_col).to(tl.float32)
        target_logit = target_logit * inverse_temperature
        if HAS_CAP:
            target_logit = _capped(target_logit, softcap)

        row_max = tl.full((), _LOWEST, tl.float32)
        exp_sum = tl.full((), 0.0, tl.float32)
        # Prefetch: the next block is loaded while this one is reduced.
        prefetched = tl.load(
            z_ptr + offsets.to(tl.int64) * stride_col, mask=offsets < width, other=0.0
        )
        for start in range(0, vocab, BLOCK):
            block = prefetched
            cols = start + offsets
            next_cols = cols + BLOCK
            next_ptrs = z_ptr + next_cols.to(tl.int64) * stride_col
            prefetched = tl.load(next_ptrs, mask=next_cols < width, other=0.0)
            z = _final_logits(
                block, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP
            )
            new_max = tl.maximum(row_max, tl.max(z, 0))
            exp_sum = exp_sum * tl.exp(row_max - new_max) + tl.sum(tl.exp(z - new_max), 0)
            row_max = new_max
        log_sum = tl.log(exp_sum)
        tl.store(logps_ptr + row, target_logit - row_max - log_sum)

        if GRADIENT:
            num_blocks = tl.cdiv(vocab, BLOCK)
            for i in range(num_blocks):
                cols = (num_blocks - 1 - i) * BLOCK + offsets
                z_ptrs = z_ptr + cols.to(tl.int64) * stride_col
                block = tl.load(z_ptrs, mask=cols < width, other=0.0)
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
                    z, cols, target, row_max, log_sum, inverse_temperature, softcap, HAS_CAP
                )
                d = d.to(z_ptr.dtype.element_ty)
                tl.store(z_ptrs, d, mask=cols < width)
        else:
            tl.store(row_max_ptr + row, row_max)
            tl.store(log_sum_ptr + row, log_sum)


@triton.jit
def rows_backward_kernel(
    z_ptr,  # [C, W] raw logits
    out_ptr,  # [C, W'] gradient; may be z
    targets_ptr,  # [C] int64
    exact_ptr,  # [C] fp32 if HAS_EXACT
    row_max_ptr,  # [C] fp32
    log_sum_ptr,  # [C] fp32
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
    """One program per block of a row: grad * d logp / d raw logit; zero in an ignored row."""
    num_blocks = tl.cdiv(vocab, BLOCK)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    cols = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row)
    inside = cols < width
    exact = 0.0
    if HAS_EXACT:
        exact = tl.load(exact_ptr + row)
    z_ptrs = z_ptr + row * stride_row + cols.to(tl.int64) * stride_col
    block = tl.load(z_ptrs, mask=inside, other=0.0)
    z = _final_logits(
        block, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP
    )
    row_max, log_sum = tl.load(row_max_ptr + row), tl.load(log_sum_ptr + row)
    d = _logit_gradient(z, cols, target, row_max, log_sum, inverse_temperature, softcap, HAS_CAP)
    d = tl.where(target == _IGNORE_INDEX, 0.0, d * tl.load(grad_ptr + row))
    out_ptrs = out_ptr + row * out_stride_row + cols.to(tl.int64) * out_stride_col
    tl.store(out_ptrs, d.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def target_logits_kernel(
    hidden_ptr,  # [C, D]
    weight_ptr,  # [V, D]
    bias_ptr,  # [V] if HAS_BIAS
    targets_ptr,  # [C] int64
    out_ptr,  # [C] fp32
    hidden_stride_row,
    hidden_stride_col,
    weight_stride_row,
    weight_stride_col,
    model_width,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row: hidden . weight[target] + bias[target] in fp32; 0 if ignored."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    total = tl.zeros([BLOCK], tl.float32)
    if target != _IGNORE_INDEX:
        for start in range(0, model_width, BLOCK):
            k = start + tl.arange(0, BLOCK).to(tl.int64)
            h_ptrs = hidden_ptr + row * hidden_stride_row + k * hidden_stride_col
            w_ptrs = weight_ptr + target * weight_stride_row + k * weight_stride_col
            h = tl.load(h_ptrs, mask=k < model_width, other=0.0).to(tl.float32)
            w = tl.load(w_ptrs, mask=k < model_width, other=0.0).to(tl.float32)
            total += h * w
    value = tl.sum(total, 0)
    if HAS_BIAS:
        b = tl.load(bias_ptr + target, mask=target != _IGNORE_INDEX, other=0.0)
        value += b.to(tl.float32)
    tl.store(out_ptr + row, value)


@triton.jit
def targets_ok_kernel(targets_ptr, ok_ptr, num_rows, vocab, BLOCK: tl.constexpr):
    """A single program: whether every target is in [0, vocab) or ignored."""
    invalid = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_rows, BLOCK):
        i = start + tl.arange(0, BLOCK)
        target = tl.load(targets_ptr + i, mask=i < num_rows, other=0)
        invalid |= (((target < 0) | (target >= vocab)) & (target != _IGNORE_INDEX)).to(tl.int32)
    tl.store(ok_ptr, tl.max(invalid, 0) == 0)


@triton.jit
def segment_sums_kernel(values_ptr, offsets_ptr, out_ptr, BLOCK: tl.constexpr):
    """One program per segment: the sum of its values, accumulated in fp64."""
    segment = tl.program_id(0)
    first, last = tl.load(offsets_ptr + segment), tl.load(offsets_ptr + segment + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + i, mask=i < last, other=0.0).to(tl.float64)
    tl.store(out_ptr + segment, tl.sum(total, 0).to(tl.float32))


@triton.jit
def scale_kernel(x_ptr, scalar_ptr, numel, BLOCK: tl.constexpr):
    """One program per block: multiply it by a scalar; a scalar of 1 skips the loads and stores."""
    scalar = tl.load(scalar_ptr).to(tl.float32)
    if scalar != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < numel).to(tl.float32) * scalar
        tl.store(x_ptr + i, x.to(x_ptr.dtype.element_ty), mask=i < numel)
