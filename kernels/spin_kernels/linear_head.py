"""The matrix products of a linear head, chunk by chunk: what the two linear operations share.

Dimensions: C rows of a chunk, D model width, V vocabulary, W >= V columns of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from spin_kernels.checks import row_ops
from spin_kernels.shape import LogitScale, accumulation_dtype, padded_vocab

_WIDE_PRODUCTS = tuple(int(x) for x in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether ``mm`` and ``addmm`` give fp32 products of narrow matrices (on CUDA only)."""


@dataclass(frozen=True)
class LinearHead:
    """A head ready to multiply: weight [V, D] and bias [V] in the product's dtype."""

    weight: Tensor
    bias: Tensor | None
    scale: LogitScale
    ops: ModuleType

    @staticmethod
    def of(
        weight: Tensor, bias: Tensor | None, dtype: torch.dtype, scale: LogitScale, impl: str
    ) -> LinearHead:
        """Return the head with its parameters cast to the product's dtype where they differ."""
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
        """The dtype of the product and of its operands."""
        return self.weight.dtype

    def rows_of_budget(self, budget_bytes: int) -> int:
        """Return the rows of a chunk that ``budget_bytes`` hold; may be 0."""
        return budget_bytes // (
            padded_vocab(self.vocab) * self.ops.work_bytes(self.dtype, self.scale)
        )

    def new_chunk(self, num_rows: int) -> Tensor:
        """Return room for the logits of a chunk, [num_rows, W], uninitialised."""
        shape = num_rows, padded_vocab(self.vocab)
        return torch.empty(shape, dtype=self.dtype, device=self.weight.device)

    def rows(self, hidden: Tensor, rows: slice) -> Tensor:
        """Return rows of hidden as a contiguous x [C, D] in the product's dtype.

        Contiguous, for torch 2.7 multiplies one strided bf16 row wrongly on the CPU.
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
        """Return the targets' raw logits [C] in fp32, where the product is narrower than that.

        A bf16 logit near 20 has a step of 0.125, and over a response such errors add up.
        """
        if self.dtype == accumulation_dtype(self.dtype):
            return None
        return self.ops.target_logits(x, self.weight, self.bias, targets)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b in ``dtype``, which is theirs or fp32."""
    out = torch.empty(a.shape[0], b.shape[1], dtype=dtype, device=a.device)
    accumulate_(out, a, b, first=True)
    return out


def accumulate_(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """Add a @ b to ``total``; the ``first`` part is written over what it holds.

    ``total`` has the dtype of a and b, or fp32. Then narrow matrices are multiplied to fp32 without
    a rounding between where that can be had: on the CPU, and on a GPU with torch 2.8.
    """
    if total.dtype != a.dtype and a.device.type == "cpu":
        a, b = a.to(total.dtype), b.to(total.dtype)
    if total.dtype == a.dtype:
        if first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
    elif not _WIDE_PRODUCTS:
        part = a @ b
        total.copy_(part) if first else total.add_(part)
    elif first:
        torch.mm(a, b, out_dtype=total.dtype, out=total)  # type: ignore[call-overload]
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)  # type: ignore[call-overload]
