"""Pairs and pair batches, which the collator creates on the CPU and the model scores.

Dimensions: B pairs, S = 2B sequences (real_0, generated_0, real_1, ...), N scored positions. In a
pair of the kind ``BETWEEN`` a generated response, the better one, is in the place of the real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import NotRequired

from spin_composer.data.microbatches import PairSize, TokenBudget, largest_of_ranks
from spin_composer.pair_kinds import REAL_KINDS, PairKind

Ids = NDArray[np.int32]
"""Token ids of a prompt or a response."""

STOP, LENGTH, STRING = 0, 1, 2
"""Finish reasons of a response: the stop token, max_new_tokens, a stop string. Only with the first
does the response end with the stop token."""
FINISH_NAMES = {STOP: "stop", LENGTH: "length", STRING: "stop string"}


class SequenceBatch(TypedDict):
    """Sequences one after another, and the tokens of them that are scored."""

    input_ids: Tensor
    """int64 [total]: all sequences (prompt + response), one after another."""
    scored_rows: Tensor
    """int64 [N]: rows of ``input_ids`` that predict a response token; the first of a sequence is
    its last prompt position."""
    targets: Tensor
    """int64 [N]: the response token predicted there."""
    seqlen_bounds: list[int]
    """[S + 1]: cumulative lengths of the sequences, on the host."""


class PairBatch(SequenceBatch):
    """The tensors of B pairs, and four lists that stay on the host.

    The host plans padding, chunks and microbatches from the lists, without a synchronization with
    the GPU.
    """

    cu_seqlens: Tensor
    """int32 [S + 1]: cumulative lengths of the sequences."""
    cu_scored: Tensor
    """int32 [S + 1]: cumulative numbers of scored rows."""
    opponent_logps: Tensor
    """float32 [B, 2]: the opponent's log-prob sums (real, generated), in nats."""
    scored_bounds: list[int]
    """[S + 1]: ``cu_scored`` as a list."""
    indices: list[int]
    """[B]: the index of each pair's row in the data set, -1 if unknown."""
    kinds: list[int]
    """[B]: the kind of each pair, a number of ``PairKind``."""
    budget: NotRequired[TokenBudget]
    """What a microbatch may hold; where it is absent, Composer's number of pairs counts."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt with its real and its generated response, int32 token ids [P], [R], [G].

    In a pair of the kind ``BETWEEN`` the better response, generated too, is in ``real``'s place.
    """

    prompt: Ids
    real: Ids
    generated: Ids
    opponent_real: float = 0.0
    """The opponent's log-prob sum of the real response, in nats."""
    opponent_generated: float = 0.0
    """The opponent's log-prob sum of the generated response, in nats."""
    index: int = -1
    """Index of its row in the data set; -1 if unknown."""
    finish: int = STOP
    """Why the generated response ended."""
    kind: PairKind = PairKind.NEWEST
    finish_better: int = STOP
    """Why the better response ended, if it was generated too."""


def collate_pairs(pairs: Sequence[Pair], budget: TokenBudget | None = None) -> PairBatch:
    """Return the pair batch of ``pairs`` (at least one; no empty prompt or response).

    Args:
        pairs: The pairs.
        budget: What a microbatch of the batch may hold.
    """
    ids, lengths, rows, targets, scored, start = [], [0], [], [], [0], 0
    for pair in pairs:
        for response in (pair.real, pair.generated):
            num_prompt, num_response = len(pair.prompt), len(response)
            if num_prompt == 0 or num_response == 0:
                raise ValueError(
                    f"a pair needs a prompt and two responses of at least one token, got "
                    f"{num_prompt} prompt and {num_response} response tokens."
                )
            ids += [pair.prompt, response]
            first = start + num_prompt - 1  # the last prompt position predicts the first token
            rows.append(np.arange(first, first + num_response))
            targets.append(response)
            start += num_prompt + num_response
            lengths.append(num_prompt + num_response)
            scored.append(num_response)
    sums = [(pair.opponent_real, pair.opponent_generated) for pair in pairs]
    seqlen_bounds = np.cumsum(lengths).tolist()
    scored_bounds = np.cumsum(scored).tolist()
    batch: PairBatch = {
        "input_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        "cu_seqlens": torch.tensor(seqlen_bounds, dtype=torch.int32),
        "scored_rows": torch.from_numpy(np.concatenate(rows).astype(np.int64)),
        "targets": torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        "cu_scored": torch.tensor(scored_bounds, dtype=torch.int32),
        "opponent_logps": torch.tensor(sums, dtype=torch.float32),
        "seqlen_bounds": seqlen_bounds,
        "scored_bounds": scored_bounds,
        "indices": [pair.index for pair in pairs],
        "kinds": [int(pair.kind) for pair in pairs],
    }
    if budget is not None:
        batch["budget"] = budget
    return batch


def is_pair_batch(batch: object) -> TypeGuard[PairBatch]:
    """Return whether a batch is a pair batch, not an SFT batch of an evaluation loader."""
    return isinstance(batch, Mapping) and "cu_scored" in batch


