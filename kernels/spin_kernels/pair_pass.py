"""One pass over pairs of responses: their sums, and the gradient made while logits are there.

dL/dlogit = coefficient[sequence] * (onehot - softmax): the second factor is written over a chunk's
logits at once, the first is known when the chunk's pairs are summed, and scales small matrices.

Dimensions: N scored tokens of all responses, C rows of a chunk, D model width, V vocabulary,
W >= V columns of a chunk, B pairs, S = 2B sequences (real_0, generated_0, real_1, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spin_kernels.linear_head import LinearHead, accumulate_, product
from spin_kernels.shape import LogitScale, accumulation_dtype, chunk_size, row_chunks

log = logging.getLogger(__name__)

PairLossFunction = Callable[[Tensor, Tensor], Tensor]
"""(real sums [B], generated sums [B]) -> losses [B]; pair b's loss depends on pair b only."""

_MAX_NARROW_PARTS = 4
"""A bf16 gradient of the weight is summed over at most so many chunks in bf16; over more, in fp32:
each chunk's part is rounded once when it is added."""


@dataclass(frozen=True)
class PairSpec:
    """What is no tensor."""

    bounds: list[int]  # [2B + 1] of the sequences in the N rows
    pair_loss: PairLossFunction
    dtype: torch.dtype  # of the products
    scale: LogitScale
    budget_bytes: int
    impl: str
    with_gradient: bool  # autograd's mode at the call; inside a Function it is off

    @property
    def wide(self) -> torch.dtype:
        """The dtype of sums and losses."""
        return accumulation_dtype(self.dtype)

    def losses(self, sums: Tensor) -> Tensor:
        """Return the pair losses [B] of the sums [B, 2]."""
        losses = self.pair_loss(sums[:, 0], sums[:, 1])
        if not isinstance(losses, Tensor) or losses.shape != sums.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"pair_loss must return losses [{len(sums)}], one a pair, got {got}.")
        return losses


