"""What a YAML and the machine say is checked before any expensive work, all of it at once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from spin_composer.errors import InputError
from spin_composer.foundry.plugin import transform
from spin_composer.pretrained.load import lora_config
from spin_composer.settings.fields import SECTION
from spin_composer.settings.yaml import check_launch, validate
from spin_composer.train import main
from tests.settings.test_yaml import HEAVY, config

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
SERVER = {"generation": {"engine": "server", "server": {"command": "no-such x {model} {port}"}}}
SHELL = {"command": f"{shlex.quote(sys.executable)} {{model}} {{port}}"}
SHELL = {"generation": {"engine": "server", "server": SHELL}}
ENV = {"generation": {"engine": "server", "server": {"command": "env A=b no-such {model} {port}"}}}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"eval_first": True}, "eval_first=true, and there is nothing to evaluate. Add an eval_loader"),
    ({"global_train_batch_size": 5}, "=5 is not a multiple of the 2 ranks. Set it to 4"),
    ({"device_train_microbatch_size": 0}, "must be a positive number of pairs, or auto, got 0"),
    ({"device_train_microbatch_size": "atuo"}, "or auto, got 'atuo'"),
    ({"max_seq_len": None}, "max_seq_len must be a positive number of tokens, got None"),
    ({"save_interval": "1itre"}, "save_interval must be like 1iter, 1ep, 100ba or 0.5dur"),
    ({"eval_interval": "often"}, "eval_interval must be like"),
    ({"callbacks": {"hf_checkpointer": {"save_interval": "1"}}},
     "callbacks.hf_checkpointer.save_interval must be like"),
    ({"callbacks": {"curriculum_learning": {}}}, "callbacks.curriculum_learning changes the"),
    ({"precision": "bf16"}, "precision='bf16' is not known. Did you mean 'amp_bf16'?"),
    ({"model.init_device": "meta", "fsdp_config": {"sharding_strategy": "FULL_SHARD"}},
     "model.init_device=meta loads no weights, and model.pretrained is true"),
    ({"fsdp_config": {"sharding_strategy": "HYBRID_SHARD"}},
     "sharding_strategy=HYBRID_SHARD does not say how many replicas of the model there are"),
    ({"fsdp_config": {"data_parallel_replicate_degree": 3}},
     "data_parallel_replicate_degree=3 and data_parallel_shard_degree=-1 do not make the 2 ranks"),
    ({"fsdp_config": {"data_parallel_replicate_degree": 2, "data_parallel_shard_degree": 2}},
     "data_parallel_replicate_degree=2 and data_parallel_shard_degree=2 do not make the 2 ranks"),
    ({"fsdp_config": {"data_parallel_replicate_degree": "two"}}, "ranks, or -1 for what the other"),
    ({"model.attn_implementation": "flash_attention_2"}, "flash-attn is not installed"),
    ({"model.peft_config": {**LORA, "peft_type": "IA3"}}, "peft_type must be LORA, got 'IA3'"),
    ({"model.peft_config": {**LORA, "target_modules": ["q_proj", "lm_head"]}},
     "model.peft_config.target_modules names lm_head, the output layer"),
    ({"model.peft_config": {**LORA, "r": 0}}, "model.peft_config.r must be a number >= 1, got 0"),
    ({"model.peft_config": True}, "model.peft_config must be a mapping"),
    ({"load_path": "no/such.pt"}, "load_path=no/such.pt does not exist. Give a checkpoint's file"),
    ({"load_path": "no/such.pt", "save_folder": "tests", "autoresume": False}, "no/such.pt does"),
    ({"algorithms.spin": SERVER}, f"{SECTION}.generation.server.command starts no-such, which is"),
    ({"algorithms.spin": ENV}, f"{SECTION}.generation.server.command starts no-such, which is"),
    (
        {"model": {"name": "mpt_spin_lm"}, "algorithms.spin": SHELL},
        "algorithms.spin.generation.engine=server cannot serve llm-foundry's MPT",
    ),
    ({"max_sequence_len": 3}, "max_sequence_len is not a key of llm-foundry's training config"),
    ({"tokenizer.name": "./nowhere"}, "tokenizer.name=./nowhere does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_run_that_cannot_start_is_refused(changes, said, monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "4.51.3")  # which MPT runs on
    cfg = config(**changes)
    with pytest.raises(InputError) as caught:
        check_launch(cfg, validate(cfg), world_size=2)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("newer", ["5.0.0", "5.24.0.dev0"])
def test_mpt_on_a_newer_transformers_names_the_versions_that_run_it(newer, monkeypatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: newer)
    cfg = config(model={"name": "mpt_spin_lm", "d_model": 8, "max_seq_len": 64})
    with pytest.raises(InputError) as caught:
        check_launch(cfg, validate(cfg), world_size=1)
    assert f"model.name=mpt_spin_lm does not run on transformers {newer}" in str(caught.value)
    assert "Install requirements-foundry.lock" in str(caught.value)
    assert "\n" not in str(caught.value)


ALLOWED: list[dict[str, Any]] = [
    {},
    {"save_interval": 3, "eval_interval": "0.5dur"},
    {"save_interval": "100ba", "callbacks": {"hf_checkpointer": {"save_interval": "2iter"}}},
    {"model.peft_config": LORA},
    {"model.init_device": "meta"},  # without FSDP llm-foundry takes cpu
    {"fsdp_config": {"sharding_strategy": "HYBRID_SHARD", "data_parallel_replicate_degree": 2}},
    {"fsdp_config": {"data_parallel_replicate_degree": -1, "data_parallel_shard_degree": 1}},
    {"fsdp_config": {"sharding_strategy": "HYBRID_SHARD", "process_group": "node"}},
    {"load_path": "s3://bucket/x.pt"},
    {"load_path": "runs/ep{epoch}.pt"},
    {"load_path": "no/such.pt", "save_folder": "tests"},  # a run that goes on does not read it
    {"algorithms.spin": {"generation": {"engine": "server", "server": {"command":
     f"env -i A=b {shlex.quote(sys.executable)} {{model}} {{port}}"}}}},
    {"device_train_microbatch_size": 3},  # of two pairs per rank: made smaller by llm-foundry
]  # fmt: skip


@pytest.mark.parametrize("changes", ALLOWED, ids=str)
def test_what_works_is_not_refused(changes: dict[str, Any], monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    cfg = config(**changes)
    check_launch(cfg, validate(cfg), world_size=2)


def test_only_rank_0s_machine_needs_the_server(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    cfg = config(**{"algorithms.spin": SERVER})
    check_launch(cfg, validate(cfg), world_size=2)


def test_peft_that_is_not_installed_is_named(monkeypatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "peft" else find(n, *a)
    )
    cfg = config(**{"model.peft_config": LORA})
    with pytest.raises(InputError) as at_launch:
        check_launch(cfg, validate(cfg), world_size=1)
    with pytest.raises(InputError) as at_load:
        lora_config(LORA)
    assert str(at_launch.value) == str(at_load.value)
    assert str(at_load.value) == (
        "model.peft_config is set, and peft is not installed. Install '.[lora]' in the checkout of "
        "spin_composer, as docs/versions.md says."
    )


ON_A_CPU = "on a CPU."
REGISTERED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer.name": "rmsprpo"}, "optimizer.name='rmsprpo' is not registered. Did you mean"),
    ({"optimizer": {"name": "rmsprop", "learning_rate": 1}},
     "optimizer.learning_rate is not a setting of rmsprop."),
    ({"algorithms": {"spin": {"beta": 0.1}, "gradient_cliping": {}}}, "Did you mean 'gradient_cl"),
    ({"callbacks": {"lr_montor": {}}}, "callbacks.lr_montor='lr_montor' is not registered. Did"),
    ({"callbacks": {"hf_checkpointer": {"save_folder": "x"}}},
     "callbacks.hf_checkpointer.save_interval is not set, and hf_checkpointer needs it"),
    ({"loggers": {"wand": {}}}, "loggers.wand='wand' is not registered. Did you mean 'wandb'?"),
    ({"model.pretraned": True}, "model.pretraned is not a setting of hf_spin_lm. Did you mean"),
    (
        {"model.peft_config": {**LORA, "alpha": 8}},
        "model.peft_config.alpha is not a setting of LoRA. Did you mean",
    ),
    ({"model": {"name": "hf_spin_lm"}}, "model.pretrained_model_name_or_path is not set"),
    ({"eval_loader": {"name": "finetune"}}, "eval_loader.name='finetune' is not registered."),
    ({"precision": "amp_bf16"}, "precision='amp_bf16' needs a GPU. Set precision=fp32 on a CPU."),
    ({"device_train_microbatch_size": "auto"},
     "=auto needs a GPU. Set it to a number of pairs on a CPU."),
]  # fmt: skip


@pytest.mark.foundry
@pytest.mark.parametrize(("changes", "said"), REGISTERED, ids=[said for _, said in REGISTERED])
def test_what_llm_foundry_cannot_build_is_refused_before_it_builds(changes, said) -> None:
    if said.endswith(ON_A_CPU) and torch.cuda.is_available():
        pytest.skip("a GPU can")
    with pytest.raises(InputError) as caught:
        transform(config(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.foundry
def test_what_llm_foundry_builds_is_accepted() -> None:
    groups = {"name": "rmsprop", "lr": 1e-6, "param_groups": [], "disable_grad": "norm"}
    transform(config(optimizer=groups, callbacks={"lr_monitor": None, "speed_monitor": {}}))
    transform(config(**{"model.master_weights_dtype": "bf16", "model.init_device": "cpu"}))


@pytest.mark.foundry
@pytest.mark.skipif(int(version("transformers").partition(".")[0]) > 4, reason="runs no MPT")
def test_llm_foundrys_mpt_is_accepted() -> None:
    transform(config(model={"name": "mpt_spin_lm", "d_model": 8, "max_seq_len": 64}))


def test_all_problems_are_told_at_once_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    cfg = config(eval_first=True, load_path="no/such.pt", save_interval="x")
    path.write_text(yaml.safe_dump(cfg))
    code = (
        "import json, sys; from spin_composer.train import main; code = main(sys.argv[1:]); "
        f"print(json.dumps([code, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(run.stdout) == [2, []]
    lines = run.stderr.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_several_wrong_sections_are_told_at_once(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config(**{"scheduler.decay": "x", "algorithms.spin": {"a": 1}})))
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert "scheduler.decay must be one of" in said
    assert "algorithms.spin.a is not a setting" in said
