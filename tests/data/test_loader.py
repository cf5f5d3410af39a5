"""The loader that a YAML's ``train_loader: {name: spin}`` builds."""

from __future__ import annotations

import logging

import pytest
from composer.core import DataSpec
from omegaconf import OmegaConf
from torch.utils.data.distributed import DistributedSampler

from spin_composer.data import tokenization
from spin_composer.data.loader import build_spin_dataloader, examples_of
from spin_composer.data.pairs import Pair, collate_pairs
from spin_composer.errors import EnvironmentFailure, InputError
from tests.data.rows import PLAIN
from tests.data.test_parallel import mixed

# The train_loader of llm-foundry's own finetuning YAMLs, every key of it.
SFT_LOADER = {
    "num_workers": 8, "drop_last": False, "pin_memory": False, "prefetch_factor": 2,
    "persistent_workers": True, "timeout": 0,
}  # fmt: skip
SFT_DATASET = {
    "split": "train", "max_seq_len": 512, "allow_pad_trimming": False,
    "decoder_only_format": True, "shuffle": True, "shuffle_seed": 17, "packing_ratio": None,
    "target_prompts": "none", "target_responses": "last", "pad_to_longest": False,
    "num_canonical_nodes": 8, "preprocessing_fn": None, "safe_load": False, "hf_kwargs": {},
}  # fmt: skip


def build(tokenizer, path, **more):
    dataset = {"hf_name": str(path), "max_seq_len": 512}
    return build_spin_dataloader(tokenizer, 2, dataset, pin_memory=False, **more)


def test_a_working_sft_block_is_accepted_as_it_is(jsonl, gpt2, caplog):
    caplog.set_level(logging.INFO)
    path = jsonl(PLAIN)
    block = OmegaConf.create({**SFT_LOADER, "dataset": {**SFT_DATASET, "hf_name": str(path)}})
    spec = build_spin_dataloader(tokenizer=gpt2, device_batch_size=2, **block)
    same = examples_of(build(gpt2, path)).fingerprint
    assert isinstance(spec, DataSpec)
    assert examples_of(spec).fingerprint == same
    assert "allow_pad_trimming" in caplog.text
    assert "no effect" in caplog.text


def test_batches_of_sft_rows_are_never_made(jsonl, gpt2):
    with pytest.raises(RuntimeError, match="add `algorithms: spin:"):
        next(iter(build(gpt2, jsonl(PLAIN)).dataloader))


def test_spec_splits_and_counts_pair_batches(jsonl, gpt2):
    spec = build(gpt2, jsonl(PLAIN))
    example = examples_of(spec)[0]
    pair = Pair(example.prompt, example.response, example.response)
    batch = collate_pairs([pair, pair, pair])
    assert spec.get_num_samples_in_batch(batch) == 3
    assert [spec.get_num_samples_in_batch(part) for part in spec.split_batch(batch, 2)] == [2, 1]
    assert spec.get_num_tokens_in_batch(batch, token_type="loss_generating") == 3


def test_composer_is_given_what_it_asks_for(jsonl, gpt2):
    loader = build(gpt2, jsonl(PLAIN), drop_last=True).dataloader
    assert isinstance(loader.sampler, DistributedSampler)
    assert not hasattr(loader.dataset, "load_state_dict")
    assert len(loader) == 2


def test_unknown_and_impossible_settings_say_so(jsonl, gpt2):
    path = jsonl(PLAIN)
    with pytest.raises(InputError, match=r"num_worker is not a setting\. Did you mean"):
        build(gpt2, path, num_worker=3)
    with pytest.raises(InputError, match="tokenizer=None"):
        build(None, path)
    with pytest.raises(InputError, match=r"device_batch_size=0\.5"):
        build_spin_dataloader(gpt2, 0.5, {"hf_name": str(path), "max_seq_len": 512})
    with pytest.raises(InputError, match=r"train_loader\.dataset must be a mapping .*, got None"):
        build_spin_dataloader(gpt2, 1)
    with pytest.raises(InputError, match=r"Set train_loader\.name: spin"):
        examples_of([1, 2])


def test_a_failure_of_held_out_rows_names_their_loader(jsonl, gpt2, monkeypatch):
    monkeypatch.setattr(tokenization, "_ALONE_ROWS", 2)
    dataset = {
        "hf_name": str(jsonl(mixed(PLAIN))), "max_seq_len": 512, "num_proc": 2,
        "preprocessing_fn": "tests.data.test_parallel:kill_a_copy",
    }  # fmt: skip
    for evaluation, name in ((True, "eval_loader"), (False, "train_loader")):
        with pytest.raises(EnvironmentFailure, match=rf"Set {name}\.dataset\.num_proc"):
            build_spin_dataloader(gpt2, 2, dataset, evaluation=evaluation)
