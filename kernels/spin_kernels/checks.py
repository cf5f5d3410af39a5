"""Validation of the operations' arguments: each error names the argument, its value, the remedy.

Dimensions: N scored tokens, D model width, V vocabulary, B pairs.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.distributed
from torch import Tensor

from spin_kernels.dispatch import row_ops
from spin_kernels.targets import IGNORE_INDEX

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_SHARDED: tuple[type, ...] = ()
if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor

    _SHARDED = (DTensor,)


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which ``F.linear`` would multiply ``hidden``: autocast's, or its own.

    Like autocast, this leaves fp64 alone.
    """
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def check_matrix(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a plain 2-dimensional tensor of a supported floating dtype.

    Raises:
        TypeError: It is not a plain tensor, or its dtype is not supported.
        ValueError: It does not have 2 dimensions.
    """
    check_tensor(name, value)
    if value.dim() != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(value.shape)}.")
    if value.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must be floating point, got {value.dtype}. Cast it to float32, bfloat16, "
            "float16 or float64."
        )


def check_tensor(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a plain tensor.

    The kernels see local memory only, so a DTensor (a weight that FSDP2 or tensor parallelism has
    sharded, or an activation of one) is rejected: its gathering is the caller's decision.

    Raises:
        TypeError: It is not a tensor, or it is a DTensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")
    if isinstance(value, _SHARDED):
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor of shape {tuple(value.shape)}. Call the "
            "operation inside the module's forward, where FSDP has unsharded its parameters, or "
            f"pass {name}.full_tensor()."
        )


def check_targets(targets: Tensor, num_rows: int, vocab: int, device: torch.device) -> None:
    """Raise unless ``targets`` is [num_rows] int64 on ``device`` and ``vocab`` is positive.

    The values are checked by :func:`check_target_values`.

    Raises:
        TypeError: Not a plain tensor, or not int64.
        ValueError: Wrong shape or device, or an empty vocabulary.
    """
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
    """Raise unless every target is in [0, vocab) or ``IGNORE_INDEX``.

    On a GPU this does not synchronize: the check is a device-side assertion that names the argument
    and its bounds, and CUDA reports it at the next synchronization.

    Args:
        targets: [N] int64, contiguous.
        vocab: V.
        impl: "triton" or "torch".

    Raises:
        ValueError: A target on the CPU is out of range.
    """
    if not len(targets):
        return
    message = f"must be in [0, {vocab}) or {IGNORE_INDEX}"
    ok = row_ops(impl).targets_ok(targets, vocab)
    if targets.device.type != "cpu":
        torch._assert_async(ok, f"spin_kernels: targets {message}")
    elif not bool(ok):
        invalid = (targets != IGNORE_INDEX) & ((targets < 0) | (targets >= vocab))
        row = int(invalid.int().argmax())
        raise ValueError(f"targets[{row}] {message}, got {int(targets[row])}.")


def check_weight(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless ``weight`` [V, D] and ``bias`` [V] match ``hidden`` [N, D].

    Under autocast their dtypes may differ, because all are cast.

    Raises:
        TypeError: ``bias`` is not a plain tensor, or a dtype differs from hidden's.
        ValueError: A shape or a device does not match.
    """
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight must be [V, D] with D={hidden.shape[1]} of hidden, got {tuple(weight.shape)}."
        )
    is_cast = hidden.dtype != torch.float64 and torch.is_autocast_enabled(hidden.device.type)
    others = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    check_tensor("bias", weight if bias is None else bias)
    for name, value in others.items():
        if value.device != hidden.device:
            raise ValueError(f"{name} must be on {hidden.device} like hidden, got {value.device}.")
        if not is_cast and value.dtype != hidden.dtype:
            raise TypeError(
                f"{name} must be {hidden.dtype} like hidden, got {value.dtype}. "
                "Cast one of them, or run under autocast."
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
    """Check the arguments that the two linear operations share.

    Raises:
        TypeError, ValueError: The first argument that is wrong, by name.
    """
    check_matrix("hidden", hidden)
    check_matrix("weight", weight)
    check_weight(hidden, weight, bias)
    check_targets(targets, hidden.shape[0], weight.shape[0], hidden.device)
    check_positive("temperature", temperature)
    if isinstance(memory_budget_bytes, float):
        raise TypeError(f"memory_budget_bytes must be an integer, got {memory_budget_bytes}.")
    check_positive("memory_budget_bytes", memory_budget_bytes)
    if softcap is not None:
        check_positive("softcap", softcap)


def check_pairs(hidden: Tensor, cu_seqlens: Tensor, pair_weights: Tensor | None) -> list[int]:
    """Return the boundaries of the responses in the rows of hidden, as host integers.

    Args:
        hidden: [N, D], already checked.
        cu_seqlens: [2B + 1] int32 or int64.
        pair_weights: [B] floating point, or None.

    Returns:
        The 2B + 1 values of ``cu_seqlens``.

    Raises:
        TypeError, ValueError: ``cu_seqlens`` or ``pair_weights`` is wrong.
    """
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1:
        raise TypeError(
            "cu_seqlens must be 1-dimensional int32 or int64, got shape "
            f"{tuple(cu_seqlens.shape)} of {cu_seqlens.dtype}."
        )
    if cu_seqlens.shape[0] % 2 == 0:
        raise ValueError(
            "cu_seqlens must have 2B + 1 entries, two responses per pair, got "
            f"{cu_seqlens.shape[0]}."
        )
    bounds: list[int] = cu_seqlens.tolist()
    for i, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first > last:
            raise ValueError(
                f"cu_seqlens must not decrease, got {first} followed by {last} at index {i + 1}."
            )
    if (bounds[0], bounds[-1]) != (0, hidden.shape[0]):
        raise ValueError(
            f"cu_seqlens must go from 0 to the {hidden.shape[0]} rows of hidden, got "
            f"{bounds[0]} to {bounds[-1]}."
        )
    if pair_weights is not None:
        _check_pair_weights(pair_weights, len(bounds) // 2, hidden.device)
    return bounds


def _check_pair_weights(pair_weights: Tensor, num_pairs: int, device: torch.device) -> None:
    check_tensor("pair_weights", pair_weights)
    if tuple(pair_weights.shape) != (num_pairs,) or not pair_weights.is_floating_point():
        raise ValueError(
            f"pair_weights must be [{num_pairs}] floating point, one per pair, got "
            f"shape {tuple(pair_weights.shape)} of {pair_weights.dtype}."
        )
    if pair_weights.requires_grad:
        raise ValueError(
            "pair_weights must not require a gradient: none is computed. Pass "
            "pair_weights.detach()."
        )
    if pair_weights.device != device:
        raise ValueError(
            f"pair_weights must be on {device} like hidden, got {pair_weights.device}."
        )


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a positive finite number.

    Raises:
        TypeError: It is not a Python number.
        ValueError: It is not positive and finite.
    """
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    if not 0 < value < math.inf:  # torch.compile cannot trace math.isfinite of a SymFloat
        raise ValueError(f"{name} must be positive and finite, got {value}.")
