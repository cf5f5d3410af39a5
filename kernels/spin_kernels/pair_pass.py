"""One pass over pairs of responses: sums of log-probs, and gradients while logits are in memory.

dL/dlogit = coefficient[sequence] * (onehot - softmax). The second factor overwrites a chunk's
logits. The first is known once the chunk's pairs are summed; it scales the much smaller matrices on
the other side of the matrix multiplications.

Dimensions: N scored tokens of all responses, C rows of a chunk, D model width, V vocabulary,
W >= V columns of a chunk, B pairs, S = 2B sequences (real_0, generated_0, real_1, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spin_kernels.linear_head import LinearHead, accumulate_matmul_, matmul
from spin_kernels.shape import LogitScale, accumulation_dtype, chunk_size, row_chunks

log = logging.getLogger(__name__)

PairLossFunction = Callable[[Tensor, Tensor], Tensor]
"""(real sums [B], generated sums [B]) -> losses [B]; the loss of pair b depends on pair b only."""

_MAX_BF16_CHUNKS = 4
"""The weight's gradient is accumulated in bf16 over at most this many chunks, and in fp32 over
more: each addition rounds."""


@dataclass(frozen=True)
class PairSpec:
    """The arguments of one call that are not tensors."""

    bounds: list[int]
    """[2B + 1] the boundaries of the sequences in the N rows."""
    pair_loss: PairLossFunction
    """The loss of each pair."""
    dtype: torch.dtype
    """The dtype of the matrix multiplications."""
    scale: LogitScale
    """The transform of the raw logits."""
    budget_bytes: int
    """Upper bound on the chunk of logits."""
    impl: str
    """"triton" or "torch"."""
    with_gradient: bool
    """Whether autograd was enabled at the call; inside a ``Function`` it never is."""

    @property
    def sum_dtype(self) -> torch.dtype:
        """The dtype of sums and losses."""
        return accumulation_dtype(self.dtype)

    def losses(self, sums: Tensor) -> Tensor:
        """Return the pair losses [B] of the sums [B, 2].

        Raises:
            ValueError: ``pair_loss`` returned something else.
        """
        losses = self.pair_loss(sums[:, 0], sums[:, 1])
        if not isinstance(losses, Tensor) or losses.shape != sums.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"pair_loss must return losses [{len(sums)}], one per pair, got {got}."
            )
        return losses


class PairPass:
    """The state of one call: the division into chunks, the sums so far, the buffer for logits."""

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
        self.max_rows = max(1, head.rows_in_budget(spec.budget_bytes))
        self.groups = self._whole_pairs(head.enough_rows(spec.budget_bytes))
        sizes = [bounds[2 * last] - bounds[2 * first] for first, last in self.groups]
        self.num_chunks = sum(len(self._parts(0, size)) for size in sizes)
        self.buffer = head.new_chunk(min(max(sizes, default=0), self.max_rows))
        self.offsets = torch.tensor(bounds, dtype=torch.int64).to(device, non_blocking=True)
        self.sums = torch.zeros(len(bounds) // 2, 2, dtype=spec.sum_dtype, device=device)

    def _whole_pairs(self, max_rows: int) -> list[tuple[int, int]]:
        """Return the pairs [first, last) of each group: as many as have so many rows, or one."""
        bounds, groups, first = self.spec.bounds, [], 0
        num_pairs = len(bounds) // 2
        for pair in range(1, num_pairs + 1):
            if pair == num_pairs or bounds[2 * (pair + 1)] - bounds[2 * first] > max_rows:
                groups.append((first, pair))
                first = pair
        return groups

    def _parts(self, start: int, stop: int) -> list[slice]:
        """Return the rows [start, stop) in parts that fit the buffer; a single part if all do."""
        size = chunk_size(stop - start, self.max_rows)
        parts = row_chunks(stop - start, size) or [slice(0, 0)]
        return [slice(start + part.start, start + part.stop) for part in parts]

    def score(self, first: int, last: int, gradients: PairGradients) -> None:
        """Compute the sums of the pairs [first, last), and add their gradients.

        Args:
            first: the first pair of a group.
            last: one past its last pair.
            gradients: what to add to; unchanged if none is required.
        """
        start, stop = self.spec.bounds[2 * first], self.spec.bounds[2 * last]
        parts = self._parts(start, stop)
        if not gradients.required:
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
        """Score one pair that is too large for the buffer: its logits are computed twice."""
        _log_large_pair(parts[-1].stop - parts[0].start, self.max_rows)
        results = [self._logps(rows) for rows in parts]
        self._sum(first, last, torch.cat([logps for logps, _, _ in results]))
        coefficients = self._coefficients(first, last)
        for rows, (_, *normalizer) in zip(parts, results, strict=True):
            x, targets, z = self._logits(rows)
            self.head.ops.logps_backward(
                z,
                self.head.vocab,
                targets,
                self.head.exact(x, targets),
                tuple(normalizer),
                torch.ones_like(normalizer[0]),
                self.head.scale,
                z,
            )
            of_pair = slice(rows.start - parts[0].start, rows.stop - parts[0].start)
            gradients.add(rows, z, x, coefficients[of_pair])

    def _logits(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows of hidden [C, D] in the head's dtype, targets [C] and raw logits [C, W]."""
        x = self.head.rows(self.hidden, rows)
        return x, self.targets[rows], self.head.logits_(x, self.buffer[: len(x)])

    def _logps(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probs, row maxima and logs of sums, each [C]; see ``torch_ops.logps``."""
        x, targets, z = self._logits(rows)
        exact = self.head.exact(x, targets)
        return self.head.ops.logps(z, self.head.vocab, targets, exact, self.head.scale, keep=False)

    def _sum(self, first: int, last: int, logps: Tensor) -> None:
        """Store the sums of the pairs [first, last), given the log-probs of all their rows."""
        offsets = self.offsets[2 * first : 2 * last + 1]
        sums = self.head.ops.segment_sums(logps, offsets - offsets[0])
        self.sums[first:last] = sums.view(-1, 2)

    def _coefficients(self, first: int, last: int) -> Tensor:
        """Return d loss / d logp of each row of the pairs [first, last): constant in a sequence."""
        sums = self.sums.detach().clone().requires_grad_()
        with torch.enable_grad():
            losses = self.spec.losses(sums)
            if not losses.requires_grad:
                raise ValueError("pair_loss must be differentiable with respect to the sums.")
            weights = self.pair_weights.to(losses.dtype)
            (derivative,) = torch.autograd.grad(losses, sums, weights)
        lengths = self.offsets[2 * first : 2 * last + 1].diff()
        num_rows = self.spec.bounds[2 * last] - self.spec.bounds[2 * first]
        return derivative[first:last].flatten().repeat_interleave(lengths, output_size=num_rows)


class PairGradients:
    """The gradients of hidden [N, D], weight [V, D] and bias [V], as far as they are required."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        num_chunks: int,
        needs: list[bool],
    ) -> None:
        self.head, self.required, self.num_added = head, any(needs), 0
        self.dtypes = [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
        sum_dtype = accumulation_dtype(head.dtype)
        # fp16 gradients could underflow before backward multiplies them by the loss scale: they
        # stay in fp32 until then.
        fp16 = head.dtype == torch.float16
        in_head_dtype = weight.dtype == head.dtype and not fp16 and num_chunks <= _MAX_BF16_CHUNKS

        def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden.device)

        for_hidden, for_weight, for_bias = needs
        hidden_dtype = sum_dtype if fp16 else hidden.dtype
        weight_dtype = head.dtype if in_head_dtype else sum_dtype
        self.hidden = empty(hidden.shape, hidden_dtype) if for_hidden else None
        self.weight = empty(weight.shape, weight_dtype) if for_weight else None
        self.bias = empty(weight.shape[:1], sum_dtype).zero_() if for_bias else None

    def add(self, rows: slice, z: Tensor, x: Tensor, coefficients: Tensor) -> None:
        """Add the gradients from one chunk of rows.

        The coefficients scale the smaller matrices only: the output of the multiplication for
        hidden, an input of that for the weight.

        Args:
            rows: the chunk's rows in hidden.
            z: [C, W] d logps / d raw logits.
            x: [C, D] the rows of hidden in the head's dtype.
            coefficients: [C] d loss / d logps.
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
            accumulate_matmul_(self.weight, gradient.T, (x * column).to(x.dtype), first)
            return
        # Small coefficients would underflow in fp16: they are divided by the largest, and the
        # product is multiplied by it.
        largest = _largest(column)
        scaled = (x * (column / largest)).to(x.dtype)
        if first:
            accumulate_matmul_(self.weight, gradient.T, scaled, first)
            self.weight *= largest
        else:
            self.weight += matmul(gradient.T, scaled, self.weight.dtype).mul_(largest)

    def finish(self) -> list[Tensor | None]:
        """Return the gradients of hidden, weight and bias; None for one that is not required."""
        if self.weight is not None and self.num_added == 0:
            self.weight.zero_()
        return [self.hidden, self.weight, self.bias]


def _weighted_column_sums(gradient: Tensor, coefficients: Tensor) -> Tensor:
    """Return sum_c coefficients[c] * gradient[c, v] [V].

    For a bf16 or fp16 gradient each coefficient is split into the sum of two numbers of that dtype,
    after division by the largest, so that its precision is not lost.
    """
    if gradient.dtype == coefficients.dtype:
        return gradient.T @ coefficients
    largest = _largest(coefficients)
    scaled = coefficients / largest
    high = scaled.to(gradient.dtype)
    high_and_low = torch.stack((high, (scaled - high).to(gradient.dtype)), 1)
    return matmul(gradient.T, high_and_low, coefficients.dtype).sum(1) * largest


def _largest(coefficients: Tensor) -> Tensor:
    """Return the largest magnitude, [1]; at least the dtype's smallest normal number.

    So it can be divided by, also if all coefficients are 0 or there are none.
    """
    tiny = coefficients.new_full((1,), torch.finfo(coefficients.dtype).tiny)
    return torch.cat((coefficients.flatten().abs(), tiny)).amax(0, keepdim=True)


_logged: set[str] = set()


def _log_large_pair(num_rows: int, max_rows: int) -> None:
    """Warn once per process that a pair exceeds the memory budget."""
    if "large pair" not in _logged:
        _logged.add("large pair")
        log.warning(
            "linear_pair_loss: a pair of %d scored tokens exceeds the %d rows of logits that "
            "fit in memory_budget_bytes. Its logits are computed twice: four matrix "
            "multiplications instead of three. (Logged once.)",
            num_rows,
            max_rows,
        )