def pair_sizes(batch: PairBatch) -> list[PairSize]:
    """Return the tokens of each pair's parts."""
    bounds, scored = batch["seqlen_bounds"], batch["scored_bounds"]
    sizes = []
    for side in range(0, len(bounds) - 1, 2):
        real, generated = scored[side + 1] - scored[side], scored[side + 2] - scored[side + 1]
        sizes.append(PairSize(bounds[side + 1] - bounds[side] - real, real, generated))
    return sizes


def split_pairs(batch: PairBatch, microbatch_size: int | float) -> list[PairBatch]:
    """Split a pair batch into microbatches.

    Where the batch has a budget of tokens they are made by it, the same number on every rank (a
    collective), and ``microbatch_size`` says which share of the budget is used.

    Args:
        batch: The pairs of this rank.
        microbatch_size: Composer's number of pairs of a microbatch, at most.

    Raises:
        ValueError: If ``microbatch_size`` is not a positive whole number.
    """
    size = int(microbatch_size)
    if size != microbatch_size or size < 1:
        raise ValueError(
            f"device_train_microbatch_size must be a positive whole number of pairs, got "
            f"{microbatch_size}."
        )
    count, budget = num_pairs(batch), batch.get("budget")
    if budget is None:
        return [_slice(batch, b, min(b + size, count)) for b in range(0, count, size)]
    sizes = pair_sizes(batch)
    groups = budget.deal(sizes, min(1.0, size / count))
    wanted = largest_of_ranks(len(groups), batch["input_ids"].device)
    budget.split(groups, sizes, wanted)
    return [_select(batch, group) for group in groups]


def _slice(batch: PairBatch, first: int, last: int) -> PairBatch:
    """Return the pair batch of the pairs ``first`` to ``last`` (exclusive), without copying them.

    A callback that changes the batch when its training begins, after it was split, changes these.
    """
    sides = slice(2 * first, 2 * last + 1)
    seqlen_bounds, scored_bounds = batch["seqlen_bounds"][sides], batch["scored_bounds"][sides]
    tokens = slice(seqlen_bounds[0], seqlen_bounds[-1])
    rows = slice(scored_bounds[0], scored_bounds[-1])
    return {
        "input_ids": batch["input_ids"][tokens],
        "cu_seqlens": batch["cu_seqlens"][sides] - tokens.start,
        "scored_rows": batch["scored_rows"][rows] - tokens.start,
        "targets": batch["targets"][rows],
        "cu_scored": batch["cu_scored"][sides] - rows.start,
        "opponent_logps": batch["opponent_logps"][first:last],
        "seqlen_bounds": [bound - tokens.start for bound in seqlen_bounds],
        "scored_bounds": [bound - rows.start for bound in scored_bounds],
        "indices": batch["indices"][first:last],
        "kinds": batch["kinds"][first:last],
    }


def _select(batch: PairBatch, pairs: Sequence[int]) -> PairBatch:
    """Return the pair batch of some pairs, in their order; it has no budget."""
    bounds, scored = batch["seqlen_bounds"], batch["scored_bounds"]
    ids, rows, targets, sides = [], [], [], [0]
    scored_sides, start = [0], 0
    for pair in pairs:
        first, middle, last = bounds[2 * pair : 2 * pair + 3]
        own = slice(scored[2 * pair], scored[2 * pair + 2])
        ids.append(batch["input_ids"][first:last])
        rows.append(batch["scored_rows"][own] + (start - first))
        targets.append(batch["targets"][own])
        sides += [start + middle - first, start + last - first]
        so_far = scored_sides[-1] - own.start
        scored_sides += [scored[2 * pair + 1] + so_far, own.stop + so_far]
        start = sides[-1]
    device = batch["input_ids"].device
    chosen = torch.tensor(list(pairs), device=batch["opponent_logps"].device)
    return {
        "input_ids": torch.cat(ids),
        "cu_seqlens": torch.tensor(sides, dtype=torch.int32, device=device),
        "scored_rows": torch.cat(rows),
        "targets": torch.cat(targets),
        "cu_scored": torch.tensor(scored_sides, dtype=torch.int32, device=device),
        "opponent_logps": batch["opponent_logps"][chosen],
        "seqlen_bounds": sides,
        "scored_bounds": scored_sides,
        "indices": [batch["indices"][pair] for pair in pairs],
        "kinds": [batch["kinds"][pair] for pair in pairs],
    }


def real_mask(batch: PairBatch) -> Tensor | None:
    """Return which pairs' better response is real, bool [B]; None if it is in all of them."""
    real = [kind in REAL_KINDS for kind in batch["kinds"]]
    return None if all(real) else torch.tensor(real, device=batch["opponent_logps"].device)


def num_pairs(batch: PairBatch) -> int:
    """Return the number of pairs B of a batch: what ``global_train_batch_size`` counts."""
    return len(batch["opponent_logps"])


def num_tokens(batch: PairBatch) -> dict[str, int]:
    """Return Composer's token counts of a batch.

    ``loss_generating`` is the number of pairs, so that llm-foundry's default weighting of
    microbatches by tokens (``accumulate_train_batch_on_tokens``) weights every pair alike.
    """
    return {"total": int(batch["input_ids"].numel()), "loss_generating": num_pairs(batch)}
