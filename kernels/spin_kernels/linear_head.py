"""The matrix multiplications of a linear head, chunk by chunk; both linear operations use them.

Dimensions: C rows of a chunk, D model width, V vocabulary, W >= V columns of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from spin_kernels.dispatch import row_ops
from spin_kernels.shape import LogitScale, accumulation_dtype, padded_vocab

_HAS_MM_OUT_DTYPE = tuple(int(x) for x in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether ``mm`` and ``addmm`` accept ``out_dtype``: fp32 output of bf16 and fp16 inputs, on CUDA
only."""

_ENOUGH_ROWS = 1024
"""Rows of a chunk on a CPU: larger matrix multiplications are no faster there."""


@dataclass(frozen=True)
class LinearHead:
    """A linear head in the dtype of the matrix multiplication."""

    weight: Tensor
    """[V, D]."""
    bias: Tensor | None
    """[V], contiguous, in weight's dtype."""
    scale: LogitScale
    """The transform of the logits that follows."""
    ops: ModuleType
    """The row operations: ``triton_ops`` or ``torch_ops``."""

    @staticmethod
    def of(
        weight: Tensor, bias: Tensor | None, dtype: torch.dtype, scale: LogitScale, impl: str
    ) -> LinearHead:
        """Return the head with its parameters cast to ``dtype`` where theirs differs."""
        return LinearHead(
            weight.to(dtype),
            None if bias is None else bias.to(dtype).contiguous(),
            scale,
            row_ops(impl),
        )

    @property
    def vocab(self) -> int:
        """V."""
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix multiplication's operands and of the logits."""
        return self.weight.dtype

    def rows_in_budget(self, budget_bytes: int) -> int:
        """Return how many rows of logits can be processed at once within a budget; may be 0."""
        return budget_bytes // (
            padded_vocab(self.vocab) * self.ops.work_bytes(self.dtype, self.scale)
        )

    def enough_rows(self, budget_bytes: int) -> int:
        """Return how many rows of logits to process at once within a budget; may be 0.

        As many as possible on a GPU; on a CPU no more than are needed for speed.
        """
        rows = self.rows_in_budget(budget_bytes)
        return min(rows, _ENOUGH_ROWS) if self.weight.device.type == "cpu" else rows

    def new_chunk(self, num_rows: int) -> Tensor:
        """Return an uninitialized buffer for a chunk of logits, [num_rows, W]."""
        shape = num_rows, padded_vocab(self.vocab)
        return torch.empty(shape, dtype=self.dtype, device=self.weight.device)

    def rows(self, hidden: Tensor, rows: slice) -> Tensor:
        """Return rows of hidden as a contiguous x [C, D] in the head's dtype.

        Contiguous because torch 2.7 on the CPU multiplies a single strided bf16 row incorrectly.
        """
        return hidden[rows].to(self.dtype).contiguous()

    def logits_(self, x: Tensor, out: Tensor) -> Tensor:
        """Write the raw logits of rows x [C, D] to ``out`` [C, W], and return it."""
        if self.bias is None:
            torch.mm(x, self.weight.T, out=out[:, : self.vocab])
        else:
            torch.addmm(self.bias, x, self.weight.T, out=out[:, : self.vocab])
        return out

    def exact(self, x: Tensor, targets: Tensor) -> Tensor | None:
        """Return the targets' raw logits [C] in fp32, or None if the logits already have that.

        bf16 values near 20 are 0.125 apart, and over a response such rounding errors add up.
        """
        if self.dtype == accumulation_dtype(self.dtype):
            return None
        return self.ops.target_logits(x, self.weight, self.bias, targets)


def matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b in ``dtype``: that of a and b, or fp32."""
    out = torch.empty(a.shape[0], b.shape[1], dtype=dtype, device=a.device)
    accumulate_matmul_(out, a, b, first=True)
    return out


def accumulate_matmul_(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """Add a @ b to ``total``; if ``first``, overwrite it.

    ``total`` has the dtype of a and b, or fp32. In fp32 the product of narrower matrices is not
    rounded to their dtype before it is added, where PyTorch can do so: on the CPU, and on a GPU
    from torch 2.8 on.
    """
    if total.dtype != a.dtype and a.device.type == "cpu":
        a, b = a.to(total.dtype), b.to(total.dtype)
    if total.dtype == a.dtype:
        if first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
    elif not _HAS_MM_OUT_DTYPE:
        product = a @ b
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(a, b, out_dtype=total.dtype, out=total)  # type: ignore[call-overload]
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)  # type: ignore[call-overload]
