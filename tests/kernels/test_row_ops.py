"""The row operations themselves: torch_ops and triton_ops against fp64 and each other.

Dimensions: C rows, W columns of a chunk, V <= W vocabulary.
"""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spin_kernels import torch_ops
from spin_kernels.dispatch import row_ops
from spin_kernels.shape import LogitScale
from tests.kernels.oracle import DTYPES, IGNORED, OPTIONS
from tests.kernels.rounding import to_bfloat16_bits

SCALES = [LogitScale(**{k: float(v) for k, v in options.items()}) for options in OPTIONS]
ROWS, VOCAB, WIDTH = 6, 1030, 1040  # more than one block, and padding


def chunk(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return raw logits [C, W] with poisoned padding, targets [C] and exact target logits [C]."""
    rng = torch.Generator().manual_seed(seed)
    z = (3 * torch.randn(ROWS, WIDTH, generator=rng)).to(dtype)
    z[:, VOCAB:] = torch.nan
    targets = torch.tensor([0, VOCAB - 1, IGNORED, 1023, 1024, 7])
    exact = z.gather(1, targets.clamp_min(0)[:, None])[:, 0].float() + 0.01
    return z, targets, exact


def truth(z: Tensor, targets: Tensor, exact: Tensor | None, scale: LogitScale) -> list[Tensor]:
    """Return log-probs [C], and the gradient of each in its row of raw logits [C, V], in fp64."""
    raw = z[:, :VOCAB].double()
    safe = targets.clamp_min(0)[:, None]
    if exact is not None:
        raw = raw.scatter(1, safe, exact[:, None].double())
    raw.requires_grad_()
    logits = raw / scale.temperature
    if scale.softcap is not None:
        logits = scale.softcap * torch.tanh(logits / scale.softcap)
    picked = torch.log_softmax(logits, 1).gather(1, safe)[:, 0]
    logps = torch.where(targets == IGNORED, 0.0, picked)
    return [logps.detach(), torch.autograd.grad(logps.sum(), raw)[0]]


def assert_near(value: Tensor, true: Tensor) -> None:
    """Hold a value to its dtype's rounding of the true one, and to fp32's in between."""
    bound = 1e-5 * max(1.0, float(true.abs().max())) + torch.finfo(value.dtype).eps * true.abs() / 2
    assert ((value.double() - true).abs() <= bound).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("with_exact", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logps_and_their_gradient_equal_truth_and_padding_is_not_read(
    dtype: torch.dtype, with_exact: bool, scale: LogitScale, impl: str
) -> None:
    ops = row_ops(impl)
    z, targets, exact = chunk(dtype)
    exact = exact if with_exact else None
    true_logps, true_gradient = truth(z, targets, exact, scale)

    kept = z.clone()
    logps, *norm = ops.logps(kept, VOCAB, targets, exact, scale, keep=True)
    assert torch.equal(kept.view(torch.uint8), z.view(torch.uint8))
    assert_near(logps, true_logps)

    together = z.clone()
    assert_near(ops.logps_and_gradient_(together, VOCAB, targets, exact, scale), true_logps)
    assert_near(together[:, :VOCAB], true_gradient)

    grad = torch.linspace(-2, 3, ROWS)
    for out in (z.clone(), torch.full_like(z, torch.nan)):
        source = out if torch.equal(out[:, 0], z[:, 0]) else z
        ops.logps_backward(source, VOCAB, targets, exact, tuple(norm), grad, scale, out)
        assert_near(out[:, :VOCAB], grad[:, None].double() * true_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_without_target_is_zero_whatever_it_holds(dtype: torch.dtype, impl: str) -> None:
    ops, targets = row_ops(impl), torch.full((3,), IGNORED)
    z = torch.tensor([torch.nan, torch.inf, -torch.inf]).to(dtype)[:, None].repeat(1, WIDTH)
    logps, *norm = ops.logps(z, VOCAB, targets, None, LogitScale(), keep=True)
    assert (logps == 0).all()
    out = torch.empty_like(z)
    ops.logps_backward(z, VOCAB, targets, None, tuple(norm), torch.ones(3), LogitScale(), out)
    assert (out[:, :VOCAB] == 0).all()
    assert (ops.logps_and_gradient_(z, VOCAB, targets, None, LogitScale()) == 0).all()
    assert (z[:, :VOCAB] == 0).all()


@pytest.mark.parametrize("vocab", [1, 2, 1000, 1024, 1025, 4096, 4097, 8193, 16384, 16385])
def test_vocabularies_around_a_block_equal_truth(vocab: int, impl: str) -> None:
    ops = row_ops(impl)
    rng = torch.Generator().manual_seed(vocab)
    z = 3 * torch.randn(2, vocab, generator=rng)
    targets = torch.tensor([0, vocab - 1])
    raw = z.double().requires_grad_()
    logps = torch.log_softmax(raw, 1).gather(1, targets[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(logps.sum(), raw)
    found, *norm = ops.logps(z, vocab, targets, None, LogitScale(), keep=True)
    assert_near(found, logps.detach())
    out = torch.empty_like(z)
    ops.logps_backward(z, vocab, targets, None, tuple(norm), torch.ones(2), LogitScale(), out)
    assert_near(out, gradient)
    assert_near(ops.logps_and_gradient_(z, vocab, targets, None, LogitScale()), logps.detach())
    assert_near(z, gradient)


@pytest.mark.parametrize("depth", [1, 64, 123, 1025])
@pytest.mark.parametrize("dtype", DTYPES)
def test_target_logits_are_fp32_dot_products(dtype: torch.dtype, depth: int, impl: str) -> None:
    rng = torch.Generator().manual_seed(depth)
    hidden, weight, bias = (
        torch.randn(*shape, generator=rng).to(dtype) for shape in ((4, depth), (9, depth), (9,))
    )
    targets = torch.tensor([0, 8, IGNORED, 3])
    dots = (hidden.double() * weight[targets.clamp_min(0)].double()).sum(1)
    for b, added in ((None, 0.0), (bias, bias[targets.clamp_min(0)].double())):
        expected = torch.where(targets == IGNORED, 0.0, dots + added)
        found = row_ops(impl).target_logits(hidden, weight, b, targets)
        assert found.dtype == torch.float32
        assert_near(found, expected)
        turned = row_ops(impl).target_logits(hidden.T.contiguous().T, weight, b, targets)
        assert_near(turned, expected)


@pytest.mark.parametrize("n", [1, 4096, 5000])
def test_a_target_outside_the_vocabulary_is_seen_anywhere(n: int, impl: str) -> None:
    ops = row_ops(impl)
    right = torch.arange(n) % 7
    right[::3] = IGNORED
    assert ops.targets_ok(right, 7).tolist() == [True]
    for row in {0, n // 2, n - 1}:
        for wrong in (-1, -101, 7, 2**40, -(2**40)):
            targets = right.clone()
            targets[row] = wrong
            assert ops.targets_ok(targets, 7).tolist() == [False]


def test_segment_sums_are_exact_to_one_rounding_for_empty_and_long_segments(impl: str) -> None:
    offsets = torch.tensor([0, 0, 1, 1, 1025, 1025 + 1024, 6000, 6000])
    rng = torch.Generator().manual_seed(0)
    values = -8 * torch.rand(6000, generator=rng)
    sums = row_ops(impl).segment_sums(values, offsets)
    expected = torch.stack([values[a:b].double().sum() for a, b in offsets.unfold(0, 2, 1)])
    assert torch.equal(sums, expected.float())
    assert row_ops(impl).segment_sums(values[:0], torch.zeros(1).long()).shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1,), (5, 7), (3, 4099)])
def test_scale_rounds_once_and_leaves_the_bits_at_one(
    dtype: torch.dtype, shape: tuple[int, ...], impl: str
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng).to(dtype)
    for scalar in (1.0, 0.0, -2.5, 1.0 + 2**-12, 0.1):
        factor = torch.tensor(scalar)
        expected = (x.double() * factor.double()).float().to(dtype)
        scaled = x.clone()
        assert row_ops(impl).scale_(scaled, factor).data_ptr() == scaled.data_ptr()
        assert torch.equal(scaled, x if scalar == 1.0 else expected)


def test_the_interpreter_rounds_to_bf16_as_pytorch_does() -> None:
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = (upper | lower).view(np.float32)  # every bf16, at it, and around the ties above it
    ours = torch.from_numpy(to_bfloat16_bits(values).view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(
        ours, torch.from_numpy(values).bfloat16(), rtol=0, atol=0, equal_nan=True
    )
    for value in (1.0 + 2**-8 + 2**-20, 1.0 + 3 * 2**-8, 1.9999999, 3.4e38):
        x = torch.ones(1, dtype=torch.bfloat16)
        row_ops("triton").scale_(x, torch.tensor(value))
        assert torch.equal(x, torch.tensor([value]).bfloat16())


def far_apart(rows: int, columns: int, row_stride: int, column_stride: int) -> Tensor:
    """Return a bf16 matrix spread over more than 2^31 elements of memory, most never touched."""
    last = (rows - 1) * row_stride + (columns - 1) * column_stride
    assert last > 2**31
    room = torch.empty(last + 1, dtype=torch.bfloat16)
    return room.as_strided((rows, columns), (row_stride, column_stride))


@pytest.mark.parametrize("strides", [(2**30 + 8, 1), (1, 2**29 + 8)])
def test_offsets_pass_2_to_the_31(strides: tuple[int, int], impl: str) -> None:
    ops, scale = row_ops(impl), LogitScale()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = torch.Generator().manual_seed(0)
    z, targets = torch.randn(3, 5, generator=rng).bfloat16(), torch.tensor([0, 4, 2])
    far = far_apart(3, 5, *strides).copy_(z)
    found, *norm = ops.logps(far, 5, targets, None, scale, keep=True)
    expected, *_ = torch_ops.logps(z, 5, targets, None, scale, keep=True)
    assert_near(found, expected.double())
    near: dict[str, Any] = {name: torch.empty_like(z) for name in ("read", "written")}
    ops.logps_backward(far, 5, targets, None, tuple(norm), torch.ones(3), scale, near["read"])
    ops.logps_backward(z, 5, targets, None, tuple(norm), torch.ones(3), scale, near["written"])
    dots = ops.target_logits(far, far, None, targets % 3)
    assert_near(dots, (z.double() * z[targets % 3].double()).sum(1))
    ops.logps_backward(far, 5, targets, None, tuple(norm), torch.ones(3), scale, far)
    assert torch.equal(far, near["written"])
    assert torch.equal(near["read"], near["written"])
    far.copy_(z)
    assert_near(ops.logps_and_gradient_(far, 5, targets, None, scale), expected.double())
    assert_near(far, near["written"].double())
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 2**18
