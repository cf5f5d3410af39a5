"""uclaml/SPIN's recipe, and others like it, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.importers.read import read_config
from spin_composer.importers.recipe import convert_recipe

YAML = Path(__file__).parent / "foreign/spin_config.yaml"


def imported(*overrides: str, **options: int):
    return convert_recipe(read_config(YAML, overrides), "config.yaml", **options)


def setting(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


LORA = ["use_peft=true", "lora_r=8", "lora_alpha=16", "lora_target_modules=[q_proj]"]


@pytest.mark.parametrize(
    ("overrides", "ours", "value"),
    [
        (["model_name_or_path=my/sft"], "tokenizer.name", "my/sft"),
        (["beta=0.3"], "algorithms.spin.beta", 0.3),
        (["num_train_epochs=2"], "algorithms.spin.iteration_length", "2ep"),
        (["loss_type=ipo"], "algorithms.spin.loss", "squared"),
        (["learning_rate=1e-7"], "optimizer.lr", 1e-7),
        (["optim=adamw_torch", "weight_decay=0.1"], "optimizer.weight_decay", 5e-8),
        (["lr_scheduler_type=cosine"], "scheduler.decay", "cosine"),
        (["warmup_ratio=0.2"], "scheduler.t_warmup", "0.2dur"),
        (["warmup_steps=7"], "scheduler.t_warmup", "7ba"),
        (["max_length=2048"], "max_seq_len", 2048),
        (["max_prompt_length=100"], "train_loader.dataset.max_prompt_len", 100),
        (["gradient_accumulation_steps=2"], "global_train_batch_size", 128),
        (["per_device_train_batch_size=2"], "device_train_microbatch_size", 2),
        (["gradient_checkpointing=false"], "fsdp_config.activation_checkpointing", False),
        (["bf16=false"], "precision", "fp32"),
        (["use_flash_attention_2=false"], "model.attn_implementation", "sdpa"),
        (["save_total_limit=2"], "save_num_checkpoints_to_keep", 2),
        (["logging_steps=5"], "console_log_interval", "5ba"),
        (["log_level=warning"], "python_log_level", "warning"),
        (["output_dir=out"], "save_folder", "out/checkpoints"),
        (["evaluation_strategy=steps", "eval_steps=20"], "eval_interval", "20ba"),
        (["report_to=[wandb]"], "loggers.wandb.project", "spin"),
        (["max_grad_norm=0.3"], "algorithms.gradient_clipping.clipping_threshold", 0.3),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=0.5"], "train_loader.dataset.split", "train[:50%]"),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=0.125"], "train_loader.dataset.split",
         "train[:12.5%]"),
        (["~max_length", "max_seq_length=4096"], "max_seq_len", 4096),
        (["--num_train_epochs=6"], "algorithms.spin.iteration_length", "6ep"),
        (LORA, "model.peft_config.r", 8),
    ],
)  # fmt: skip
def test_a_key_is_mapped(overrides: list[str], ours: str, value: object):
    found = setting(imported(*overrides).config(), ours)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)


def test_the_batch_is_that_of_the_processes_it_was_run_with():
    config = imported(gpus=4, iterations=2).config()
    assert config["global_train_batch_size"] == 32
    assert config["max_duration"] == "2iter"
    alone = imported(gpus=1).config()
    assert "fsdp_config" not in alone
    assert alone["model"]["init_device"] == "cpu"


def test_every_key_of_the_recipe_is_named_with_what_became_of_it():
    named = " ".join(str(change) for change in imported().changes)
    for key, value in read_config(YAML, []).items():
        assert value is None or key in named, key


def test_no_evaluation_asks_for_no_held_out_rows():
    assert "eval_loader" not in imported("do_eval=false").config()
    assert "eval_loader" not in imported("dataset_splits=[train]").config()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["bta=0.1"], "bta is not a known key of the recipe. Did you mean 'beta'"),
        (["dataset_mixer={a: 1, b: 1}"], "dataset_mixer"),
        (["dataset_splits=5"], "dataset_splits=5.*give a list of texts"),
        (["max_grad_norm=no"], "max_grad_norm=.*give a number"),
        (["weight_decay=q"], "weight_decay='q'.*give a number"),
        (["num_train_epochs=1.5"], "num_train_epochs=1.5"),
        (["max_steps=10"], "max_steps=10"),
        (["loss_type=kto_pair"], "loss_type='kto_pair'"),
        (["optim=adafactor"], "optim='adafactor'"),
        (["load_in_4bit=true"], "load_in_4bit=True"),
        (["lr_scheduler_type=polynomial"], "lr_scheduler_type"),
        (["max_prompt_length=5000"], "max_prompt_len"),
        (["model_revision=ac6e600"], "model_revision='ac6e600'.*model_revision=main"),
        (["dataset_mixture.datasets=[{id: a}]"], "dataset_mixture.*dataset_name=NAME"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(overrides: list[str], named: str):
    with pytest.raises(InputError, match=named):
        imported(*overrides)


def test_a_data_set_is_named_as_in_newer_recipes():
    named = ["dataset_name=org/chat", "dataset_config=all", "dataset_train_split=train_sft"]
    config = imported("~dataset_mixer", *named, "dataset_test_split=test_sft").config()
    dataset = config["train_loader"]["dataset"]
    assert dataset["hf_name"] == "org/chat"
    assert dataset["hf_kwargs"] == {"name": "all"}
    assert dataset["split"] == "train_sft"
    assert config["eval_loader"]["dataset"]["split"] == "test_sft"
    assert "eval_loader" not in imported("~dataset_mixer", *named).config()


def test_the_command_prints_a_yaml():
    done = CliRunner().invoke(app, ["import-recipe", str(YAML), "beta=0.2", "--gpus", "2"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "\nglobal_train_batch_size: 16\n" in done.stdout
    assert "beta: algorithms.spin.beta: 0.2" in done.stderr
