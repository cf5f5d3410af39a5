"""linear_pair_loss against fp64 truth: shapes, options, losses and edges.

Its ways through chunks and its memory: test_pair_pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spin_composer.loss import PairLoss
from spin_kernels import PairLossOutput, linear_pair_loss, linear_pair_loss_ref
from tests.kernels.oracle import (
    DTYPES,
    IGNORED,
    OPTIONS,
    Problem,
    assert_as_exact,
    budget_of,
    problem,
    sampled,
)
from tests.kernels.pairs import (
    check,
    game,
    logistic,
    loss_and_gradients,
    true_pair_loss,
)

DTYPE_OF = {64: torch.float32, 123: torch.float16, 896: torch.bfloat16}
GRID = [*product((0, 1, 127, 128, 129, 1025), DTYPE_OF, (2, 1000, 32000)), (129, 64, 50257)]
QUICK = [(0, 64, 1000), (1, 896, 32000), (127, 896, 2), (128, 64, 1000), (129, 123, 1000)]
WEIGHTS = torch.tensor([0.5, 0.25, 0.375])
LOSSES = [
    replace(loss, nll_weight=nll_weight, length_normalised=length_normalised)
    for loss, nll_weight, length_normalised in product(
        (
            PairLoss("logistic", 0.1),
            PairLoss("hinge", 0.1),
            PairLoss("squared", 0.5),
            PairLoss("space", parameters={"space_mu": 3.0}),
            PairLoss("dpop", 0.1, parameters={"dpop_lambda": 5.0}),
        ),
        (0.0, 0.3),
        (False, True),
    )
]


def bounds_of(n: int) -> Tensor:
    """Return the bounds of three pairs of unequal lengths in n rows: one response is empty."""
    return torch.tensor([int(part * n) for part in (0, 0.07, 0.3, 0.3, 0.45, 0.46, 1)])


@lru_cache(maxsize=1)
def made(
    n: int, d: int, v: int
) -> tuple[Problem, Callable[..., Tensor], tuple[PairLossOutput, list[Tensor]]]:
    exact = problem(n, d, v)
    pair_loss = game(exact, bounds_of(n))
    pairs = (bounds_of(n), pair_loss, WEIGHTS)
    return exact, pair_loss, loss_and_gradients(true_pair_loss, exact.to(torch.float64), *pairs)


@pytest.mark.parametrize(("n", "d", "v"), sampled(GRID, QUICK))
def test_equals_truth(n: int, d: int, v: int, impl: str) -> None:
    exact, pair_loss, truth = made(n, d, v)
    dtype = DTYPE_OF[d]
    # Two chunks of whole pairs for an even d, and for an odd one the last pair in parts.
    budget = budget_of(max(1, 3 * n // (5 if d % 2 == 0 else 10)), v, dtype, impl)
    check(exact.to(dtype), bounds_of(n), impl, pair_loss, WEIGHTS, truth, budget=budget)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_softcap_and_temperature_equal_truth(
    dtype: torch.dtype, bias: bool, options: dict[str, float], impl: str
) -> None:
    given, cu_seqlens = problem(15, 24, 101, bias).to(dtype), torch.tensor([0, 3, 8, 10, 15])
    budget = budget_of(9, 101, dtype, impl, options.get("softcap"))
    check(given, cu_seqlens, impl, budget=budget, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_twin_is_the_truth_in_fp64(options: dict[str, float]) -> None:
    given = problem(23, 5, 17).to(torch.float64)
    cu_seqlens = torch.tensor([0, 3, 8, 8, 12, 20, 23])
    pairs = (cu_seqlens, game(given, cu_seqlens, **options), torch.tensor([0.5, 0.0, 2.0]).double())
    truth = loss_and_gradients(true_pair_loss, given, *pairs, **options)
    for op, more in ((linear_pair_loss_ref, {}), (linear_pair_loss, {"memory_budget_bytes": 1500})):
        found = loss_and_gradients(op, given, *pairs, **more, **options)
        for ours, true in zip((*found[0], *found[1]), (*truth[0], *truth[1]), strict=True):
            torch.testing.assert_close(ours, true, atol=1e-12, rtol=1e-12)


def test_gradcheck_of_the_twin() -> None:
    given, cu_seqlens = problem(7, 3, 5).to(torch.float64), torch.tensor([0, 2, 3, 3, 7])
    pair_loss = game(given, cu_seqlens)
    assert torch.autograd.gradcheck(
        lambda h, w, b: (
            linear_pair_loss_ref(h, w, given.targets, cu_seqlens, pair_loss, None, b).loss
        ),
        (given.hidden, given.weight, given.bias),
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss_of_spin_composer_works(loss: PairLoss, impl: str) -> None:
    given, cu_seqlens = problem(24, 8, 51), torch.tensor([0, 5, 9, 16, 16, 17, 24])
    opponent = torch.tensor([[-15.0, -18.0], [-20.0, 0.0], [-4.0, -21.0]])
    lengths = cu_seqlens.diff().view(-1, 2)

    def pair_loss(real: Tensor, generated: Tensor) -> Tensor:
        return loss(torch.stack((real, generated), 1), opponent.to(real.dtype), lengths)

    budget = budget_of(10, 51, torch.float32, impl)
    for dtype in (torch.float32, torch.bfloat16):
        check(given.to(dtype), cu_seqlens, impl, pair_loss, WEIGHTS, budget=budget)


@pytest.mark.parametrize("weights", [None, [0.25, 0.0, 3.0]])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_pair_weights_and_bounds_of_either_int_equal_truth(
    kind: torch.dtype, weights: list[float] | None, impl: str
) -> None:
    given, cu_seqlens = (
        problem(24, 8, 51).to(torch.float32),
        torch.tensor([0, 5, 9, 16, 16, 17, 24]),
    )
    pair_weights = None if weights is None else torch.tensor(weights)
    check(given, cu_seqlens.to(kind), impl, pair_weights=pair_weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", [[0], [0, 0, 0], [0, 0, 0, 0, 0], [0, 12, 12], [0, 0, 12]])
def test_no_rows_no_pairs_and_empty_responses_equal_truth(
    bounds: list[int], dtype: torch.dtype, impl: str
) -> None:
    check(problem(bounds[-1], 8, 51).to(dtype), torch.tensor(bounds), impl)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_targets_ignored_give_no_gradient(dtype: torch.dtype, impl: str) -> None:
    given = problem(8, 4, 9).to(dtype)
    given.targets.fill_(IGNORED)
    pairs = (torch.tensor([0, 3, 8]), partial(logistic, opponent=torch.zeros(1, 2)))
    out, gradients = loss_and_gradients(linear_pair_loss, given, *pairs, impl=impl)
    torch.testing.assert_close(out.loss, torch.tensor(2.0).log())
    assert all((x == 0).all() for x in (out.real_logps, out.generated_logps, *gradients))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_responses_give_log_two_and_no_gradient(dtype: torch.dtype, impl: str) -> None:
    half, cu_seqlens = problem(9, 16, 101), torch.tensor([0, 9, 18])
    both = replace(half, hidden=half.hidden.repeat(2, 1), targets=half.targets.repeat(2))
    exact, given = both.to(torch.float64), both.to(dtype)
    _, one_side = loss_and_gradients(true_pair_loss, exact, cu_seqlens, lambda r, g: -0.05 * r)
    opponent = torch.zeros(1, 2)
    for rows, num_parts in ((18, 1), (9, 2), (4, 5)):
        out, (hidden, *sums) = loss_and_gradients(
            linear_pair_loss,
            given,
            cu_seqlens,
            partial(logistic, opponent=opponent),
            memory_budget_bytes=budget_of(rows, 101, dtype, impl),
            impl=impl,
        )
        torch.testing.assert_close(out.loss, torch.tensor(2.0).log())
        torch.testing.assert_close(hidden[:9], -hidden[9:])
        # Within a chunk the sides cancel in fp32; across chunks each part has been rounded.
        rounding = 1e-6 if num_parts == 1 else num_parts * torch.finfo(dtype).eps / 2 + 1e-6
        for found, side in zip(sums, one_side[1:], strict=True):
            assert float(found.abs().max()) <= rounding * float(side.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upstream", [-3.0, 0.0, 1024.0, 2.0**-20])
def test_gradient_follows_the_upstream_scale(
    dtype: torch.dtype, upstream: float, impl: str
) -> None:
    bounds = torch.tensor([0, 3, 8, 10, 15])
    check(problem(15, 8, 51).to(dtype), bounds, impl, upstream=upstream)


def test_gradients_accumulate_over_calls(impl: str) -> None:
    given, bounds = problem(15, 8, 51).to(torch.float32), torch.tensor([0, 3, 8, 10, 15])
    pair_loss = game(given, bounds)
    _, truth = loss_and_gradients(true_pair_loss, given.to(torch.float64), bounds, pair_loss)
    for pair, rows in enumerate((slice(0, 8), slice(8, 15))):
        opponent = pair_loss.keywords["opponent"][pair : pair + 1]
        linear_pair_loss(
            given.hidden[rows],
            given.weight,
            given.targets[rows],
            bounds[2 * pair : 2 * pair + 3] - rows.start,
            partial(logistic, opponent=opponent),
            bias=given.bias,
            impl=impl,
        ).loss.backward()
    for leaf, true in zip(given.leaves, truth, strict=True):
        torch.testing.assert_close(leaf.grad.double(), true, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_minus_infinity_are_left_out_of_the_vocabulary(
    dtype: torch.dtype, impl: str
) -> None:
    given, cu_seqlens = problem(7, 4, 9), torch.tensor([0, 4, 7])
    given.targets.copy_(torch.arange(7))
    given.bias[7:] = -torch.inf
    pair_loss = game(given, cu_seqlens)
    out, found = loss_and_gradients(
        linear_pair_loss, given.to(dtype), cu_seqlens, pair_loss, impl=impl
    )
    short = replace(given, weight=given.weight[:7], bias=given.bias[:7])
    _, truth = loss_and_gradients(true_pair_loss, short.to(torch.float64), cu_seqlens, pair_loss)
    _, twin = loss_and_gradients(linear_pair_loss_ref, short.to(dtype), cu_seqlens, pair_loss)
    assert_as_exact([x[: len(t)] for x, t in zip(found, truth, strict=True)], twin, truth)
    assert torch.isfinite(out.loss)
    assert all((x[len(t) :] == 0).all() for x, t in zip(found, truth, strict=True))


def test_tied_weights_add_both_gradients_up(impl: str) -> None:
    rng = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(0, 30, (20,), generator=rng) for _ in range(2))
    pairs = (torch.tensor([0, 4, 9, 15, 20]), partial(logistic, opponent=torch.zeros(2, 2)))
    gradients = []
    for op, dtype in (
        (partial(linear_pair_loss, impl=impl), torch.float32),
        (true_pair_loss, torch.float64),
    ):
        weight = problem(1, 8, 30).weight.to(dtype).requires_grad_()
        op(F.embedding(ids, weight), weight, targets, *pairs).loss.backward()
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
        bias = exact.bias.to(dtype).repeat_interleave(2)[::2]
        leaves = [y.detach().requires_grad_() for y in (x, w, bias)]
        bounds = torch.tensor([0, 1, 6, 2, 13, 7, 20, 9])[::2]  # strided, too
        check(Problem(*leaves, targets), torch.cat((bounds, bounds[-1:])), impl)


@pytest.mark.parametrize("rows", [8, 2**20])
@pytest.mark.parametrize("share", [1e-3, 1e-7])
def test_fp16_keeps_the_gradient_of_small_weights_for_a_large_upstream_scale(
    share: float, rows: int, impl: str
) -> None:
    given, bounds = problem(20, 16, 51).to(torch.float16), torch.tensor([0, 5, 9, 14, 20])
    pair_loss, weights = game(given, bounds), torch.full((2,), share)
    budget = budget_of(rows, 51, torch.float16, impl)

    def gradients(weights: Tensor, upstream: float) -> tuple[Tensor, ...]:
        out = linear_pair_loss(
            given.hidden,
            given.weight,
            given.targets,
            bounds,
            pair_loss,
            weights,
            given.bias,
            memory_budget_bytes=budget,
            impl=impl,
        )
        return torch.autograd.grad(upstream * out.loss, given.leaves)

    for small, plain in zip(
        gradients(weights, 1 / share), gradients(torch.ones(2), 1.0), strict=True
    ):
        torch.testing.assert_close(small, plain, atol=2e-3, rtol=2e-3)


def test_losses_are_fp32_whatever_the_function_and_the_weights_are(impl: str) -> None:
    given, bounds = problem(20, 16, 51).to(torch.float32), torch.tensor([0, 5, 20])
    args = given.hidden, given.weight, given.targets, bounds
    out = linear_pair_loss(
        *args,
        lambda real, generated: (generated - real).bfloat16(),
        torch.ones(1, dtype=torch.float64),
        impl=impl,
    )
    assert {x.dtype for x in out} == {torch.float32}


def test_autocast_multiplies_in_bf16_and_keeps_fp32_masters(impl: str) -> None:
    given, cu_seqlens = problem(30, 16, 51).to(torch.float32), torch.tensor([0, 7, 14, 20, 30])
    pair_loss = game(given, cu_seqlens)
    _, truth = loss_and_gradients(true_pair_loss, given.to(torch.float64), cu_seqlens, pair_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, found = loss_and_gradients(linear_pair_loss, given, cu_seqlens, pair_loss, impl=impl)
        _, twin = loss_and_gradients(linear_pair_loss_ref, given, cu_seqlens, pair_loss)
        _, mixed = loss_and_gradients(
            linear_pair_loss,
            replace(given, hidden=given.hidden.detach().bfloat16().requires_grad_()),
            cu_seqlens,
            pair_loss,
            impl=impl,
        )
    assert_as_exact(found, twin, truth)
    assert {x.dtype for x in (*out, *found)} == {torch.float32}
    assert [x.dtype for x in mixed] == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(mixed[1], found[1])