class PairPass:
    """One call's way over the pairs: the sums so far, and the room for a chunk of logits."""

    def __init__(
        self,
        head: LinearHead,
        hidden: Tensor,
        targets: Tensor,
        pair_weights: Tensor,
        spec: PairSpec,
    ) -> None:
        self.head, self.hidden, self.targets, self.spec = head, hidden, targets, spec
        self.pair_weights = pair_weights
        bounds, device = spec.bounds, hidden.device
        self.max_rows = max(1, head.rows_of_budget(spec.budget_bytes))
        self.groups = self._whole_pairs()
        sizes = [bounds[2 * last] - bounds[2 * first] for first, last in self.groups]
        self.num_parts = sum(len(self._parts(0, size)) for size in sizes)
        self.room = head.new_chunk(min(max(sizes, default=0), self.max_rows))
        self.offsets = torch.tensor(bounds, dtype=torch.int64).to(device, non_blocking=True)
        self.sums = torch.zeros(len(bounds) // 2, 2, dtype=spec.wide, device=device)

    def _whole_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs [first, last) of each chunk: as many as fit, at least one."""
        bounds, groups, first = self.spec.bounds, [], 0
        num_pairs = len(bounds) // 2
        for pair in range(1, num_pairs + 1):
            if pair == num_pairs or bounds[2 * (pair + 1)] - bounds[2 * first] > self.max_rows:
                groups.append((first, pair))
                first = pair
        return groups

    def _parts(self, start: int, stop: int) -> list[slice]:
        """Return the rows start to stop in parts that fit the room; one part where all do."""
        size = chunk_size(stop - start, self.max_rows)
        parts = row_chunks(stop - start, size) or [slice(0, 0)]
        return [slice(start + part.start, start + part.stop) for part in parts]

    def score(self, first: int, last: int, gradients: PairGradients) -> None:
        """Fill in the sums of the pairs [first, last), and add their gradients."""
        start, stop = self.spec.bounds[2 * first], self.spec.bounds[2 * last]
        parts = self._parts(start, stop)
        if not gradients.wanted:
            logps = torch.cat([self._logps(rows)[0] for rows in parts])
            self._sum(first, last, logps)
        elif len(parts) == 1:
            x, targets, z = self._logits(parts[0])
            exact = self.head.exact(x, targets)
            logps = self.head.ops.logps_and_gradient_(
                z, self.head.vocab, targets, exact, self.head.scale
            )
            self._sum(first, last, logps)
            gradients.add(parts[0], z, x, self._coefficients(first, last))
        else:
            self._score_in_parts(first, last, parts, gradients)

    def _score_in_parts(
        self, first: int, last: int, parts: list[slice], gradients: PairGradients
    ) -> None:
        """Score one pair that is too large for the room: its logits are made twice."""
        _log_large_pair(parts[-1].stop - parts[0].start, self.max_rows)
        found = [self._logps(rows) for rows in parts]
        self._sum(first, last, torch.cat([logps for logps, _, _ in found]))
        coefficients = self._coefficients(first, last)
        for rows, (_, *norm) in zip(parts, found, strict=True):
            x, targets, z = self._logits(rows)
            self.head.ops.logps_backward(
                z,
                self.head.vocab,
                targets,
                self.head.exact(x, targets),
                tuple(norm),
                torch.ones_like(norm[0]),
                self.head.scale,
                z,
            )
            inside = slice(rows.start - parts[0].start, rows.stop - parts[0].start)
            gradients.add(rows, z, x, coefficients[inside])

    def _logits(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows of hidden [C, D] in the product's dtype, their targets, raw logits [C, W]."""
        x = self.head.rows(self.hidden, rows)
        return x, self.targets[rows], self.head.logits_(x, self.room[: len(x)])

    def _logps(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        x, targets, z = self._logits(rows)
        exact = self.head.exact(x, targets)
        return self.head.ops.logps(z, self.head.vocab, targets, exact, self.head.scale, keep=False)

    def _sum(self, first: int, last: int, logps: Tensor) -> None:
        offsets = self.offsets[2 * first : 2 * last + 1]
        sums = self.head.ops.segment_sums(logps, offsets - offsets[0])
        self.sums[first:last] = sums.view(-1, 2)

    def _coefficients(self, first: int, last: int) -> Tensor:
        """Return d loss / d logp of each row of the pairs [first, last): one number a sequence."""
        sums = self.sums.detach().clone().requires_grad_()
        with torch.enable_grad():
            losses = self.spec.losses(sums)
            if not losses.requires_grad:
                raise ValueError("pair_loss must be differentiable in the sums that it gets.")
            weights = self.pair_weights.to(losses.dtype)
            (derivative,) = torch.autograd.grad(losses, sums, weights)
        lengths = self.offsets[2 * first : 2 * last + 1].diff()
        num_rows = self.spec.bounds[2 * last] - self.spec.bounds[2 * first]
        return derivative[first:last].flatten().repeat_interleave(lengths, output_size=num_rows)


class PairGradients:
    """The gradients of hidden [N, D], weight [V, D] and bias [V], as far as they are wanted."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        num_parts: int,
        needs: list[bool],
    ) -> None:
        self.head, self.wanted, self.num_added = head, any(needs), 0
        self.dtypes = [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
        wide = accumulation_dtype(head.dtype)
        # fp16 waits for the upstream scalar in fp32: it might underflow before.
        fp16 = head.dtype == torch.float16
        narrow = weight.dtype == head.dtype and not fp16 and num_parts <= _MAX_NARROW_PARTS

        def room(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden.device)

        for_hidden, for_weight, for_bias = needs
        self.hidden = room(hidden.shape, wide if fp16 else hidden.dtype) if for_hidden else None
        self.weight = room(weight.shape, head.dtype if narrow else wide) if for_weight else None
        self.bias = room(weight.shape[:1], wide).zero_() if for_bias else None

    def add(self, rows: slice, z: Tensor, x: Tensor, coefficients: Tensor) -> None:
        """Add the part of the rows x [C, D], whose z [C, W] holds d logps / d raw logits.

        The coefficients [C] scale small matrices only: the product's output for hidden, the
        product's input for the weight.
        """
        gradient, column = z[:, : self.head.vocab], coefficients[:, None]
        if self.hidden is not None:
            torch.mul(gradient @ self.head.weight, column, out=self.hidden[rows])
        if self.bias is not None:
            self.bias += _weighted_column_sums(gradient, coefficients)
        if self.weight is not None:
            self._add_to_weight(gradient, x, column, first=self.num_added == 0)
        self.num_added += 1

    def _add_to_weight(self, gradient: Tensor, x: Tensor, column: Tensor, first: bool) -> None:
        assert self.weight is not None
        if x.dtype != torch.float16:
            accumulate_(self.weight, gradient.T, (x * column).to(x.dtype), first)
            return
        # In fp16 small coefficients would be lost: the largest is taken out, and put back.
        largest = _largest(column)
        scaled = (x * (column / largest)).to(x.dtype)
        if first:
            accumulate_(self.weight, gradient.T, scaled, first)
            self.weight *= largest
        else:
            self.weight += product(gradient.T, scaled, self.weight.dtype).mul_(largest)

    def finished(self) -> list[Tensor | None]:
        """Return the gradients of hidden, weight and bias; None for one that is not wanted."""
        if self.weight is not None and self.num_added == 0:
            self.weight.zero_()
        return [self.hidden, self.weight, self.bias]


def _weighted_column_sums(gradient: Tensor, coefficients: Tensor) -> Tensor:
    """Return sum_c coefficients[c] * gradient[c, v] [V].

    In a narrow product the coefficients go as two numbers, high and low digits, of at most 1.
    """
    if gradient.dtype == coefficients.dtype:
        return gradient.T @ coefficients
    largest = _largest(coefficients)
    scaled = coefficients / largest
    high = scaled.to(gradient.dtype)
    both = torch.stack((high, (scaled - high).to(gradient.dtype)), 1)
    return product(gradient.T, both, coefficients.dtype).sum(1) * largest


def _largest(coefficients: Tensor) -> Tensor:
    """Return the largest magnitude, [1]; the smallest positive number where all are 0 or none."""
    tiny = coefficients.new_full((1,), torch.finfo(coefficients.dtype).tiny)
    return torch.cat((coefficients.flatten().abs(), tiny)).amax(0, keepdim=True)


_logged: set[str] = set()


def _log_large_pair(num_rows: int, max_rows: int) -> None:
    """Say once per process that pairs do not fit the budget."""
    if "large pair" not in _logged:
        _logged.add("large pair")
        log.warning(
            "linear_pair_loss: a pair of %d scored tokens exceeds the %d rows of logits that "
            "memory_budget_bytes holds. Its logits are made twice: four products in place of "
            "three. (Said once.)",
            num_rows,
            max_rows,
        )
