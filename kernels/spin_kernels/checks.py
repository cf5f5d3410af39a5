"""Checks of the operations' arguments: each error names the argument, its value and the remedy.

Dimensions: N scored tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

IGNORED = -100
"""The target of a row that has no log-probability; the same value as PyTorch's cross entropy."""


def check_matrix(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a floating-point matrix."""
    if value.dim() != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(value.shape)}.")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}.")


def check_targets(targets: Tensor, num_rows: int, vocab: int, device: torch.device) -> None:
    """Raise unless ``targets`` is an int64 [num_rows] of ids below ``vocab`` or -100.

    The values are compared on the CPU only: on a GPU it would make the host wait.
    """
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}. Use targets.long().")
    if tuple(targets.shape) != (num_rows,):
        raise ValueError(f"targets must have shape ({num_rows},), got {tuple(targets.shape)}.")
    if targets.device != device:
        raise ValueError(f"targets must be on {device} like the rows, got {targets.device}.")
    if vocab < 1:
        raise ValueError(f"the vocabulary must have at least one entry, got V={vocab}.")
    if targets.device.type == "cpu" and num_rows:
        wrong = (targets != IGNORED) & ((targets < 0) | (targets >= vocab))
        if bool(wrong.any()):
            row = int(wrong.int().argmax())
            raise ValueError(
                f"targets[{row}] must be in [0, {vocab}) or {IGNORED}, got {int(targets[row])}."
            )


def check_weight(hidden: Tensor, weight: Tensor, bias: Tensor | None, same_dtype: bool) -> None:
    """Raise unless ``weight`` [V, D] and ``bias`` [V] fit ``hidden`` [N, D]."""
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight must be [V, D] with D={hidden.shape[1]} of hidden, got {tuple(weight.shape)}."
        )
    others = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, value in others.items():
        if value.device != hidden.device:
            raise ValueError(f"{name} must be on {hidden.device} like hidden, got {value.device}.")
        if same_dtype and value.dtype != hidden.dtype:
            raise TypeError(
                f"{name} must be {hidden.dtype} like hidden, got {value.dtype}. "
                "Cast one of them or run under autocast."
            )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}.")


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a positive finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
