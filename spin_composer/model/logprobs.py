"""Response log-probs, or the loss, of a pair batch by one forward pass of the model.

Dimensions: B pairs, S = 2B sequences, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spin_composer.data.held_out import HeldOutBatch, without_padding
from spin_composer.data.pairs import PairBatch
from spin_composer.metrics import TokenScores
from spin_composer.model.head import PairRequest, find_head, scoring
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.packed import PACKED
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.unwrap import inner_model
from spin_kernels import PairLossOutput, log_softmax_gather


def response_logps(model: nn.Module, batch: PairBatch, layout: Layout = PADDED) -> Tensor:
    """Return the policy's log-prob of each scored token of a pair batch, by one forward pass.

    Only the scored rows reach the output layer, and no [N, V] matrix of logits is stored.

    Args:
        model: a model that went through :func:`~spin_composer.model.head.install_head`, inside FSDP
            or not.
        batch: a pair batch (spin_composer.data.pairs) on the model's device.
        layout: how the batch is laid out for the forward.

    Returns:
        token_logps [N], fp32 (fp64 for an fp64 model), with gradient.
    """
    return _answer(model, batch, None, layout).reshape(-1)


@torch.no_grad()
def held_out_scores(model: nn.Module, batch: HeldOutBatch) -> TokenScores:
    """Return the scores of a batch of held-out rows, by one forward pass without padding.

    Args:
        model: a model that went through :func:`~spin_composer.model.head.install_head`, inside FSDP
            or not, and supports the layout ``packed``.
        batch: rows on the model's device.
    """
    rows = without_padding(batch)
    inputs = PACKED.arrange(rows)
    head = find_head(model)
    with scoring(head, inputs.rows, rows["targets"], inputs.num_positions, predictions=True):
        found = model(**inputs.kwargs, use_cache=False, return_dict=True).logits[0]
    return TokenScores(found[:, 0], found[:, 1] > 0)


def response_pair_loss(
    model: nn.Module,
    batch: PairBatch,
    pair_loss: Callable[[Tensor, Tensor], Tensor],
    layout: Layout = PADDED,
) -> PairLossOutput:
    """Return the mean pair loss of a batch, its gradient computed in the output layer's forward.

    One forward pass of the model, three matrix products of the output layer, no [N, V] logits.

    Args:
        model: a model that went through :func:`~spin_composer.model.head.install_head`, inside FSDP
            or not.
        batch: a pair batch (spin_composer.data.pairs) on the model's device.
        pair_loss: (real sums [B], generated sums [B]) -> losses [B], the opponent's sums bound in.
        layout: how the batch is laid out for the forward.

    Returns:
        The mean loss for ``backward``, and detached pair losses and log-prob sums, each [B].
    """
    bounds = torch.tensor(batch["scored_bounds"])
    num_pairs = len(bounds) // 2
    device = batch["targets"].device
    pairs = PairRequest(bounds, pair_loss, torch.full((num_pairs,), 1 / num_pairs, device=device))
    loss = _answer(model, batch, pairs, layout).reshape(())
    assert pairs.answer is not None  # the head answered, or _answer raised
    return pairs.answer._replace(loss=loss)


def _answer(
    model: nn.Module, batch: PairBatch, pairs: PairRequest | None, layout: Layout
) -> Tensor:
    """Return the head's result by one forward pass of the outermost module."""
    inputs = layout.arrange(batch)
    with scoring(find_head(model), inputs.rows, batch["targets"], inputs.num_positions, pairs):
        return model(**inputs.kwargs, use_cache=False, return_dict=True).logits


def sequence_sums(token_logps: Tensor, cu_scored: Tensor) -> Tensor:
    """Return the sum of each sequence's token log-probs.

    They are added in fp64 and without atomics: equal tokens have equal sums in every batch.

    Args:
        token_logps: [N].
        cu_scored: [S + 1] cumulative number of scored tokens per sequence.

    Returns:
        [S] in the dtype of ``token_logps``; 0 for a sequence without scored tokens.
    """
    lengths = cu_scored.long().diff()
    sums = torch.segment_reduce(token_logps.double(), "sum", lengths=lengths, unsafe=True)
    return sums.to(token_logps.dtype)


@torch.no_grad()
def check_head(
    model: nn.Module,
    batch: PairBatch,
    score: Callable[[PairBatch], Tensor] | None = None,
    forward: Callable[[dict[str, Tensor]], Any] | None = None,
) -> None:
    """Compare the head's log-probs with the log-softmax of the model's own logits.

    Args:
        model: a model that went through :func:`spin_composer.model.head.install_head`.
        batch: a small pair batch; its full logits [S, T, V] are made once.
        score: returns token_logps [N] of the batch; :func:`response_logps` on ``model`` unless
            given. Under FSDP both functions must enter through the outermost wrapped module.
        forward: runs the model on ``{"input_ids", "attention_mask"}``; ``model`` itself unless
            given.

    Raises:
        RuntimeError: They differ: the model transforms its logits after the output layer in a way
            that spin_composer does not support.
    """
    padded = PADDED.arrange(batch)
    inputs, rows = padded.kwargs, padded.rows
    logps = score(batch) if score else response_logps(model, batch)
    output = forward(inputs) if forward else model(**inputs, use_cache=False, return_dict=True)
    logits = output.logits.flatten(0, 1)[rows]
    own = log_softmax_gather(logits, batch["targets"])
    difference = float((own - logps).abs().max()) if len(own) else 0.0
    tolerance = _rounding_tolerance(logits)
    if not difference <= tolerance:
        name = type(inner_model(model)).__name__
        raise RuntimeError(
            f"{name}: the head's log-probs differ from the model's own by {difference:.3g} (at "
            f"most {tolerance:.3g} allowed). The model changes its logits after the output layer "
            "in a way that spin_composer does not know, so it cannot be trained with SPIN."
        )


def _rounding_tolerance(logits: Tensor) -> float:
    """Return the rounding error of the model's own log-probs: its logits are rounded, ours not.

    Args:
        logits: [N, V] the model's own.
    """
    device = logits.device.type
    eps = torch.finfo(logits.dtype).eps
    if torch.is_autocast_enabled(device) and logits.dtype != torch.float64:
        eps = max(eps, torch.finfo(torch.get_autocast_dtype(device)).eps)
    finite = logits[logits.isfinite()].float()
    return 1e-4 + 2 * eps * (float(finite.abs().max()) if len(finite) else 0.0)
