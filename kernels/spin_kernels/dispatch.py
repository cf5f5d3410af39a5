"""The choice between the Triton and the PyTorch implementation of the row operations."""

from __future__ import annotations

from types import ModuleType

import torch

IMPLS = ("auto", "triton", "torch")


def resolve_impl(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the implementation for tensors of this device and dtype.

    Args:
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.
        device: of the inputs.
        dtype: of the logits.

    Returns:
        "triton" or "torch".

    Raises:
        ValueError: ``impl`` is unknown, or is "triton" without a GPU or Triton's interpreter.
        TypeError: ``impl`` is "triton" and its kernels do not support ``dtype``.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {IMPLS}, got {impl!r}.")
    if impl == "auto":
        return "triton" if device.type == "cuda" and dtype != torch.float64 else "torch"
    if impl == "triton":
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                "impl='triton' supports float32, bfloat16 and float16, "
                f"got {dtype}. Use impl='auto'."
            )
        if device.type != "cuda" and not row_ops("triton").IS_INTERPRETED:
            raise ValueError(
                f"impl='triton' needs tensors on a GPU, got {device}. Use impl='auto' (or set "
                "TRITON_INTERPRET=1 before the first import to run the kernels on the CPU)."
            )
    return impl


def row_ops(impl: str) -> ModuleType:
    """Return the module with the row operations: ``triton_ops`` or ``torch_ops``.

    Both define the same functions. Triton is imported on first use only, so that it need not be
    installed where it is not used.

    Args:
        impl: "triton" or "torch".
    """
    if impl == "triton":
        from spin_kernels import triton_ops

        return triton_ops
    from spin_kernels import torch_ops

    return torch_ops
