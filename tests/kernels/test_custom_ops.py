"""The operations under torch.compile: operators in the graph, linear_pair_loss outside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from spin_kernels import (
    PairLossOutput,
    linear_log_softmax_gather,
    linear_pair_loss,
    log_softmax_gather,
)
from tests.kernels.oracle import IGNORED, Problem, logps_and_gradients, problem
from tests.kernels.pairs import game, loss_and_gradients

OPS = torch.ops.spin_kernels


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def in_one_graph(op: Callable[..., Tensor], dynamic: bool | None = None) -> Callable[..., Tensor]:
    """Return the operation between others, compiled; a graph break is an error."""

    def between(x: Tensor, *args: Any) -> Tensor:
        return 2 * op(x * 1, *args) + 1

    return torch.compile(between, backend="aot_eager", fullgraph=True, dynamic=dynamic)


def around(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args: 2 * op(x * 1, *args) + 1


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for compiled, eager in zip(a, b, strict=True):
        torch.testing.assert_close(compiled, eager, atol=0, rtol=0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_softmax_gather_compiles_to_one_graph_of_the_same_numbers(
    dtype: torch.dtype, inplace: bool, impl: str
) -> None:
    op = partial(log_softmax_gather, inplace_backward=inplace, impl=impl)
    compiled = in_one_graph(op)
    logits = torch.randn(9, 33).to(dtype).requires_grad_()
    targets = torch.tensor([0, 32, IGNORED, 3, 4, 5, 6, 7, 8])
    found, wanted = (
        [y.detach(), *torch.autograd.grad(y.square().sum(), logits)]
        for y in (compiled(logits, targets), around(op)(logits, targets))
    )
    assert_same(found, wanted)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "temperature": 0.5}])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("budget", [2**28, 3000])
def test_linear_log_softmax_gather_compiles_to_one_graph_of_the_same_numbers(
    budget: int, bias: bool, options: dict[str, float], impl: str
) -> None:
    op = partial(linear_log_softmax_gather, memory_budget_bytes=budget, impl=impl, **options)
    given = problem(9, 16, 33, bias).to(torch.float32)
    assert_same(
        logps_and_gradients(in_one_graph(op), given), logps_and_gradients(around(op), given)
    )


def test_one_graph_serves_any_number_of_rows(impl: str) -> None:
    linear = partial(linear_log_softmax_gather, memory_budget_bytes=10**5, impl=impl)
    gather = partial(log_softmax_gather, impl=impl)
    compiled = in_one_graph(linear, dynamic=True), in_one_graph(gather, dynamic=True)
    for n in (9, 14, 20):
        given = problem(n, 16, 33).to(torch.float32)
        assert_same(
            logps_and_gradients(compiled[0], given), logps_and_gradients(around(linear), given)
        )
        logits = torch.randn(n, 33)
        assert_same([compiled[1](logits, given.targets)], [around(gather)(logits, given.targets)])
    assert counters["stats"]["unique_graphs"] == 2


def test_autocast_is_seen_by_the_compiler(impl: str) -> None:
    given = problem(9, 16, 33).to(torch.float32)
    op = partial(linear_log_softmax_gather, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logps_and_gradients(in_one_graph(op), given)
        wanted = logps_and_gradients(around(op), given)
    assert_same(found, wanted)
    outside = logps_and_gradients(in_one_graph(op), given)
    assert not torch.equal(found[0], outside[0])


def _linear_args(given: Problem, budget: int, impl: str) -> tuple[Any, ...]:
    head = given.hidden, given.weight, given.bias, given.targets
    return *head, torch.float32, 3.0, 0.5, budget, True, impl


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("budget", [2**28, 3000])
def test_linear_operators_are_registered_rightly(bias: bool, budget: int, impl: str) -> None:
    given = problem(9, 16, 48, bias).to(torch.float32)  # 48: no padding, which is not initialized
    args = _linear_args(given, budget, impl)
    torch.library.opcheck(OPS.linear_log_softmax_gather.default, args)
    _, *saved = (x.detach() for x in OPS.linear_log_softmax_gather(*args))
    head = [None if x is None else x.detach() for x in args[:4]]
    for needs in ((True, True, bias), (True, False, False)):
        torch.library.opcheck(
            OPS.linear_log_softmax_gather_backward.default,
            (torch.ones(9), *head, *saved, *args[4:8], impl, *needs),
        )


@pytest.mark.parametrize("n", [0, 9])
def test_logit_operators_are_registered_rightly(n: int, impl: str) -> None:
    logits = torch.randn(n, 33)
    targets = torch.arange(n)
    for trained in (False, True):
        args = (logits.clone().requires_grad_(trained), targets, False, impl)
        torch.library.opcheck(OPS.log_softmax_gather.default, args)
    _, *saved = OPS.log_softmax_gather(logits, targets, False, impl)
    args = (torch.ones(n), logits, targets, *saved, impl)
    torch.library.opcheck(OPS.log_softmax_gather_backward.default, args)
    torch.library.opcheck(OPS.log_softmax_gather_backward_.default, args)


def test_linear_pair_loss_is_one_graph_break_and_gives_the_same_numbers(impl: str) -> None:
    given, bounds = problem(15, 16, 33).to(torch.float32), torch.tensor([0, 3, 8, 10, 15])
    pair_loss = game(given, bounds)

    def step(hidden: Tensor, weight: Tensor, targets: Tensor, *args: Any, **options: Any) -> Any:
        out = linear_pair_loss(hidden * 2, weight, targets, *args, impl=impl, **options)
        return PairLossOutput(out.loss * 3, out.pair_losses, out.real_logps, out.generated_logps)

    compiled = torch.compile(step, backend="aot_eager")
    found = loss_and_gradients(compiled, given, bounds, pair_loss)
    wanted = loss_and_gradients(step, given, bounds, pair_loss)
    assert_same([*found[0], *found[1]], [*wanted[0], *wanted[1]])
    (reason,) = counters["graph_break"]
    assert "linear_pair_loss" in reason
    assert counters["stats"]["unique_graphs"] == 2  # before and after


def test_schemas_are_those_of_saved_graphs() -> None:
    assert str(OPS.linear_log_softmax_gather.default._schema) == (
        "spin_kernels::linear_log_softmax_gather(Tensor hidden, Tensor weight, Tensor? bias, "
        "Tensor targets, ScalarType dtype, float? softcap, float temperature, SymInt budget_bytes, "
        "bool keep, str impl) -> (Tensor, Tensor, Tensor, Tensor)"
    )
    assert str(OPS.linear_log_softmax_gather_backward.default._schema) == (
        "spin_kernels::linear_log_softmax_gather_backward(Tensor grad, Tensor hidden, "
        "Tensor weight, Tensor? bias, Tensor targets, Tensor top, Tensor log_total, Tensor kept, "
        "ScalarType dtype, float? softcap, float temperature, SymInt budget_bytes, str impl, "
        "bool for_hidden, bool for_weight, bool for_bias) -> (Tensor, Tensor, Tensor)"
    )
