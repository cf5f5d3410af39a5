"""linear_log_softmax_gather against fp64 truth, at its edges, and its memory."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spin_kernels import linear_log_softmax_gather, linear_log_softmax_gather_ref
from tests.kernels.oracle import (
    DTYPES,
    IGNORED,
    OPTIONS,
    Problem,
    assert_as_exact,
    budget_of,
    logps_and_gradients,
    peak_bytes,
    problem,
    sampled,
    true_logps,
)

# One dtype a width: the widths matter to the products, the dtypes to the rows.
DTYPE_OF = {64: torch.float32, 123: torch.float16, 896: torch.bfloat16}
GRID = [*product((0, 1, 127, 128, 129, 1025), DTYPE_OF, (2, 1000, 32000)), (129, 64, 50257)]
QUICK = [
    (0, 64, 1000),
    (1, 896, 32000),
    (127, 896, 2),
    (128, 64, 1000),
    (129, 123, 1000),
    (129, 896, 1000),
]


@lru_cache(maxsize=1)
def made(n: int, d: int, v: int) -> tuple[Problem, list[Tensor]]:
    exact = problem(n, d, v)
    return exact, logps_and_gradients(true_logps, exact.to(torch.float64))


def check(given: Problem, impl: str, truth: list[Tensor] | None = None, **options: Any) -> None:
    """Hold the operation to the truth of the same values, by its twin's error."""
    scale = {k: v for k, v in options.items() if k != "memory_budget_bytes"}
    if truth is None:
        truth = logps_and_gradients(true_logps, given.to(torch.float64), **scale)
    ours = logps_and_gradients(linear_log_softmax_gather, given, impl=impl, **options)
    twin = logps_and_gradients(linear_log_softmax_gather_ref, given, **scale)
    assert_as_exact(ours, twin, truth)
    assert ours[0].dtype == torch.float32
    assert [x.dtype for x in ours[1:]] == [x.dtype for x in given.leaves]


