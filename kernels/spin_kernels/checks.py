"""Checks of the operations' arguments: each error names the argument, its value and the remedy.

Dimensions: N scored tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import torch
from torch import Tensor

IGNORED = -100
"""The target of a row that has no log-probability; the same value as PyTorch's cross entropy."""

IMPLS = ("auto", "triton", "torch")

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def resolve_impl(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return "triton" or "torch" for tensors of this device and dtype.

    "auto" takes Triton's kernels on a GPU and PyTorch elsewhere and for fp64.

    Raises:
        ValueError, TypeError: No such implementation, or it cannot do this device or dtype.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {IMPLS}, got {impl!r}.")
    if impl == "auto":
        return "triton" if device.type == "cuda" and dtype != torch.float64 else "torch"
    if impl == "triton":
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"impl='triton' takes float32, bfloat16 and float16, got {dtype}. Use impl='auto'."
            )
        if device.type != "cuda" and not row_ops("triton").IS_INTERPRETED:
            raise ValueError(
                f"impl='triton' needs tensors on a GPU, got {device}. Use impl='auto' (or set "
                "TRITON_INTERPRET=1 before the first import to try the kernels on the CPU)."
            )
    return impl


def row_ops(impl: str) -> ModuleType:
    """Return the module of row operations of "triton" or "torch".

    Triton is imported here and not before: where it is not used it need not be there.
    """
    if impl == "triton":
        from spin_kernels import triton_ops

        return triton_ops
    from spin_kernels import torch_ops

    return torch_ops


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype that ``F.linear`` would multiply ``hidden`` in: autocast's, or its own."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def check_matrix(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a matrix of a dtype that can be multiplied and summed."""
    check_tensor(name, value)
    if value.dim() != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(value.shape)}.")
    if value.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must be floating point, got {value.dtype}. Cast it to float32, bfloat16, "
            "float16 or float64."
        )


def check_tensor(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")


def check_targets(targets: Tensor, num_rows: int, vocab: int, device: torch.device) -> None:
    """Raise unless ``targets`` is an int64 [num_rows] on ``device`` and there is a vocabulary."""
    check_tensor("targets", targets)
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}. Use targets.long().")
    if tuple(targets.shape) != (num_rows,):
        raise ValueError(f"targets must have shape ({num_rows},), got {tuple(targets.shape)}.")
    if targets.device != device:
        raise ValueError(f"targets must be on {device} like the rows, got {targets.device}.")
    if vocab < 1:
        raise ValueError(f"the vocabulary must have at least one entry, got V={vocab}.")


def check_target_values(targets: Tensor, vocab: int, impl: str) -> None:
    """Raise unless every target of a contiguous [N] is in [0, vocab) or -100.

    On a GPU the host does not wait: the check is an assertion of the device, which names the
    argument and its bounds; CUDA reports it at the next synchronisation.
    """
    if not len(targets):
        return
    message = f"must be in [0, {vocab}) or {IGNORED}"
    ok = row_ops(impl).targets_ok(targets, vocab)
    if targets.device.type != "cpu":
        torch._assert_async(ok, f"spin_kernels: targets {message}")
    elif not bool(ok):
        wrong = (targets != IGNORED) & ((targets < 0) | (targets >= vocab))
        row = int(wrong.int().argmax())
        raise ValueError(f"targets[{row}] {message}, got {int(targets[row])}.")


def check_weight(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless ``weight`` [V, D] and ``bias`` [V] fit ``hidden`` [N, D].

    Under autocast their dtypes may differ: all are cast.
    """
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight must be [V, D] with D={hidden.shape[1]} of hidden, got {tuple(weight.shape)}."
        )
    casts = hidden.dtype != torch.float64 and torch.is_autocast_enabled(hidden.device.type)
    others = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    check_tensor("bias", weight if bias is None else bias)
    for name, value in others.items():
        if value.device != hidden.device:
            raise ValueError(f"{name} must be on {hidden.device} like hidden, got {value.device}.")
        if not casts and value.dtype != hidden.dtype:
            raise TypeError(
                f"{name} must be {hidden.dtype} like hidden, got {value.dtype}. "
                "Cast one of them or run under autocast."
            )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}.")


def check_linear(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    memory_budget_bytes: int,
) -> None:
    """Raise unless these are the arguments of a linear head with targets."""
    check_matrix("hidden", hidden)
    check_matrix("weight", weight)
    check_weight(hidden, weight, bias)
    check_targets(targets, hidden.shape[0], weight.shape[0], hidden.device)
    check_positive("temperature", temperature)
    if isinstance(memory_budget_bytes, float):
        raise TypeError(f"memory_budget_bytes must be whole, got {memory_budget_bytes}.")
    check_positive("memory_budget_bytes", memory_budget_bytes)
    if softcap is not None:
        check_positive("softcap", softcap)


def check_pairs(hidden: Tensor, cu_seqlens: Tensor, pair_weights: Tensor | None) -> list[int]:
    """Return the bounds [2B + 1] of the responses in hidden's rows; raise unless they are that."""
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1:
        raise TypeError(
            f"cu_seqlens must be a vector of int32 or int64, got {tuple(cu_seqlens.shape)} of "
            f"{cu_seqlens.dtype}."
        )
    if cu_seqlens.shape[0] % 2 == 0:
        raise ValueError(
            "cu_seqlens must have 2B + 1 bounds, two responses a pair, got "
            f"{cu_seqlens.shape[0]} of them."
        )
    bounds: list[int] = cu_seqlens.tolist()
    for i, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first > last:
            raise ValueError(
                f"cu_seqlens must not decrease, got {first} and then {last} at {i + 1}."
            )
    if (bounds[0], bounds[-1]) != (0, hidden.shape[0]):
        raise ValueError(
            f"cu_seqlens must go from 0 to the {hidden.shape[0]} rows of hidden, got "
            f"{bounds[0]} to {bounds[-1]}."
        )
    if pair_weights is None:
        return bounds
    check_tensor("pair_weights", pair_weights)
    if tuple(pair_weights.shape) != (len(bounds) // 2,) or not pair_weights.is_floating_point():
        raise ValueError(
            f"pair_weights must be [{len(bounds) // 2}] floating point, one a pair, got "
            f"{tuple(pair_weights.shape)} of {pair_weights.dtype}."
        )
    if pair_weights.requires_grad:
        raise ValueError("pair_weights get no gradient, but ask for one. Give them detached.")
    if pair_weights.device != hidden.device:
        raise ValueError(
            f"pair_weights must be on {hidden.device} like hidden, got {pair_weights.device}."
        )
    return bounds


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a positive finite number."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    if not 0 < value < math.inf:  # torch.compile can trace no isfinite of a symbolic number
        raise ValueError(f"{name} must be positive and finite, got {value}.")
