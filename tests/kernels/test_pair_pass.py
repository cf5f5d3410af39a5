"""linear_pair_loss's way over chunks and pairs: where they end, what is skipped, its memory."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_kernels import linear_pair_loss, linear_pair_loss_ref, pair_pass
from tests.kernels.oracle import DTYPES, Problem, budget_of, peak_bytes, problem
from tests.kernels.pairs import check, game, logistic, loss_and_gradients

BOUNDS = torch.tensor([0, 3, 8, 10, 15])


# A pair of 5 + 7 rows, after one of 3 + 2: chunks end inside the large pair's real response (3),
# between its responses (5), inside its generated one (7, 8), between the pairs, or nowhere.
@pytest.mark.parametrize("rows", [1, 3, 5, 7, 8, 12, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_may_end_anywhere_in_a_pair(dtype: torch.dtype, rows: int, impl: str) -> None:
    given = problem(17, 16, 101).to(dtype)
    for cu_seqlens in (torch.tensor([0, 3, 5, 10, 17]), torch.tensor([0, 5, 12, 15, 17])):
        check(given, cu_seqlens, impl, budget=budget_of(rows, 101, dtype, impl))


def test_a_pair_larger_than_a_chunk_of_full_tiles_equals_truth(impl: str) -> None:
    given, cu_seqlens = problem(300, 8, 20).to(torch.float32), torch.tensor([0, 140, 300])
    check(given, cu_seqlens, impl, budget=budget_of(200, 20, torch.float32, impl))


def test_a_pair_larger_than_a_chunk_is_logged_once(
    impl: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_pass, "_logged", set())
    given = problem(15, 8, 51).to(torch.float32)
    budget = budget_of(6, 51, torch.float32, impl)
    with caplog.at_level(logging.WARNING, logger="spin_kernels"):
        for _ in range(2):
            pairs = (BOUNDS, game(given, BOUNDS))
            loss_and_gradients(
                linear_pair_loss, given, *pairs, memory_budget_bytes=budget, impl=impl
            )
    (record,) = caplog.records
    assert "a pair of 8 scored tokens exceeds the 6 rows" in record.getMessage()


@pytest.mark.parametrize("rows", [4, 15])
@pytest.mark.parametrize("frozen", [("hidden",), ("weight",), ("bias",), ("weight", "bias")])
def test_what_needs_no_gradient_gets_none_and_the_others_theirs(
    frozen: tuple[str, ...], rows: int, impl: str
) -> None:
    given, budget = problem(15, 8, 51).to(torch.float32), budget_of(rows, 51, torch.float32, impl)
    pairs = (BOUNDS, game(given, BOUNDS))
    options = {"memory_budget_bytes": budget, "impl": impl}
    names = ("hidden", "weight", "bias")
    _, whole = loss_and_gradients(linear_pair_loss, given, *pairs, **options)
    for name in frozen:
        getattr(given, name).requires_grad_(False)
    _, part = loss_and_gradients(linear_pair_loss, given, *pairs, **options)
    wanted = [x for name, x in zip(names, whole, strict=True) if name not in frozen]
    assert all(torch.equal(a, b) for a, b in zip(part, wanted, strict=True))


def test_a_frozen_head_takes_no_memory_for_its_gradient(impl: str) -> None:
    given = problem(15, 512, 500, bias=False).to(torch.float32)
    pairs = (BOUNDS, game(given, BOUNDS))
    peaks = []
    for trained in (True, False):
        given.weight.requires_grad_(trained)
        peaks.append(
            peak_bytes(lambda: loss_and_gradients(linear_pair_loss, given, *pairs, impl=impl))
        )
    weight_bytes = 4 * given.weight.numel()
    assert peaks[1] < weight_bytes < peaks[0]


def test_without_a_gradient_none_is_made_and_the_values_are_the_same(impl: str) -> None:
    given = problem(15, 8, 51).to(torch.float32)
    head = (given.hidden, given.weight, given.targets, BOUNDS, game(given, BOUNDS))
    out = linear_pair_loss(*head, impl=impl)
    with torch.no_grad():
        silent = linear_pair_loss(*head, impl=impl)
    assert out.loss.requires_grad
    assert not any(x.requires_grad for x in (*out[1:], *silent))
    torch.testing.assert_close(tuple(silent), tuple(x.detach() for x in out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [4, 8, 15])
def test_twice_the_same_bits(dtype: torch.dtype, rows: int, impl: str) -> None:
    given = problem(15, 64, 101).to(dtype)
    pairs = (BOUNDS, game(given, BOUNDS))
    options = {"memory_budget_bytes": budget_of(rows, 101, dtype, impl), "impl": impl}
    first, second = (
        loss_and_gradients(linear_pair_loss, given, *pairs, **options) for _ in range(2)
    )
    for a, b in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert torch.equal(a, b)


def test_a_second_backward_is_an_error(impl: str) -> None:
    given = problem(15, 8, 51).to(torch.float32)
    out = linear_pair_loss(
        given.hidden, given.weight, given.targets, BOUNDS, game(given, BOUNDS), impl=impl
    )
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward was called a second time"):
        out.loss.backward()


@pytest.mark.parametrize(
    ("pair_loss", "message"),
    [
        (lambda real, generated: real.sum(), r"pair_loss must return losses \[2\].*got \(\)"),
        (lambda real, generated: real[:1], r"pair_loss must return losses \[2\].*got \(1,\)"),
        (lambda real, generated: 1.0, r"pair_loss must return losses \[2\].*got float"),
        (lambda real, generated: real.detach(), "pair_loss must be differentiable"),
    ],
)
def test_a_pair_loss_that_is_none_is_an_error(pair_loss: Any, message: str, impl: str) -> None:
    given = problem(15, 8, 51).to(torch.float32)
    with pytest.raises(ValueError, match=message):
        linear_pair_loss(given.hidden, given.weight, given.targets, BOUNDS, pair_loss, impl=impl)


def peak_of(op: Any, given: Problem, bounds: Tensor, **options: Any) -> int:
    pair_loss = partial(logistic, opponent=torch.zeros(len(bounds) // 2, 2))
    # Without oneDNN: its scratch, of the weight's size, is not a logit and not ours.
    with torch.backends.mkldnn.flags(enabled=False):
        return peak_bytes(lambda: loss_and_gradients(op, given, bounds, pair_loss, **options))


@pytest.mark.usefixtures("_launches_leave_nothing")
@pytest.mark.parametrize("pair_rows", [8, 64])  # of at most 32 that the budget holds
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_keeps_to_the_budget_whatever_the_number_of_rows(
    dtype: torch.dtype, pair_rows: int, impl: str
) -> None:
    if impl == "triton" and dtype == torch.float16:
        pytest.skip("on a CPU the fp32 product of fp16 chunks copies them; a GPU's does not")
    d, v, budget = 4, 2048, 2**18
    for n in (64, 128) if impl == "triton" else (128, 1024):
        given = problem(n, d, v, bias=False).to(dtype)
        bounds = torch.arange(0, n + 1, pair_rows // 2)
        peak = peak_of(linear_pair_loss, given, bounds, memory_budget_bytes=budget, impl=impl)
        # Beside the logits: the weight's gradient, its fp32 sum and a chunk's part of it, and for
        # each row hidden's gradient and a few numbers.
        assert budget / 4 < peak < budget + 3 * v * d * 4 + n * 128
        # The measure does see an [N, V] matrix.
        assert peak_of(linear_pair_loss_ref, given, bounds) > n * v * 4


def test_on_a_cpu_pairs_of_enough_rows_take_turns_in_a_buffer() -> None:
    pair, count, v = 2048, 3, 512
    given = problem(count * pair, 4, v, bias=False).to(torch.float32)
    bounds = torch.arange(0, count * pair + 1, pair // 2)
    rows_bytes = count * pair * 128
    assert pair * v * 4 < peak_of(linear_pair_loss, given, bounds) < 1.1 * pair * v * 4 + rows_bytes
