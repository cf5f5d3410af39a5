"""Both operations against fp64 truth and against their plain twins.

A tolerance is twice the error of the plain twin in the same dtype, plus rounding's floor.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spin_kernels import (
    linear_log_softmax_gather,
    linear_log_softmax_gather_ref,
    log_softmax_gather,
    log_softmax_gather_ref,
)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"softcap": 2.0},
    {"temperature": 0.5},
    {"softcap": 3.0, "temperature": 4.0},
]


def head_inputs(
    n: int, d: int, v: int, dtype: torch.dtype = torch.float32, bias: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return hidden [n, d], weight [v, d], targets [n] and bias [v], with gradients."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        value = torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)
        return value.requires_grad_()

    targets = torch.randint(0, v, (n,), generator=rng)
    return normal(n, d), normal(v, d), targets, normal(v) if bias else None


def with_gradients(op: Any, *args: Any, **options: Any) -> list[Tensor]:
    """Return the log-probs of ``op`` and the gradients of their weighted sum."""
    logps = op(*args, **options)
    coefficients = torch.linspace(-1, 2, logps.numel(), dtype=logps.dtype)
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    return [logps.detach(), *torch.autograd.grad((logps * coefficients).sum(), leaves)]


def error(values: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Return the largest difference of each tensor, relative to the largest true value."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) if b.numel() else 0.0
        for a, b in zip(values, truth, strict=True)
    ]


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129])
@pytest.mark.parametrize("v", [2, 101])
def test_linear_equals_truth_for_every_number_of_rows(n: int, v: int) -> None:
    hidden, weight, targets, bias = head_inputs(n, 16, v, bias=True)
    args = (hidden, weight, targets, bias)
    budget = 4 * v * 50  # chunks of 50 rows: none, one, and several with a remainder
    ours = with_gradients(linear_log_softmax_gather, *args, memory_budget_bytes=budget)
    twin = with_gradients(linear_log_softmax_gather_ref, *args)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    b = bias.detach().double().requires_grad_()
    truth = with_gradients(linear_log_softmax_gather_ref, exact[0], exact[1], targets, b)
    for mine, theirs in zip(error(ours, truth), error(twin, truth), strict=True):
        assert mine <= 2 * theirs + 1e-6
    assert ours[0].dtype == torch.float32
    assert ours[0].shape == (n,)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_gradients_equal_plain_autograd_in_fp64(options: dict[str, Any], bias: bool) -> None:
    args = head_inputs(23, 5, 17, torch.float64, bias)
    args[2][4] = -100
    ours = with_gradients(linear_log_softmax_gather, *args, memory_budget_bytes=2000, **options)
    twin = with_gradients(linear_log_softmax_gather_ref, *args, **options)
    assert max(error(ours, twin)) < 1e-13


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options: dict[str, Any]) -> None:
    hidden, weight, targets, bias = head_inputs(4, 3, 5, torch.float64, bias=True)
    targets[1] = -100
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_log_softmax_gather(
            h, w, targets, b, memory_budget_bytes=100, **options
        ),
        (hidden, weight, bias),
    )
    assert torch.autograd.gradcheck(
        lambda z: log_softmax_gather(z, targets),
        head_inputs(4, 5, 1, torch.float64)[0],
    )


def test_result_does_not_depend_on_the_chunk_size() -> None:
    args = head_inputs(64, 16, 101)
    whole = with_gradients(linear_log_softmax_gather, *args)
    for budget in (1, 4 * 101, 4 * 101 * 7):
        parts = with_gradients(linear_log_softmax_gather, *args, memory_budget_bytes=budget)
        assert max(error(parts, [x.double() for x in whole])) < 1e-6


def test_ignored_targets_give_zero_and_no_gradient() -> None:
    hidden, weight, targets, _ = head_inputs(6, 4, 9)
    targets[2] = targets[5] = -100
    logps = linear_log_softmax_gather(hidden, weight, targets)
    assert logps[2] == 0
    assert logps[5] == 0
    assert (logps[[0, 1, 3, 4]] < 0).all()
    (grad,) = torch.autograd.grad(logps.sum(), hidden)
    assert (grad[[2, 5]] == 0).all()
    assert (grad[[0, 1, 3, 4]] != 0).any(1).all()
    z = torch.linspace(-3, 3, 54).view(6, 9)
    assert (log_softmax_gather(z, targets) == 0).sum() == 2


def test_entries_of_minus_infinity_are_left_out_of_the_vocabulary() -> None:
    hidden, weight, _, _ = head_inputs(7, 4, 9)
    targets = torch.arange(7)
    bias = torch.zeros(9)
    bias[7:] = -torch.inf
    masked = with_gradients(linear_log_softmax_gather, hidden, weight, targets, bias)
    short = weight.detach()[:7].requires_grad_()
    plain = with_gradients(linear_log_softmax_gather, hidden, short, targets)
    torch.testing.assert_close(masked[0], plain[0])
    torch.testing.assert_close(masked[1], plain[1])
    torch.testing.assert_close(masked[2][:7], plain[2])
    assert (masked[2][7:] == 0).all()


def test_what_needs_no_gradient_gets_none() -> None:
    hidden, weight, targets, bias = head_inputs(8, 4, 9, bias=True)
    frozen = weight.detach()
    linear_log_softmax_gather(hidden, frozen, targets, bias).sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_log_softmax_gather(hidden, weight, targets).requires_grad


def test_bf16_error_is_at_most_twice_the_plain_one() -> None:
    n, v = 200, 301
    hidden, weight, targets, _ = head_inputs(n, 64, v, torch.bfloat16)
    ours = with_gradients(linear_log_softmax_gather, hidden, weight, targets)
    twin = with_gradients(linear_log_softmax_gather_ref, hidden, weight, targets)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = with_gradients(linear_log_softmax_gather_ref, *exact, targets)
    for mine, theirs in zip(error(ours, truth), error(twin, truth), strict=True):
        assert mine <= 2 * theirs
    assert ours[0].dtype == torch.float32
    # errors add up over a response: the sum must be no worse than the plain one either
    gap, plain_gap = (abs(float(x[0].double().sum() - truth[0].sum())) for x in (ours, twin))
    assert gap <= 2 * plain_gap + 1e-2


def test_autocast_multiplies_in_bf16_and_returns_gradients_in_the_parameters_dtype() -> None:
    hidden, weight, targets, bias = head_inputs(30, 16, 51, bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = linear_log_softmax_gather(hidden, weight, targets, bias)
        low = linear_log_softmax_gather(hidden.bfloat16(), weight, targets, bias)
    assert torch.equal(logps, low)
    assert logps.dtype == torch.float32
    logps.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    exact = linear_log_softmax_gather(hidden, weight, targets, bias)
    assert not torch.equal(exact, logps)
    torch.testing.assert_close(exact, logps, atol=0.1, rtol=0.02)


class PeakBytes(TorchDispatchMode):
    """Follows the bytes of all storages that operations make while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_memory_stays_within_the_budget(dtype: torch.dtype, softcap: float | None) -> None:
    n, d, v, budget = 2048, 4, 512, 2**18
    hidden, weight, targets, _ = head_inputs(n, d, v, dtype)
    small = 40 * n * 4 + 8 * v * d * 4  # vectors over the rows; the weight's gradient and its sum
    with PeakBytes() as memory:
        logps = linear_log_softmax_gather(
            hidden, weight, targets, softcap=softcap, memory_budget_bytes=budget
        )
        forward = memory.peak
        logps.sum().backward()
    assert budget / 4 < forward < budget + small
    assert memory.peak < budget + small < n * v * dtype.itemsize
    with PeakBytes() as plain:
        linear_log_softmax_gather_ref(hidden, weight, targets, softcap=softcap).sum().backward()
    assert plain.peak > n * v * 4  # the measure does see an [N, V] matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("v", [1, 2, 101])
