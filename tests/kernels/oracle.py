"""Problems, fp64 truth by PyTorch's cross entropy, and the tolerance.

Dimensions: N scored tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from spin_kernels.dispatch import row_ops
from spin_kernels.shape import LogitScale, padded_vocab

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS: tuple[dict[str, float], ...] = (
    {},
    {"softcap": 2.0},
    {"temperature": 0.5},
    {"softcap": 3.0, "temperature": 4.0},
)
IGNORED = -100


def sampled(whole: list[tuple[Any, ...]], quick: list[tuple[Any, ...]]) -> list[Any]:
    """Return parameters: those of ``quick``, and the rest of the grid marked slow."""
    rest = [pytest.param(*x, marks=pytest.mark.slow) for x in whole if x not in quick]
    return [*quick, *rest]


@dataclass(frozen=True)
class Problem:
    """A head and its targets: hidden [N, D], weight [V, D], bias [V] or None, targets [N]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the problem with new leaves of this dtype."""
        hidden, weight, bias = (
            None if x is None else x.detach().to(dtype).requires_grad_()
            for x in (self.hidden, self.weight, self.bias)
        )
        return replace(self, hidden=hidden, weight=weight, bias=bias)

    @property
    def leaves(self) -> list[Tensor]:
        """The parameters that are there and want a gradient."""
        given = (self.hidden, self.weight, self.bias)
        return [x for x in given if x is not None and x.requires_grad]


def problem(n: int, d: int, v: int, bias: bool = True, seed: int = 0) -> Problem:
    """Return a problem in fp64 whose values bf16 and fp16 hold exactly: one truth for all dtypes.

    Logits have a standard deviation of 2. Targets are 0, V - 1, ignored and random ones.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        value = scale * torch.randn(*shape, generator=rng)
        return value.bfloat16().half().double()

    weight = normal(v, d, scale=2 / d**0.5)
    return Problem(normal(n, d), weight, normal(v) if bias else None, edge_targets(n, v, rng))


def edge_targets(n: int, v: int, rng: torch.Generator) -> Tensor:
    """Return targets [n]: 0, V - 1, ignored, and random ones."""
    targets = torch.randint(0, v, (n,), generator=rng)
    for row, target in enumerate((0, v - 1, IGNORED)[: max(0, n - 1)]):
        targets[row] = target
    return targets


def true_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probs [N] by PyTorch's cross entropy."""
    z = F.linear(hidden, weight, bias) / temperature
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return -F.cross_entropy(z, targets, ignore_index=IGNORED, reduction="none")


def logps_and_gradients(op: Callable[..., Tensor], given: Problem, **options: Any) -> list[Tensor]:
    """Return the log-probs, and the gradients of their sum weighted by -1 to 2."""
    logps = op(given.hidden, given.weight, given.targets, given.bias, **options)
    upstream = torch.linspace(-1, 2, logps.numel(), dtype=logps.dtype)
    return [logps.detach(), *torch.autograd.grad(logps, given.leaves, upstream)]


def assert_as_exact(ours: list[Tensor], twin: list[Tensor], truth: list[Tensor]) -> None:
    """Hold each error of ours to twice the twin's, in the same dtype, plus 1e-4.

    The twin counts as no better than one rounding of the largest value: of a few values, all may
    be exact by chance. Matrices, which are gradients, also point where the true ones do.
    """
    for i, (mine, plain, true) in enumerate(zip(ours, twin, truth, strict=True)):
        assert mine.shape == true.shape
        if mine.numel() == 0:
            continue
        error, plain_error = (float((x.double() - true).abs().max()) for x in (mine, plain))
        rounding = torch.finfo(mine.dtype).eps / 2 * float(true.abs().max())
        tolerance = 2 * max(plain_error, rounding) + 1e-4
        assert error <= tolerance, f"result {i}: {error}, twin {plain_error}"
        if mine.dim() == 2 and float(true.abs().max()) > 1e-6:
            assert cosine(mine, true) > 0.9999, f"result {i}"


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine between two tensors, in fp64."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def budget_of(
    rows: int, vocab: int, dtype: torch.dtype, impl: str, softcap: float | None = None
) -> int:
    """Return the memory budget that holds exactly so many rows of logits while worked on."""
    work_bytes = row_ops(impl).work_bytes(dtype, LogitScale(softcap=softcap))
    return rows * padded_vocab(vocab) * work_bytes


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes alive at a time of what PyTorch allocates on the CPU in a call.

    The allocator itself reports to the profiler, so what custom operators allocate is in it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