@pytest.mark.parametrize(("n", "d", "v"), sampled(GRID, QUICK))
def test_equals_truth(n: int, d: int, v: int, impl: str) -> None:
    exact, truth = made(n, d, v)
    dtype = DTYPE_OF[d]
    # Chunks of two fifths of the rows, some of them kept for backward.
    budget = budget_of(max(1, 2 * n // 5), v, dtype, impl) * 4
    check(exact.to(dtype), impl, truth, memory_budget_bytes=budget)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_softcap_and_temperature_equal_truth(
    dtype: torch.dtype, bias: bool, options: dict[str, float], impl: str
) -> None:
    budget = budget_of(10, 301, dtype, impl, options.get("softcap"))  # of 25 rows
    check(problem(25, 64, 301, bias).to(dtype), impl, memory_budget_bytes=4 * budget, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_twin_is_the_truth_in_fp64(options: dict[str, float]) -> None:
    given = problem(23, 5, 17).to(torch.float64)
    twin = logps_and_gradients(linear_log_softmax_gather_ref, given, **options)
    ours = logps_and_gradients(
        linear_log_softmax_gather, given, memory_budget_bytes=2000, **options
    )
    truth = logps_and_gradients(true_logps, given, **options)
    torch.testing.assert_close(twin, truth, atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(ours, truth, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("op", [linear_log_softmax_gather, linear_log_softmax_gather_ref])
def test_gradcheck(op: Any, options: dict[str, float]) -> None:
    given = problem(4, 3, 5).to(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: op(h, w, given.targets, b, memory_budget_bytes=100, **options),
        (given.hidden, given.weight, given.bias),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_does_not_depend_on_the_chunk_size(dtype: torch.dtype, impl: str) -> None:
    given = problem(40, 16, 101).to(dtype)
    truth = logps_and_gradients(true_logps, given.to(torch.float64))
    for rows in (7, 20, 39, 40, 200):
        check(given, impl, truth, memory_budget_bytes=budget_of(rows, 101, dtype, impl))
    check(given, impl, truth, memory_budget_bytes=1)  # a row at a time


def test_all_targets_ignored_give_zeros(impl: str) -> None:
    given = problem(6, 4, 9).to(torch.float32)
    given.targets.fill_(IGNORED)
    for found in logps_and_gradients(linear_log_softmax_gather, given, impl=impl):
        assert (found == 0).all()


def test_ignored_targets_get_no_gradient_and_the_others_theirs(impl: str) -> None:
    given = problem(6, 4, 9).to(torch.float32)
    given.targets.copy_(torch.tensor([0, 8, IGNORED, 3, 4, IGNORED]))
    logps = linear_log_softmax_gather(given.hidden, given.weight, given.targets, impl=impl)
    assert (logps[[2, 5]] == 0).all()
    assert (logps[[0, 1, 3, 4]] < 0).all()
    (gradient,) = torch.autograd.grad(logps.sum(), given.hidden)
    assert (gradient[[2, 5]] == 0).all()
    assert (gradient[[0, 1, 3, 4]] != 0).any(1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [20.0, 1e4])
def test_logits_of_1e4_and_probabilities_near_one_equal_truth(
    dtype: torch.dtype, level: float, impl: str
) -> None:
    exact = problem(12, 16, 60)
    # Entry 1 has all the probability and entry 2 none; bf16 has no digits left for more such ones.
    bias = torch.zeros(60, dtype=torch.float64)
    bias[1], bias[2] = level, -level
    exact.targets[3:6] = torch.tensor([1, 1, 2])
    check(replace(exact, bias=bias.to(dtype).double()).to(dtype), impl)


def test_entries_of_minus_infinity_are_left_out_of_the_vocabulary(impl: str) -> None:
    given = problem(7, 4, 9).to(torch.float32)
    given.targets.copy_(torch.arange(7))
    given.bias.data[7:] = -torch.inf
    masked = logps_and_gradients(linear_log_softmax_gather, given, impl=impl)
    short = replace(given, weight=given.weight[:7], bias=given.bias[:7]).to(torch.float64)
    plain = logps_and_gradients(true_logps, short)
    for ours, true in zip(masked, plain, strict=True):
        kept = ours[: len(true)]
        torch.testing.assert_close(kept.double(), true, atol=1e-5, rtol=1e-5)
        assert (ours[len(true) :] == 0).all()


def test_tied_weights_add_both_gradients_up(impl: str) -> None:
    rng = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(0, 30, (20,), generator=rng) for _ in range(2))
    gradients = []
    for op in (linear_log_softmax_gather, true_logps):
        wide = torch.float64 if op is true_logps else torch.float32
        weight = problem(1, 8, 30).weight.to(wide).requires_grad_()
        options = {"impl": impl} if op is linear_log_softmax_gather else {}
        op(F.embedding(ids, weight), weight, targets, **options).sum().backward()
        gradients.append(weight.grad.double())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs_give_the_same(dtype: torch.dtype, impl: str) -> None:
    exact = problem(20, 16, 51)
    targets = exact.targets.repeat_interleave(2)[::2]
    hidden, weight = exact.hidden.to(dtype), exact.weight.to(dtype)
    for x, w in (
        (hidden.T.contiguous().T, weight.T.contiguous().T),
        (torch.cat((hidden, hidden), 1)[:, 16:], weight.repeat(2, 1)[51:]),
        (hidden.repeat_interleave(2, 1)[:, ::2], weight.repeat_interleave(3, 0)[::3]),
    ):
        assert not x.is_contiguous()
        bias = exact.bias.to(dtype).repeat_interleave(2)[::2]
        leaves = [y.detach().requires_grad_() for y in (x, w, bias)]
        check(Problem(*leaves, targets), impl, memory_budget_bytes=20000)


def test_an_expanded_bias_is_one_number_for_all_entries(impl: str) -> None:
    given = problem(20, 16, 51).to(torch.bfloat16)
    bias = torch.full((1,), 3.0, dtype=torch.bfloat16).expand(51)
    args = given.hidden, given.weight, given.targets
    found = linear_log_softmax_gather(*args, bias, impl=impl)
    same = linear_log_softmax_gather(*args, bias.contiguous(), impl=impl)
    assert torch.equal(found, same)


def test_one_row_chunks_of_a_transposed_bf16_matrix_equal_the_whole(impl: str) -> None:
    given = problem(5, 16, 2000).to(torch.bfloat16)
    turned = given.hidden.detach().T.contiguous().T
    whole = linear_log_softmax_gather(given.hidden, given.weight, given.targets, impl=impl)
    rows = linear_log_softmax_gather(
        turned, given.weight, given.targets, memory_budget_bytes=1, impl=impl
    )
    torch.testing.assert_close(rows, whole, atol=1e-2, rtol=0)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_needs_no_gradient_gets_none_and_the_others_theirs(frozen: str, impl: str) -> None:
    given = problem(8, 4, 9).to(torch.float32)
    whole = logps_and_gradients(linear_log_softmax_gather, given, impl=impl)[1:]
    getattr(given, frozen).requires_grad_(False)
    part = logps_and_gradients(linear_log_softmax_gather, given, impl=impl)[1:]
    names = [name for name in ("hidden", "weight", "bias") if name != frozen]
    expected = dict(zip(("hidden", "weight", "bias"), whole, strict=True))
    assert all(torch.equal(p, expected[name]) for name, p in zip(names, part, strict=True))
    with torch.no_grad():
        logps = linear_log_softmax_gather(given.hidden, given.weight, given.targets, impl=impl)
    assert not logps.requires_grad


def test_backward_twice_through_a_retained_graph_is_the_same(impl: str) -> None:
    given = problem(30, 8, 51).to(torch.float32)
    for budget in (2**28, 5000, 1):  # all logits kept, some, none
        logps = linear_log_softmax_gather(
            given.hidden, given.weight, given.targets, memory_budget_bytes=budget, impl=impl
        )
        leaves = [given.hidden, given.weight]
        first = torch.autograd.grad(logps.sum(), leaves, retain_graph=True)
        second = torch.autograd.grad(logps.sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_twice_the_same_bits(impl: str) -> None:
    given = problem(40, 64, 1000).to(torch.bfloat16)
    first, second = (
        logps_and_gradients(linear_log_softmax_gather, given, memory_budget_bytes=2**15, impl=impl)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_multiplies_in_bf16_and_keeps_fp32_masters(impl: str) -> None:
    given = problem(30, 16, 51).to(torch.float32)
    truth = logps_and_gradients(true_logps, given.to(torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = linear_log_softmax_gather(
            given.hidden, given.weight, given.targets, given.bias, impl=impl
        )
        twin = logps_and_gradients(linear_log_softmax_gather_ref, given)
        mixed = linear_log_softmax_gather(
            given.hidden.bfloat16(), given.weight, given.targets, given.bias, impl=impl
        )
    upstream = torch.linspace(-1, 2, 30)
    gradients = torch.autograd.grad(logps, given.leaves, upstream)
    assert_as_exact([logps.detach(), *gradients], twin, truth)
    assert {x.dtype for x in (logps, *gradients)} == {torch.float32}
    assert torch.equal(mixed, logps)


def test_sums_over_responses_in_bf16_are_no_worse_than_the_twin(impl: str) -> None:
    given = problem(128, 64, 301).to(torch.bfloat16)
    truth = true_logps(*(given.to(torch.float64).leaves[:2]), given.targets)
    error, plain_error = (
        float(
            (op(given.hidden, given.weight, given.targets, impl=impl).double() - truth).sum().abs()
        )
        for op in (linear_log_softmax_gather, linear_log_softmax_gather_ref)
    )
    assert error <= 2 * plain_error + 1e-4


def peak_of(op: Any, n: int, dtype: torch.dtype, **options: Any) -> int:
    """Return the peak of forward and backward at D = 4, V = 2048."""
    given = problem(n, 4, 2048, bias=False).to(dtype)
    # Without oneDNN: its scratch, of the weight's size, is not a logit and not ours.
    with torch.backends.mkldnn.flags(enabled=False):
        return peak_bytes(lambda: logps_and_gradients(op, given, **options))


@pytest.mark.usefixtures("_launches_leave_nothing")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_keeps_to_the_budget_whatever_the_number_of_rows(
    dtype: torch.dtype, softcap: float | None, impl: str
) -> None:
    if impl == "triton" and dtype == torch.bfloat16:
        pytest.skip("on a CPU the fp32 product of bf16 chunks copies them; a GPU's does not")
    budget, weight_bytes = 2**18, 2048 * 4 * 4
    for n in (64, 128) if impl == "triton" else (128, 1024):
        # Beside the logits: the weight's gradient, its fp32 sum and a chunk's part of it, and
        # for each row hidden's gradient and a few numbers.
        small = 3 * weight_bytes + n * 128
        options = {"softcap": softcap, "memory_budget_bytes": budget, "impl": impl}
        peak = peak_of(linear_log_softmax_gather, n, dtype, **options)
        assert budget / 2 < peak < budget + small
        # The measure does see an [N, V] matrix.
        assert peak_of(linear_log_softmax_gather_ref, n, dtype, softcap=softcap) > n * 2048 * 4


def test_on_a_cpu_rows_without_a_gradient_take_turns_in_a_buffer() -> None:
    rows = 4096
    given = problem(rows, 4, 512, bias=False).to(torch.float32)
    with torch.no_grad():
        peak = peak_bytes(
            lambda: linear_log_softmax_gather(given.hidden, given.weight, given.targets)
        )
    assert 1024 * 512 * 4 <= peak < 1.1 * 1024 * 512 * 4 + rows * 128
