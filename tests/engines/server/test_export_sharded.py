"""A policy that FSDP has sharded is exported whole.

Without the models of fixtures: each rank would import llm-foundry for them.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from fixtures import tokenizers
from fixtures.ranks import on_two_ranks
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from spin_composer.engines.server.export import export_opponent
from spin_composer.export.state import plain_state

IDS = torch.tensor([[5, 9, 33, 7, 120, 4]])
TINY = {
    "vocab_size": 131,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "attn_implementation": "eager",
}


def logps(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.double().log_softmax(-1)


def on_rank(rank: int, folder: str) -> dict[Any, Any]:
    found = {}
    for kind, tied in itertools.product(("fsdp1", "fsdp2"), (False, True)):
        target = Path(folder) / f"{kind}-{tied}"
        found[kind, tied] = exported_when_sharded(rank, kind, tied, target)
    return found


def exported_when_sharded(rank: int, kind: str, tied: bool, target: Path) -> tuple[bool, str, Any]:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=tied))
    wanted, plain = logps(model), target.with_name("plain")
    if rank == 0:
        export_opponent(model, tokenizers.chatml(), 2, "one", None, plain)
    model.train()
    if kind == "fsdp1":
        model = FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    model(input_ids=IDS).logits.sum().backward()  # past FSDP's lazy start, as in training
    state = plain_state(model, keep=rank == 0)
    if rank == 0:  # alone: a collective in here would never return
        export_opponent(model, tokenizers.chatml(), 2, "one", None, target, state)
        names = sorted(path.name for path in plain.iterdir())
        assert sorted(path.name for path in target.iterdir()) == names
        for name in names:
            assert (target / name).read_bytes() == (plain / name).read_bytes(), name
        shutil.rmtree(plain)
    else:
        assert state == {}
    dist.barrier()
    loaded = AutoModelForCausalLM.from_pretrained(target, attn_implementation="eager")
    model(input_ids=IDS).logits.sum().backward()  # and training goes on
    written = json.loads((target / "config.json").read_text())["architectures"]
    return torch.equal(logps(loaded), wanted), type(loaded).__name__, written


def test_a_sharded_policy_is_exported_whole(tmp_path: Path) -> None:
    whole = (True, "LlamaForCausalLM", ["LlamaForCausalLM"])
    wanted = dict.fromkeys(itertools.product(("fsdp1", "fsdp2"), (False, True)), whole)
    assert on_two_ranks(on_rank, folder=str(tmp_path)) == {0: wanted, 1: wanted}
