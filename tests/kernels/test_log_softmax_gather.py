"""log_softmax_gather against fp64 truth, at its edges, and as a custom operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spin_kernels import log_softmax_gather, log_softmax_gather_ref
from tests.kernels.oracle import DTYPES, IGNORED, assert_as_exact, edge_targets, sampled

GRID = [*product((0, 1, 127, 128, 129, 1025), (2, 1000, 32000)), (129, 50257)]
QUICK = [(0, 1000), (1, 32000), (127, 2), (128, 1000), (129, 1000)]


@lru_cache(maxsize=1)
def made(n: int, v: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return logits [n, v] that every dtype holds, targets [n], and the truth."""
    rng = torch.Generator().manual_seed(n + v)
    logits = (4 * torch.randn(n, v, generator=rng)).bfloat16().half().double()
    targets = edge_targets(n, v, rng)
    return logits, targets, results(true_op, logits.requires_grad_(), targets)


def true_op(logits: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


def results(op: Callable[..., Tensor], logits: Tensor, targets: Tensor, **options) -> list[Tensor]:
    logps = op(logits, targets, **options)
    upstream = torch.linspace(-1, 2, len(logps), dtype=logps.dtype)
    return [logps.detach(), *torch.autograd.grad(logps, logits, upstream)]


def check(logits: Tensor, targets: Tensor, truth: list[Tensor], impl: str) -> None:
    ours = results(log_softmax_gather, logits, targets, impl=impl)
    assert_as_exact(ours, results(log_softmax_gather_ref, logits, targets), truth)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == logits.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "v"), sampled(GRID, QUICK))
def test_equals_truth(n: int, v: int, dtype: torch.dtype, impl: str) -> None:
    logits, targets, truth = made(n, v)
    check(logits.detach().to(dtype).requires_grad_(), targets, truth, impl)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_1e4_are_exact(dtype: torch.dtype, impl: str) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 1e4 * torch.randint(-1, 2, (12, 40), generator=rng).double()
    logits[0], logits[1] = 1e4, -1e4
    targets = torch.arange(12)
    truth = results(true_op, logits.requires_grad_(), targets)
    check(logits.detach().to(dtype).requires_grad_(), targets, truth, impl)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [8.0, 16.0, 64.0, 1e4])
def test_probability_near_one_leaves_no_gradient_and_no_nan(
    dtype: torch.dtype, lead: float, impl: str
) -> None:
    logits = torch.zeros(3, 1000, dtype=torch.float64)
    targets = torch.tensor([0, 500, 999])
    logits[torch.arange(3), targets] = lead
    truth = results(true_op, logits.requires_grad_(), targets)
    check(logits.detach().to(dtype).requires_grad_(), targets, truth, impl)


def test_ignored_rows_give_zero_and_no_gradient_whatever_they_hold(impl: str) -> None:
    targets = torch.full((4,), IGNORED)
    logits = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan]).expand(7, 4).T.contiguous()
    logps, gradient = results(log_softmax_gather, logits.requires_grad_(), targets, impl=impl)
    assert (logps == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("vocab", [1023, 1024, 1025, 16384, 16385])
def test_target_in_any_tile_is_found(vocab: int, impl: str) -> None:
    targets = torch.tensor([0, vocab - 1, vocab // 2, 1022, vocab - 2])
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, vocab, generator=rng, dtype=torch.float64).float().double()
    truth = results(true_op, logits.requires_grad_(), targets)
    check(logits.detach().float().requires_grad_(), targets, truth, impl)


def test_entries_of_minus_infinity_are_left_out(impl: str) -> None:
    logits = torch.linspace(-3, 3, 70).view(7, 10)
    logits[:, 7:] = -torch.inf
    logits[3, :5] = -torch.inf
    targets = torch.tensor([0, 1, 2, 5, 6, IGNORED, 6])
    padded = results(log_softmax_gather, logits.requires_grad_(), targets, impl=impl)
    short = logits.detach()[:, :7].requires_grad_()
    plain = results(log_softmax_gather_ref, short, targets)
    torch.testing.assert_close(padded[0], plain[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(padded[1][:, :7], plain[1], atol=1e-6, rtol=1e-6)
    assert (padded[1][:, 7:] == 0).all()


def test_strided_logits_and_targets_give_the_same(impl: str) -> None:
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(30, 3, 17, generator=rng)
    targets = torch.randint(0, 9, (34,), generator=rng)[::2]
    for view in (base[:, 1, :].T, base[:17, 1, 3:], base[:17, 0, ::2], base[:1, 0].expand(17, 17)):
        strided = view.detach().requires_grad_()
        assert strided.stride() != (strided.shape[1], 1)
        truth = results(true_op, view.double().requires_grad_(), targets)
        check(strided, targets, truth, impl)


def test_large_logits_lose_no_precision_in_the_norm(impl: str) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(200, 40, generator=rng)).requires_grad_()
    targets = torch.randint(0, 40, (200,), generator=rng)
    ours, twin = (
        results(op, logits, targets, **options)
        for op, options in ((log_softmax_gather, {"impl": impl}), (log_softmax_gather_ref, {}))
    )
    truth = results(true_op, logits.detach().double().requires_grad_(), targets)
    for mine, plain, true in zip(ours, twin, truth, strict=True):
        assert (mine - true).abs().max() <= 2 * (plain - true).abs().max() + 1e-7


def test_gradcheck() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, IGNORED, 2])
    for op in (log_softmax_gather, log_softmax_gather_ref):
        assert torch.autograd.gradcheck(lambda z, op=op: op(z, targets), logits)


def test_twice_the_same_bits(impl: str) -> None:
    logits = torch.randn(64, 1000, requires_grad=True)
    targets = torch.randint(0, 1000, (64,))
    first, second = (results(log_softmax_gather, logits, targets, impl=impl) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_input_is_left_alone(impl: str) -> None:
    logits = torch.linspace(-3, 3, 35).view(5, 7).requires_grad_()
    before = logits.detach().clone()
    log_softmax_gather(logits, torch.arange(5), impl=impl).sum().backward()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward_gives_the_gradient_in_the_memory_of_the_logits(
    dtype: torch.dtype, impl: str
) -> None:
    leaf = torch.linspace(-3, 3, 35).view(5, 7).to(dtype).requires_grad_()
    targets = torch.tensor([0, 6, IGNORED, 3, 2])
    upstream = torch.linspace(-1, 2, 5)
    logits = leaf * 1
    caught: list[Tensor] = []
    logits.register_hook(caught.append)
    logps = log_softmax_gather(logits, targets, inplace_backward=True, impl=impl)
    logps.backward(upstream)
    assert caught[0].data_ptr() == logits.data_ptr()
    (expected,) = torch.autograd.grad(log_softmax_gather(leaf, targets, impl=impl), leaf, upstream)
    assert torch.equal(leaf.grad, expected)


def test_inplace_backward_a_second_time_is_an_error(impl: str) -> None:
    logits = torch.linspace(-3, 3, 35).view(5, 7).requires_grad_() * 1
    logps = log_softmax_gather(logits, torch.arange(5), inplace_backward=True, impl=impl).sum()
    logps.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.backward()


def test_inplace_backward_is_found_out_by_another_reader_of_the_logits(impl: str) -> None:
    leaf = torch.linspace(-3, 3, 35).view(5, 7).requires_grad_()
    logits = leaf * 1
    squares = logits.square().sum()
    log_softmax_gather(logits, torch.arange(5), inplace_backward=True, impl=impl).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
