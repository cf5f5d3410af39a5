"""Triton kernels of the row operations; ``triton_ops`` launches them.

Every kernel runs one program per row (or per block of a row), uses no atomics and gives the same
bits twice. Offsets into matrices are int64: N * V passes 2^31 at 16744 rows of 128256 columns.
Column numbers are int32, which halves the registers that they take.

Dimensions: C rows of a chunk, W columns of its matrix, V <= W vocabulary (the columns from V on are
padding, which may be read and overwritten), D model width, S sequences.
"""

from __future__ import annotations

import triton
import triton.language as tl

_IGNORED = tl.constexpr(-100)
# In place of -inf as the first running maximum: -inf - -inf would be nan.
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _capped(z, softcap):
    """Return softcap * tanh(z / softcap).

    tanh(x) is 1 - 2 / (exp(2x) + 1): right to 1e-7 absolutely, which is what a logit needs.
    """
    return softcap - 2.0 * softcap / (tl.exp(2.0 * z / softcap) + 1.0)


@triton.jit
def _final_logits(z, cols, vocab, target, exact, inverse_temperature, softcap, HAS_EXACT, HAS_CAP):
    """Return the softmax's logits: exact at the target, scaled, capped; -inf in the padding."""
    z = z.to(tl.float32)
    if HAS_EXACT:
        z = tl.where(cols == target, exact, z)
    z = z * inverse_temperature
    if HAS_CAP:
        z = _capped(z, softcap)
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
def rows_kernel(
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
    offsets = tl.arange(0, BLOCK)
    if target == _IGNORED:
        tl.store(logps_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, vocab, BLOCK):
                cols = start + offsets
                zero = tl.zeros([BLOCK], z_ptr.dtype.element_ty)
                tl.store(z_ptr + cols.to(tl.int64) * stride_col, zero, mask=cols < width)
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
            picked = _capped(picked, softcap)

        top = tl.full((), _LOWEST, tl.float32)
        total = tl.full((), 0.0, tl.float32)
        # One block ahead, so that its loads are under way while this one is reduced.
        ahead = tl.load(z_ptr + offsets.to(tl.int64) * stride_col, mask=offsets < width, other=0.0)
        for start in range(0, vocab, BLOCK):
            block = ahead
            cols = start + offsets
            after = cols + BLOCK
            ahead = tl.load(z_ptr + after.to(tl.int64) * stride_col, mask=after < width, other=0.0)
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
                    z, cols, target, top, log_total, inverse_temperature, softcap, HAS_CAP
                )
                d = d.to(z_ptr.dtype.element_ty)
                tl.store(z_ptrs, d, mask=cols < width)
        else:
            tl.store(top_ptr + row, top)
            tl.store(log_total_ptr + row, log_total)


@triton.jit
def rows_backward_kernel(
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
    top, log_total = tl.load(top_ptr + row), tl.load(log_total_ptr + row)
    d = _logit_gradient(z, cols, target, top, log_total, inverse_temperature, softcap, HAS_CAP)
    d = tl.where(target == _IGNORED, 0.0, d * tl.load(grad_ptr + row))
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
def targets_ok_kernel(targets_ptr, ok_ptr, num_rows, vocab, BLOCK: tl.constexpr):
    """One program: whether every target is in [0, vocab) or ignored."""
    wrong = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_rows, BLOCK):
        i = start + tl.arange(0, BLOCK)
        target = tl.load(targets_ptr + i, mask=i < num_rows, other=0)
        wrong |= (((target < 0) | (target >= vocab)) & (target != _IGNORED)).to(tl.int32)
    tl.store(ok_ptr, tl.max(wrong, 0) == 0)


@triton.jit
def segment_sums_kernel(values_ptr, offsets_ptr, out_ptr, BLOCK: tl.constexpr):
    """One sequence: the sum of its values in fp64."""
    sequence = tl.program_id(0)
    first, last = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + i, mask=i < last, other=0.0).to(tl.float64)
    tl.store(out_ptr + sequence, tl.sum(total, 0).to(tl.float32))


@triton.jit
def scale_kernel(x_ptr, scalar_ptr, numel, BLOCK: tl.constexpr):
    """Multiply a block by a scalar; nothing is read where the scalar is 1."""
    scalar = tl.load(scalar_ptr).to(tl.float32)
    if scalar != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < numel).to(tl.float32) * scalar
        tl.store(x_ptr + i, x.to(x_ptr.dtype.element_ty), mask=i < numel)
