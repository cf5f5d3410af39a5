"""uclaml/SPIN's recipe, and others like it, key by key."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.importers.read import read_config
from spin_composer.importers.recipe import convert_recipe
from spin_composer.importers.recipe_keys import EXPLAINED, REFUSED

from .fates import fates, leaves, require_comments, require_reachable

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
        (["~num_train_epochs"], "algorithms.spin.iteration_length", "3ep"),
        (["loss_type=ipo"], "algorithms.spin.loss", "squared"),
        (["loss_type=ipo"], "algorithms.spin.length_normalised", True),
        (["~optim"], "optimizer.name", "rmsprop"),
        (["~optim", "~dataset_mixer", "dataset_name=a/b"], "optimizer.name", "decoupled_adamw"),
        (["learning_rate=1e-7"], "optimizer.lr", 1e-7),
        (["optim=adamw_torch", "weight_decay=0.1"], "optimizer.weight_decay", 5e-8),
        (["lr_scheduler_type=cosine"], "scheduler.decay", "cosine"),
        (["warmup_ratio=0.2"], "scheduler.t_warmup", "0.2dur"),
        (["warmup_steps=7"], "scheduler.t_warmup", "7ba"),
        (["warmup_steps=0.3"], "scheduler.t_warmup", "0.3dur"),
        (["lr_scheduler_type=constant"], "scheduler.t_warmup", "0ba"),
        (["lr_scheduler_type=constant_with_warmup"], "scheduler.t_warmup", "0.1dur"),
        (["max_length=2048"], "max_seq_len", 2048),
        (["max_prompt_length=100"], "train_loader.dataset.max_prompt_len", 100),
        (["gradient_accumulation_steps=2"], "global_train_batch_size", 128),
        (["per_device_train_batch_size=2"], "device_train_microbatch_size", 2),
        (["gradient_checkpointing=false"], "fsdp_config.activation_checkpointing", False),
        (["bf16=false"], "precision", "fp32"),
        (["bf16=false"], "callbacks.hf_exporter.precision", "float32"),
        (["bf16=true"], "callbacks.hf_exporter.precision", "bfloat16"),
        (["use_flash_attention_2=false"], "model.attn_implementation", "sdpa"),
        (["attn_implementation=eager"], "model.attn_implementation", "eager"),
        (["attn_implementation=null"], "model.attn_implementation", "flash_attention_2"),
        (["save_total_limit=2"], "save_num_checkpoints_to_keep", 2),
        (["warmup_ratio=0.00001"], "scheduler.t_warmup", "0.00001dur"),
        (["logging_steps=5"], "console_log_interval", "5ba"),
        (["log_level=warning"], "python_log_level", "warning"),
        (["output_dir=out"], "save_folder", "out/checkpoints"),
        (["evaluation_strategy=steps", "eval_steps=20"], "eval_interval", "20ba"),
        (["evaluation_strategy=steps", "eval_steps=0.1"], "eval_interval", "1ep"),
        (["evaluation_strategy=steps"], "eval_interval", "10ba"),
        (["eval_strategy=steps", "~logging_steps"], "eval_interval", "500ba"),
        (["evaluation_strategy='no'"], "eval_interval", "1iter"),
        (["evaluation_strategy=no"], "eval_interval", "1iter"),
        (["eval_strategy=epoch", "evaluation_strategy=steps"], "eval_interval", "1ep"),
        (["preprocessing_num_workers=null", "dataset_num_proc=3"],
         "train_loader.dataset.num_proc", 3),
        (["tokenizer_name_or_path=my/tokenizer"], "tokenizer.name", "my/tokenizer"),
        (["report_to=[wandb]"], "loggers.wandb.project", "spin"),
        (["max_grad_norm=0.3"], "algorithms.gradient_clipping.clipping_threshold", 0.3),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=0.5"], "train_loader.dataset.split", "train[:50%]"),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=0.29"], "train_loader.dataset.split", "train[:29%]"),
        (["~dataset_mixer", "dataset_name=a/b", "dataset_train_split=train[:50]"],
         "train_loader.dataset.split", "train[:50]"),
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


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*LORA, "lora_task_type=CAUSAL_LM", "tokenizer_name_or_path=a", "dataset_config=b"],
        ["evaluation_strategy=steps", "eval_steps=0.1", "logging_steps=0.01", "report_to=[mlflow]"],
        ["do_eval=false", "eval_steps=5", "report_to=all", "bf16=false", "fp16=true"],
        ["warmup_steps=5", "max_grad_norm=0", "gradient_checkpointing=false", "loss_type=ipo"],
        [
            "attn_implementation=sdpa",
            "max_seq_length=9",
            "dataset_num_proc=2",
            "load_in_4bit=false",
        ],
        ["eval_strategy=steps", "eval_steps=7", "report_to=[wandb,swanlab]", "use_peft=false"],
    ],
    ids=str,
)
@pytest.mark.parametrize("gpus", [1, 8])
def test_every_key_of_the_recipe_is_named_with_what_became_of_it(overrides: list[str], gpus: int):
    draft = imported(*overrides, gpus=gpus)
    found = fates(draft)
    assert set(found) == set(leaves(read_config(YAML, overrides)))
    for key in [key for key, why in found.items() if why == "is so here without a setting"]:
        assert any(fnmatchcase(key, pattern) for pattern in REFUSED), key
    require_comments(draft)


def test_every_reason_can_be_reached():
    require_reachable(EXPLAINED, REFUSED)


@pytest.mark.parametrize(
    ("overrides", "key", "reason"),
    [
        (["eval_steps=5"], "eval_steps", "counts only with evaluation_strategy: steps"),
        (["do_eval=false"], "evaluation_strategy", "do_eval is off"),
        (["logging_steps=0.1"], "logging_steps", "counts batches"),
        (["logging_steps=0"], "logging_steps", "counts batches"),
        (["save_total_limit=0"], "save_total_limit", "all checkpoints are kept"),
        (["save_total_limit=-1"], "save_total_limit", "all checkpoints are kept"),
        (["report_to=[mlflow]"], "report_to", "loggers.NAME for mlflow"),
        (["report_to=none"], "report_to", "no logger is added"),
        (["warmup_steps=5"], "warmup_ratio", "warmup_steps is used"),
        (["lr_scheduler_type=constant"], "warmup_ratio", "has no warm-up"),
        (["max_grad_norm=0"], "max_grad_norm", "not clipped"),
        (["attn_implementation=sdpa"], "use_flash_attention_2", "attn_implementation is used"),
        (["max_seq_length=9"], "max_seq_length", "max_length is used"),
        (["truncation_side=left"], "truncation_side", "at their start"),
        (["max_train_samples=10"], "max_train_samples", "uclaml/SPIN does not read it"),
        (["padding_free=true"], "padding_free", "without padding"),
        (["use_liger_kernel=true"], "use_liger_kernel", "output layer"),
        (["precompute_ref_log_probs=true"], "precompute_ref_log_probs", "computed once"),
        (["use_peft=false", "lora_r=4"], "lora_r", "adapters are off"),
    ],
)
def test_what_is_not_carried_over_is_explained(overrides: list[str], key: str, reason: str):
    assert reason in fates(imported(*overrides))[key]


def test_one_gpu_has_no_fsdp_to_recompute_activations():
    found = fates(imported(gpus=1))
    assert "they are kept, in more memory" in found["gradient_checkpointing"]


def test_no_gradient_is_clipped_where_transformers_clips_none():
    assert "gradient_clipping" not in imported("max_grad_norm=0").config()["algorithms"]


def test_peft_chooses_the_modules_that_a_recipe_does_not_name():
    adapters = imported("use_peft=true").config()["model"]["peft_config"]
    assert "target_modules" not in adapters


def test_a_null_says_nothing():
    assert imported("never_heard_of=null").config() == imported().config()


def test_no_evaluation_asks_for_no_held_out_rows():
    assert "eval_loader" not in imported("do_eval=false").config()
    assert "eval_loader" not in imported("~do_eval", "~evaluation_strategy").config()
    assert "eval_loader" not in imported("dataset_splits=[train]").config()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["bta=0.1"], "bta is not a known key of the recipe. Did you mean 'beta'"),
        (["dataset_mixer={a: 1, b: 1}"], "dataset_mixer.*write a mixture as a data set of its own"),
        (["dataset_mixer={UCLA-AGI/SPIN_iter1: 1}"], "~dataset_mixer.UCLA-AGI/SPIN_iter0' to the"),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=0.125"], "whole percents"),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=0.004"], "whole percents"),
        (["dataset_mixer.UCLA-AGI/SPIN_iter0=2"], "whole percents"),
        (["loss_type=[sigmoid]"], "loss_type="),
        (["lr_scheduler_type=[linear]"], "lr_scheduler_type="),
        (["optim=[adamw_torch]"], "optim="),
        (["report_to=5"], "report_to=5.*give a list of texts"),
        (["evaluation_strategy=often"], "evaluation_strategy='often'"),
        (["lr_scheduler_kwargs={num_cycles: 3}"], "num_cycles=3.*~lr_scheduler_kwargs"),
        (["base_model_revision=v1"], "base_model_revision='v1'"),
        (["max_prompt_length=many"], "max_prompt_length='many'.*give an integer"),
        (["run_name=''"], "run_name=''.*take it out"),
        ([*LORA, "lora_task_type=SEQ_CLS"], "lora_task_type='SEQ_CLS'"),
        ([*LORA, "lora_bias=all"], "lora_bias='all'"),
        (["dataset_splits=5"], "dataset_splits=5.*give a list of texts"),
        (["max_grad_norm=no"], "max_grad_norm=.*give a number"),
        (["learning_rate=0"], "learning_rate=0.*peak learning rate"),
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
