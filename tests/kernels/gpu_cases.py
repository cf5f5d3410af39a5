"""Inputs of the operations on any device, and what their results are measured by: fp64.

Knows torch and spin_kernels only, so that it runs on a bare machine with a GPU.

Dimensions: N scored tokens, D model width, V vocabulary, B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from spin_kernels import (
    linear_log_softmax_gather,
    linear_log_softmax_gather_ref,
    linear_pair_loss,
    linear_pair_loss_ref,
    log_softmax_gather,
    log_softmax_gather_ref,
)

NUM_PAIRS = 16
NUM_PADDED = 8
"""The last entries of a vocabulary of 1000 and more have -inf logits and are no targets."""

FEW = 128
"""Of so few values, the largest error of the twin may be small by chance."""


@dataclass(frozen=True)
class Inputs:
    """What the three operations take."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    logits: Tensor  # [N, V]
    targets: Tensor  # [N]
    bounds: Tensor  # [2B + 1] on the CPU
    pair_weights: Tensor  # [B]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with the differentiable ones changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("hidden", "weight", "bias", "logits"):
            if values[name] is not None:
                values[name] = change(values[name].detach()).requires_grad_()
        return Inputs(**values)


def make_inputs(
    device: str, dtype: torch.dtype, n: int, v: int, d: int = 64, bias: bool = False
) -> Inputs:
    """Return random inputs; every fifth target is ignored."""
    rng = torch.Generator(device).manual_seed(1000 * n + v)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (std * torch.randn(shape, generator=rng, device=device)).to(dtype)

    num_padded = NUM_PADDED if v >= 1000 else 0
    targets = torch.randint(0, v - num_padded, (n,), generator=rng, device=device)
    targets[3::5] = -100
    b, logits = normal(v), normal(n, v, std=2.0)
    b[v - num_padded :] = -math.inf
    logits[:, v - num_padded :] = -math.inf
    return Inputs(
        normal(n, d),
        normal(v, d, std=2.0 / math.sqrt(d)),
        b if bias else None,
        logits,
        targets,
        torch.linspace(0, n, 2 * NUM_PAIRS + 1).long(),
        torch.linspace(0.5, 2.0, NUM_PAIRS, device=device),
    ).map(lambda x: x)


def transposed(x: Tensor) -> Tensor:
    """Return the same values with strides of their own."""
    return x.T.contiguous().T if x.dim() == 2 else torch.stack((x, x), 1)[:, 0]


def pair_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Return the logistic losses [B]; beta is small, so that none is saturated."""
    return -torch.nn.functional.logsigmoid(0.05 * (real - generated))


def _with_gradients(
    values: dict[str, Tensor], scalar: Tensor, leaves: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    kept = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    found = torch.autograd.grad(scalar, list(kept.values()))
    gradients = {f"d_{name}": x for name, x in zip(kept, found, strict=True)}
    return {**{name: x.detach() for name, x in values.items()}, **gradients}


def _weighted(logps: Tensor) -> Tensor:
    return (logps * torch.linspace(-1, 2, len(logps), device=logps.device)).sum()


def run_rows(op: Any, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Return log-probs and gradient of log_softmax_gather or its twin."""
    logps = op(inputs.logits, inputs.targets, **options)
    return _with_gradients({"logps": logps}, _weighted(logps), {"logits": inputs.logits})


def run_linear(op: Any, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Return log-probs and gradients of linear_log_softmax_gather or its twin."""
    x = inputs
    logps = op(x.hidden, x.weight, x.targets, x.bias, **options)
    leaves = {"hidden": x.hidden, "weight": x.weight, "bias": x.bias}
    return _with_gradients({"logps": logps}, _weighted(logps), leaves)


def run_pairs(op: Any, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Return losses, sums and gradients of linear_pair_loss or its twin."""
    x = inputs
    out = op(x.hidden, x.weight, x.targets, x.bounds, pair_loss, x.pair_weights, x.bias, **options)
    leaves = {"hidden": x.hidden, "weight": x.weight, "bias": x.bias}
    return _with_gradients(out._asdict(), 3.0 * out.loss, leaves)


OPERATIONS = {
    "rows": (run_rows, log_softmax_gather, log_softmax_gather_ref),
    "linear": (run_linear, linear_log_softmax_gather, linear_log_softmax_gather_ref),
    "pairs": (run_pairs, linear_pair_loss, linear_pair_loss_ref),
}


def errors(value: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the root mean square error and the largest, relative to those of the true values."""
    if value.numel() == 0:
        return 0.0, 0.0
    gap, tiny = value.double() - truth, 1e-30
    mean = gap.norm() / truth.norm().clamp_min(tiny)
    return float(mean), float(gap.abs().max() / truth.abs().max().clamp_min(tiny))


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two tensors."""
    return float(torch.cosine_similarity(a.double().flatten(), b.flatten(), dim=0, eps=0.0))


def run_triton(name: str, inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Return the results of an operation by its Triton kernels."""
    run, op, _ = OPERATIONS[name]
    return run(op, inputs, impl="triton", **options)


def check_against_truth(
    name: str, inputs: Inputs, budget_bytes: int = 2**30, **options: Any
) -> None:
    """Fail where an operation's error is over twice its plain twin's, both against fp64."""
    run, _, ref = OPERATIONS[name]
    limits = {} if name == "rows" else {"memory_budget_bytes": budget_bytes}
    ours = run_triton(name, inputs, **limits, **options)
    twin = run(ref, inputs, **options)
    truth = run(ref, inputs.map(Tensor.double), **options)
    check_results(ours, twin, truth, inputs.hidden.dtype)


def check_results(
    ours: dict[str, Tensor],
    twin: dict[str, Tensor],
    truth: dict[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Fail where our error is over twice the twin's, or a bf16 gradient points elsewhere.

    ``dtype`` is that of the products.
    """
    assert ours.keys() == twin.keys() == truth.keys()
    for name, value in ours.items():
        assert value.dtype == twin[name].dtype, name
        floor = 1e-4 + (4 * torch.finfo(dtype).eps if value.numel() <= FEW else 0.0)
        mine, plain = errors(value, truth[name]), errors(twin[name], truth[name])
        # The largest of two samples of the same errors differ by more than their means.
        assert mine[0] <= 2 * plain[0] + floor, (name, mine, plain)
        assert mine[1] <= 4 * plain[1] + floor, (name, mine, plain)
        if value.dtype == torch.bfloat16 and truth[name].any():
            assert cosine(value, truth[name]) > 0.9999, name
