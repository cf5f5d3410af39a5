"""Microbatches by tokens: what they hold, equal numbers on all ranks, and the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.ranks import on_two_ranks
from fixtures.runs import tiny_trainer

from spin_composer.data.microbatches import PairSize, TokenBudget
from spin_composer.data.pairs import (
    Pair,
    PairBatch,
    collate_pairs,
    pair_sizes,
    real_mask,
    split_pairs,
)
from spin_composer.errors import InputError
from spin_composer.pair_kinds import PairKind

SIZES = [PairSize(5, 9, 7), PairSize(1, 1, 1), PairSize(12, 1, 10), PairSize(3, 14, 1)] * 3


def pairs_of(sizes: list[PairSize]) -> list[Pair]:
    draw = np.random.default_rng(0)
    return [
        Pair(
            *(draw.integers(3, 90, size=n, dtype=np.int32) for n in size),
            -i,
            -2 * i,
            index=i,
            kind=PairKind(i % 3),
        )
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("layout", "cost"), [("shared", 21 + 3), ("packed", 26 + 4), ("padded", 4 * 14)]
)
def test_the_cost_is_the_positions_that_the_model_computes(layout: Any, cost: int) -> None:
    assert TokenBudget(1, layout).cost(SIZES[:2]) == cost


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("tokens", [1, 30, 60, 10**6])
def test_each_pair_is_in_one_microbatch_within_the_budget(layout: Any, tokens: int) -> None:
    budget = TokenBudget(tokens, layout)
    groups = budget.deal(SIZES)
    assert sorted(pair for group in groups for pair in group) == list(range(len(SIZES)))
    for group in groups:
        assert len(group) == 1 or budget.cost([SIZES[i] for i in group]) <= tokens
    if tokens == 10**6:
        assert len(groups) == 1
    assert len(budget.deal(SIZES, share=0.5)) >= len(groups)


@pytest.mark.parametrize("count", [1, 3, 5, 12, 99])
def test_more_microbatches_are_made_by_halving_and_never_an_empty_one(count: int) -> None:
    budget = TokenBudget(60, "shared")
    groups = budget.deal(SIZES)
    before = len(groups)
    budget.split(groups, SIZES, count)
    assert len(groups) == max(before, min(count, len(SIZES)))
    assert all(groups)
    assert sorted(pair for group in groups for pair in group) == list(range(len(SIZES)))


def test_microbatches_are_the_pairs_that_were_dealt() -> None:
    pairs = pairs_of(SIZES)
    batch = collate_pairs(pairs, TokenBudget(40, "shared"))
    assert pair_sizes(batch) == SIZES
    parts = split_pairs(batch, len(pairs))
    assert 2 < len(parts) < len(pairs)
    for part in parts:
        same = collate_pairs([pairs[i] for i in part["indices"]])
        torch.testing.assert_close(part, same, rtol=0, atol=0)
        assert [part[name].dtype for name in ("cu_seqlens", "cu_scored")] == [torch.int32] * 2


def test_every_microbatch_knows_which_pairs_have_a_real_response() -> None:
    batch = collate_pairs(pairs_of(SIZES))
    real = real_mask(batch)
    assert real is not None
    assert real.tolist() == [i % 3 != 2 for i in range(len(SIZES))]
    for part in split_pairs(batch, 2):
        assert part["kinds"] == [PairKind(i % 3) for i in part["indices"]]
        mask = real_mask(part)
        found = [True] * len(part["indices"]) if mask is None else mask.tolist()
        assert found == [i % 3 != 2 for i in part["indices"]]


def losses_of(trainer: Any) -> list[float]:
    return [float(value) for _, value in trainer.logger.destinations[0].data["loss/train/total"]]


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_training_is_that_of_a_whole_batch(layout: str, tmp_path: Path) -> None:
    found = []
    for tokens in (None, 30):
        spin = {"layout": layout, "device_train_microbatch_tokens": tokens}
        trainer = tiny_trainer(
            tmp_path / str(tokens), spin=spin, max_duration="1iter", device_train_microbatch_size=4
        )
        trainer.fit()
        found.append(losses_of(trainer))
        trainer.close()
    assert len(found[0]) == 12
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert len(set(found[0])) > 6


def test_tokens_and_a_number_of_pairs_are_refused_together(tmp_path: Path) -> None:
    spin = {"device_train_microbatch_tokens": 64}
    with pytest.raises(InputError) as caught:
        tiny_trainer(tmp_path, spin=spin, device_train_microbatch_size=2).fit()
    assert str(caught.value) == (
        "algorithms.spin.device_train_microbatch_tokens=64 and device_train_microbatch_size=2 both "
        "say what a microbatch is. Set the latter to the device's whole batch (4), or to auto on a "
        "GPU."
    )
    assert not (tmp_path / "self-play").exists()


def split_on_rank(rank: int) -> tuple[int, list[int]]:
    """Return what the budget alone deals on a rank, and the pairs of the microbatches made."""
    sizes = [PairSize(20, 9, 9), PairSize(2, 1, 1)][rank : rank + 1] * 4
    budget = TokenBudget(40, "shared")
    parts = split_pairs(collate_pairs(pairs_of(sizes), budget), len(sizes))
    return len(budget.deal(sizes)), [len(part["indices"]) for part in parts]


def test_a_rank_that_needs_fewer_makes_as_many_as_the_other() -> None:
    found = on_two_ranks(split_on_rank)
    assert found == {0: (4, [1, 1, 1, 1]), 1: (1, [1, 1, 1, 1])}


def train_on_rank(rank: int, folder: str) -> tuple[list[int], list[float]]:
    """Train under FSDP2, and count forwards; each of them is a collective."""
    made: list[int] = []

    def counting(batch: PairBatch, size: float) -> list[PairBatch]:
        parts = split_pairs(batch, size)
        made.append(len(parts))
        return parts

    trainer = tiny_trainer(
        Path(folder) / f"rank-{rank}",
        spin={
            "store": f"{folder}/self-play",
            "iteration_length": "1ep",
            "device_train_microbatch_tokens": 30,
        },
        max_duration="1iter",
        device_train_microbatch_size=4,
        parallelism_config={"fsdp2": {}},
    )
    trainer._train_data_spec.split_batch = counting
    trainer.fit()
    losses = losses_of(trainer)
    trainer.close()
    return made, losses


def test_ranks_train_together_in_microbatches_of_tokens(tmp_path: Path) -> None:
    found = on_two_ranks(train_on_rank, folder=str(tmp_path))
    assert found[0] == found[1], found
    made, losses = found[0]
    assert len(made) == len(losses) == 3
    assert max(made) > 1
    assert all(np.isfinite(losses))
