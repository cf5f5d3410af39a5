"""Inputs of the benchmarks: hidden states and a weight whose logits look like a language model's.

Uniform random logits flatter kernels that skip small probabilities, and zeros run faster than data.
So the logits here are peaked, and the targets are drawn from the softmax itself:

    hidden[n] = sum_k a[n, k] weight[c[n, k]] + noise

- The K likely tokens c[n, k] of a row are drawn log-uniformly over the vocabulary (Zipf's law, the
  frequent tokens first, as tokenizers number them), and weight's rows have length about 1: a[n, k]
  is the token's logit.
- All other logits are normal with variance ``_SPREAD``, so they sum to exp(log V + _SPREAD / 2).
  The best token's logit stands above that by a margin drawn per row, the next ones follow in
  random steps: some rows are certain, some are wide open.
- Targets are samples of softmax(hidden @ weight.T), made in chunks of rows.

That gives, for any V and D of 256 and more: best logits of 10 to 25, log-probabilities of the
targets with a median of -0.5 to -1, a mean of -1.5 to -2.5 and a tail beyond -10, and an entropy of
about 2 nats on average (tests/kernels/test_benchmarks.py).

Dimensions: N scored tokens, D model width, V vocabulary, K likely tokens of a row, B pairs,
T tokens of a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100

_LIKELY = 4
_SPREAD = 3.0
_MARGIN_MEAN, _MARGIN_STD = 2.2, 1.9
_STEP_MEAN = 0.9
_ROWS_AT_A_TIME = 1024


@dataclass
class Head:
    """The LM head's inputs of one case, as the operations take them.

    Attributes:
        hidden: [N, D], or [2 B T, D] with prompts where ``rows`` is given; requires a gradient.
        weight: [V, D]; requires a gradient.
        targets: [N] int64 of the scored rows, all of them in the vocabulary.
        cu_seqlens: [2 B + 1] int64 on the CPU, over real_0, generated_0, real_1, ...
        rows: [N] the scored rows of ``hidden`` in the order of ``cu_seqlens``; None for all.
        padded_targets: [2 B, T] with -100 on the prompts, all real sequences before all generated
            ones (the order of ``hidden`` then); only with ``rows``.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    rows: Tensor | None = None
    padded_targets: Tensor | None = None

    @property
    def num_pairs(self) -> int:
        """B."""
        return (len(self.cu_seqlens) - 1) // 2

    def scored(self) -> Tensor:
        """Return the scored rows of ``hidden``: [N, D]."""
        return self.hidden if self.rows is None else self.hidden.index_select(0, self.rows)


def make_head(
    num_rows: int,
    width: int,
    vocab: int,
    num_pairs: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Head:
    """Return a head of ``num_rows`` scored rows, in ``2 * num_pairs`` sequences of equal length."""
    if num_rows % (2 * num_pairs):
        raise ValueError(f"{num_rows} rows do not make {num_pairs} pairs of equal sequences.")
    rng = torch.Generator(device).manual_seed(seed)
    hidden, weight = _peaked(num_rows, width, vocab, dtype, rng)
    targets = _sampled(hidden, weight, rng)
    cu_seqlens = torch.arange(2 * num_pairs + 1) * (num_rows // (2 * num_pairs))
    return Head(hidden.requires_grad_(), weight.requires_grad_(), targets, cu_seqlens)


def make_padded_head(
    num_pairs: int,
    length: int,
    response: float,
    width: int,
    vocab: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Head:
    """Return pairs of whole sequences of ``length`` tokens, of which the last part is scored.

    Args:
        num_pairs: B.
        length: T, of every sequence.
        response: the share of a sequence that is scored, in (0, 1].
        width: D.
        vocab: V.
        device: of all tensors but ``cu_seqlens``.
        dtype: of ``hidden`` and ``weight``.
        seed: of everything drawn.
    """
    scored = round(length * response)
    rng = torch.Generator(device).manual_seed(seed)
    hidden, weight = _peaked(2 * num_pairs * length, width, vocab, dtype, rng)
    at = torch.arange(2 * num_pairs * length, device=device).view(2, num_pairs, length)
    # [2, B, scored] -> [B, 2, scored]: real_0, generated_0, real_1, ...
    rows = at[:, :, length - scored :].transpose(0, 1).reshape(-1)
    targets = _sampled(hidden[rows], weight, rng)
    padded = torch.full((2 * num_pairs * length,), IGNORED, device=device)
    padded[rows] = targets
    return Head(
        hidden.requires_grad_(),
        weight.requires_grad_(),
        targets,
        torch.arange(2 * num_pairs + 1) * scored,
        rows,
        padded.view(2 * num_pairs, length),
    )


def _peaked(
    num_rows: int, width: int, vocab: int, dtype: torch.dtype, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return hidden [N, D] and weight [V, D] as the module's docstring says."""
    device = rng.device
    weight = torch.randn(vocab, width, generator=rng, device=device, dtype=dtype)
    weight /= math.sqrt(width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, device=device)

    # One likely token of each band of frequency, in any order: they differ from each other.
    bands = torch.rand(num_rows, _LIKELY, generator=rng, device=device).argsort(1)
    within = torch.rand(num_rows, _LIKELY, generator=rng, device=device)
    likely = (vocab ** ((bands + within) / _LIKELY) - 1).long().clamp_(0, vocab - 1)
    steps = torch.empty(num_rows, _LIKELY, device=device).exponential_(
        1 / _STEP_MEAN, generator=rng
    )
    steps[:, 0] = 0
    best = math.log(vocab) + _SPREAD / 2 + _MARGIN_MEAN + _MARGIN_STD * normal(num_rows)
    logits = best[:, None] - steps.cumsum(1)  # [N, K]
    hidden = torch.empty(num_rows, width, device=device, dtype=dtype)
    for rows in torch.arange(num_rows, device=device).split(_ROWS_AT_A_TIME):
        # The likely tokens' own part makes the other logits vary too: noise adds what is missing.
        x = (logits[rows, :, None] * weight[likely[rows]].float()).sum(1)
        missing = (_SPREAD - logits[rows].square().sum(1) / width).clamp_min(0)
        hidden[rows] = (x + missing.sqrt()[:, None] * normal(len(rows), width)).to(dtype)
    return hidden, weight


def _sampled(hidden: Tensor, weight: Tensor, rng: torch.Generator) -> Tensor:
    """Return one sample of each row's softmax: [N] int64."""
    found = [
        torch.multinomial((rows @ weight.T).float().softmax(1), 1, generator=rng)[:, 0]
        for rows in hidden.split(_ROWS_AT_A_TIME)
    ]
    return torch.cat(found)
