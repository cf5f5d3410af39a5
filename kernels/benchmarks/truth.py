"""The same quantities in fp64, and how far a candidate is from them.

Log-probabilities are compared for all rows. Gradients are compared on 64 rows of d_hidden (of
d_logits in operation a) and on 128 rows of d_weight, half of them those of targets, the other half
any; all N rows enter those.

Dimensions: N scored tokens, D model width, V vocabulary, R rows compared, S vocabulary entries
compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from inputs import Head
from peers import mean_pair_loss
from torch import Tensor

Check = Callable[[Any, tuple[Tensor, ...]], dict[str, float]]
"""(what forward returned, what backward returned) -> errors by name."""

_NUM_ROWS = 64
_NUM_ENTRIES = 128
_ROWS_AT_A_TIME = 512


class LogitsTruth:
    """Operation a in fp64: log-probs [N] of logits [N, V] and rows of their gradient."""

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.rows = _some(len(targets), _NUM_ROWS, logits.device)
        self.logps = torch.cat(
            [
                rows.double().log_softmax(1).gather(1, t[:, None])[:, 0]
                for rows, t in _in_chunks(logits, targets)
            ]
        )
        picked = torch.nn.functional.one_hot(targets[self.rows], logits.shape[1])
        self.d_logits = picked - logits[self.rows].double().softmax(1)  # [R, V]

    def check(
        self, coefficients: Tensor, logps: Tensor, d_logits: Tensor | None
    ) -> dict[str, float]:
        """Return the errors of ``logps`` ([N], or the negated sum) and of its gradient."""
        errors = _errors_of_logps(logps.detach(), self.logps)
        if d_logits is not None:
            expected = self.d_logits * coefficients[self.rows, None].double()
            errors["d_logits"] = _relative(d_logits[self.rows], expected)
        return errors


class HeadTruth:
    """Operations b and c in fp64."""

    def __init__(self, head: Head) -> None:
        hidden, weight = head.scored().detach(), head.weight.detach().double()
        targets, vocab = head.targets, len(weight)
        device = hidden.device
        self.head = head
        self.rows = _some(len(targets), _NUM_ROWS, device)
        half = _NUM_ENTRIES // 2
        drawn = torch.cat([targets[_some(len(targets), half, device)], _some(vocab, half, device)])
        self.entries = drawn.unique()
        logps, probs = [], []
        for x, t in _in_chunks(hidden, targets):
            logs = (x.double() @ weight.T).log_softmax(1)
            logps.append(logs.gather(1, t[:, None])[:, 0])
            probs.append(logs[:, self.entries].exp())
        self.logps = torch.cat(logps)  # [N]
        self.d_entries = (targets[:, None] == self.entries).double() - torch.cat(probs)  # [N, S]
        softmax = (hidden[self.rows].double() @ weight.T).softmax(1)
        self.d_rows = weight[targets[self.rows]] - softmax @ weight  # [R, D]

    def pair_coefficients(self) -> tuple[Tensor, Tensor]:
        """Return the mean pair loss and its derivatives by each log-prob: [] and [N]."""
        logps = self.logps.clone().requires_grad_()
        loss = mean_pair_loss(logps, self.head)
        return loss.detach(), torch.autograd.grad(loss, logps)[0]

    def check_logps(
        self, coefficients: Tensor, logps: Tensor, gradients: tuple[Tensor, ...]
    ) -> dict[str, float]:
        """Return the errors of log-probs ([N], or the negated sum) and of the gradients."""
        errors = _errors_of_logps(logps.detach(), self.logps)
        return errors | self._errors_of_gradients(coefficients.double(), gradients)

    def check_pairs(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> dict[str, float]:
        """Return the errors of the mean pair loss and of the gradients."""
        expected, coefficients = self.pair_coefficients()
        error = float((loss.detach().double() - expected).abs())
        return {"loss": error} | self._errors_of_gradients(coefficients, gradients)

    def _errors_of_gradients(
        self, coefficients: Tensor, gradients: tuple[Tensor, ...]
    ) -> dict[str, float]:
        if not gradients:
            return {}
        d_hidden, d_weight = gradients
        rows = self.rows if self.head.rows is None else self.head.rows[self.rows]
        scored = self.head.scored().detach().double()
        expected_rows = self.d_rows * coefficients[self.rows, None]
        expected_entries = (self.d_entries * coefficients[:, None]).T @ scored
        return {
            "d_hidden": _relative(d_hidden[rows], expected_rows),
            "d_weight": _relative(d_weight[self.entries], expected_entries),
        }


def checker(truth: HeadTruth, gives: str, coefficients: Tensor) -> Check:
    """Return what compares a candidate of operation b or c, by what it gives."""
    if gives == "pairs":
        return truth.check_pairs
    if gives == "sum":
        coefficients = torch.full_like(coefficients, -1)
    return lambda output, gradients: truth.check_logps(coefficients, output, gradients)


def _errors_of_logps(logps: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest error of a token in nats; of a negated sum, its error per token."""
    if logps.dim() == 0:
        return {"sum": float((logps.double() + expected.sum()).abs()) / len(expected)}
    return {"logps": float((logps.double() - expected).abs().max())}


def _relative(value: Tensor, expected: Tensor) -> float:
    """|value - expected| / |expected|, both Euclidean."""
    return float((value.double() - expected).norm() / expected.norm())


def _some(total: int, wanted: int, device: torch.device) -> Tensor:
    """Return indices below ``total``, evenly spaced, at most ``wanted``."""
    return torch.arange(0, total, max(1, total // wanted), device=device)[:wanted]


def _in_chunks(rows: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(rows.split(_ROWS_AT_A_TIME), targets.split(_ROWS_AT_A_TIME), strict=True))
