"""Two ranks under FSDP2 answer as one process does, and gathering takes what was computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fixtures.ranks import on_two_ranks
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.fsdp import gathered
from spin_composer.settings.generation import GenerationSettings
from tests.fixtures.models import tiny_model

PROMPTS = [np.array(ids, np.int32) for ids in ([5, 3], [4, 7, 1, 9, 8], [6], [3, 3, 10])] * 3
SETTINGS = GenerationSettings(max_new_tokens=20, batch_size=4)


class Wrapped(torch.nn.Module):
    """As a ComposerModel holds its model."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model


def answers(model: Any) -> list[tuple[list[int], int]]:
    hf = HFGenerator(model, None, 2, SETTINGS, torch.device("cpu"))
    return [(r.ids.tolist(), r.finish) for r in hf.generate(PROMPTS, seed=6)]


def play(rank: int, family: str, dtype: torch.dtype) -> bool:
    model = tiny_model(family, vocab_size=11)
    model.config._attn_implementation = "sdpa"
    wanted = answers(tiny_model(family, vocab_size=11).to(dtype))
    policy = MixedPrecisionPolicy(param_dtype=dtype)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model(input_ids=torch.tensor([[3, 4]])).logits.sum().backward()
    model.reshard()
    with gathered(Wrapped(model)):
        got = answers(model) if rank == 0 else None  # no collective in here
    dist.barrier()
    return got == wanted if rank == 0 else True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("qwen2", torch.bfloat16)]
)
def test_a_rank_answers_alone_what_one_process_answers(family: str, dtype: torch.dtype) -> None:
    assert on_two_ranks(play, family=family, dtype=dtype) == {0: True, 1: True}