def test_log_softmax_gather_equals_its_twin(dtype: torch.dtype, v: int) -> None:
    rng = torch.Generator().manual_seed(v)
    for n in (0, 1, 129):
        logits = (10 * torch.randn(n, v, generator=rng)).to(dtype).requires_grad_()
        targets = torch.randint(0, v, (n,), generator=rng)
        ours = with_gradients(log_softmax_gather, logits, targets)
        twin = with_gradients(log_softmax_gather_ref, logits, targets)
        assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(ours[0], twin[0])
        torch.testing.assert_close(ours[1], twin[1], atol=1e-6, rtol=1e-2)


def test_log_softmax_gather_leaves_its_input_alone() -> None:
    logits = torch.linspace(-3, 3, 35).view(5, 7).requires_grad_()
    before = logits.detach().clone()
    log_softmax_gather(logits, torch.arange(5)).sum().backward()
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"targets": torch.tensor([0, 9, 1])}, ValueError, r"targets\[1\] must be in \[0, 9\)"),
        ({"targets": torch.tensor([0, -1, 1])}, ValueError, r"targets\[1\].*got -1"),
        ({"targets": torch.tensor([0, 1])}, ValueError, r"targets must have shape \(3,\)"),
        ({"targets": torch.zeros(3)}, TypeError, "targets must be int64"),
        ({"hidden": torch.zeros(3, 4, 1)}, ValueError, "hidden must have 2 dimensions"),
        ({"hidden": torch.zeros(3, 4).long()}, TypeError, "hidden must be floating point"),
        ({"weight": torch.zeros(9, 5)}, ValueError, "D=4 of hidden, got \\(9, 5\\)"),
        ({"weight": torch.zeros(9, 4).double()}, TypeError, "weight must be torch.float32"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias must have shape \(9,\), got \(8,\)"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive"),
        ({"memory_budget_bytes": 0}, ValueError, "memory_budget_bytes must be positive"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
    ],
)
def test_wrong_argument_is_named(change: dict, kind: type[Exception], message: str) -> None:
    args = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(9, 4),
        "targets": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(kind, match=message):
        linear_log_softmax_gather(**{**args, **change})


def test_large_logits_lose_no_precision_in_the_norm() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(500, 40, generator=rng)).requires_grad_()
    targets = torch.randint(0, 40, (500,), generator=rng)
    ours, twin = (
        with_gradients(op, logits, targets) for op in (log_softmax_gather, log_softmax_gather_ref)
    )
    exact = logits.detach().double().requires_grad_()
    truth = with_gradients(log_softmax_gather_ref, exact, targets)
    for mine, plain, true in zip(ours, twin, truth, strict=True):
        assert (mine - true).abs().max() <= 2 * (plain - true).abs().max() + 1e-7
