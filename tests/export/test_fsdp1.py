"""A policy under FSDP1 is exported whole, by the callback itself: plain, tied, adapted, merged.

Composer's Trainer asks for CUDA under FSDP1, so the model is wrapped here as the Trainer wraps it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import State
from composer.devices import DeviceCPU
from composer.loggers import Logger
from fixtures import models, tokenizers
from fixtures.ranks import on_ranks
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import CustomPolicy
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer import HFSpinLM, HuggingFaceExporter

IDS = torch.tensor([[5, 9, 33, 7, 120, 4]])
VOCAB = len(tokenizers.byte_level())
CASES = {
    "plain": ("llama", None, False),
    "tied": ("llama_tied", None, False),
    "adapters": ("llama", [], False),
    "adapters and whole layers": ("llama", ["lm_head", "gate_proj"], False),
    "adapters merged": ("llama", [], True),
    "adapters and whole layers merged": ("llama", ["lm_head", "gate_proj"], True),
}
"""The model's family, PEFT's modules_to_save if it has adapters, and whether these are merged."""


def make_model(case: str) -> Any:
    torch.manual_seed(0)
    family, saved, _ = CASES[case]
    model = models.tiny_model(family, vocab_size=VOCAB)
    if saved is None:
        return model
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def train_step(model: Any) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    model(input_ids=IDS).logits.log_softmax(-1)[..., 7].mean().backward()
    torch.optim.SGD(trained, lr=1.0).step()
    model.zero_grad()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def export(folder: str, rank: int) -> dict[str, torch.Tensor]:
    """Shard, train and export each case; return the logits that training left it with."""
    del rank
    found = {}
    for case, (_, _, merges) in CASES.items():
        model = HFSpinLM.from_model(make_model(case), tokenizers.byte_level())
        inner: Any = model.model
        model.model = FullyShardedDataParallel(  # pyright: ignore[reportAttributeAccessIssue]
            inner,
            auto_wrap_policy=CustomPolicy(inner.fsdp_wrap_fn),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )
        train_step(model.model)
        state = State(
            model=model, rank_zero_seed=0, run_name="tiny", device=DeviceCPU(), max_duration="1iter"
        )
        exporter = HuggingFaceExporter(f"{folder}/{case}", merge_adapters=merges)
        logger = Logger(state)
        exporter.init(state, logger)
        state.previous_timestamp = state.timestamp
        state.timestamp = state.timestamp.to_next_batch().to_next_epoch().to_next_iteration()
        exporter.iteration_checkpoint(state, logger)
        found[case] = logits(model.model)
        train_step(model.model.train())  # and training goes on
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    folder = tmp_path_factory.mktemp("fsdp1")
    found = on_ranks(partial(export, str(folder)), timeout_seconds=60, one_node=True)
    assert all(isinstance(outcome, dict) for outcome in found.values()), found
    return folder, found


@pytest.mark.parametrize("case", CASES)
def test_the_folder_holds_what_was_trained(case: str, exported: Any, tmp_path: Path) -> None:
    folder, found = exported
    assert torch.equal(found[0][case], found[1][case])
    family, saved, merges = CASES[case]
    here = folder / case / "iter0"
    assert (here / "adapter_config.json").exists() == (saved is not None and not merges)
    if saved is not None and not merges:
        torch.manual_seed(0)
        base = models.tiny_model(family, vocab_size=VOCAB)
        loaded = PeftModel.from_pretrained(base, str(here))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(here, attn_implementation="eager")
    alone = make_model(case)
    before = logits(alone)
    train_step(alone.train())
    assert (logits(alone) - before).abs().max() > 1e-3
    assert (logits(alone) - found[0][case]).abs().max() < 1e-5  # trained as one process trains it
    assert (logits(loaded) - found[0][case]).abs().max() < 1e-5
    AutoTokenizer.from_pretrained(here)
