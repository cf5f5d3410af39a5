"""NeMo-Aligner's SPIN config, key by key: mapped, refused, or explained."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.importers.nemo import convert_nemo
from spin_composer.importers.nemo_keys import EXPLAINED, REFUSED
from spin_composer.importers.read import read_config

from .fates import fates, leaves, require_comments, require_reachable

YAML = Path(__file__).parent / "foreign/gpt_spin.yaml"
LAST_YAML = Path(__file__).parent / "foreign/gpt_spin_last.yaml"
"""The keys of the config in NeMo-Aligner's last version, which leaves many to the checkpoint's."""
FILES = [
    "pretrained_checkpoint.restore_from_path=/models/sft.nemo",
    "model.data.train_ds.file_path=/data/train.jsonl",
    "model.data.validation_ds.file_path=/data/valid.jsonl",
]
TUTORIAL = [
    *FILES, "trainer.num_nodes=1", "trainer.devices=8", "model.micro_batch_size=1",
    "model.global_batch_size=64", "exp_manager.create_wandb_logger=true",
    "exp_manager.wandb_logger_kwargs.project=spin_training",
    "exp_manager.wandb_logger_kwargs.name=spin_training", "exp_manager.explicit_log_dir=/results",
    "++model.sequence_parallel=false", "++model.apply_rope_fusion=false",
    "trainer.spin.max_iterations=3", "trainer.spin.max_epochs=1",
    "model.spin.ref_policy_kl_penalty=0.1", "model.spin.length_params.max_length=2048",
    "model.spin.rollout_micro_batch_size=4", "model.tensor_model_parallel_size=8",
    "model.optim.lr=5e-7",
]  # fmt: skip


def imported(*overrides: str, model: str | None = "my/sft"):
    return convert_nemo(read_config(YAML, [*TUTORIAL, *overrides]), "gpt_spin.yaml", model)


def setting(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


GAME, GENERATION = "algorithms.spin", "algorithms.spin.generation"
TRAIN = "model.data.train_ds"


@pytest.mark.parametrize(
    ("override", "ours", "value"),
    [
        ("trainer.spin.max_iterations=4", "max_duration", "4iter"),
        ("trainer.spin.max_epochs=2", f"{GAME}.iteration_length", "2ep"),
        ("model.spin.ref_policy_kl_penalty=0.3", f"{GAME}.beta", 0.3),
        ("model.spin.ref_policy_kl_penalty=[0.1,0.2,5]", f"{GAME}.beta", [0.1, 0.2, 5]),
        ("model.spin.length_params.max_length=99", f"{GENERATION}.max_new_tokens", 99),
        ("model.spin.length_params.min_length=2", f"{GENERATION}.min_new_tokens", 2),
        ("model.spin.sampling_params.temperature=0.8", f"{GENERATION}.temperature", 0.8),
        ("model.spin.sampling_params.top_p=0.9", f"{GENERATION}.top_p", 0.9),
        ("model.spin.sampling_params.top_k=50", f"{GENERATION}.top_k", 50),
        ("model.spin.sampling_params.end_strings=[x]", f"{GENERATION}.stop_strings", ["x"]),
        ("model.spin.rollout_micro_batch_size=16", f"{GENERATION}.batch_size", 16),
        ("trainer.spin.limit_train_batches=10", f"{GAME}.samples_per_iteration", 640),
        ("trainer.spin.limit_train_batches=1", f"{GAME}.samples_per_iteration", 64),
        # 7 of 64 rows are 448: 8 GPUs take 8 at a time.
        ("trainer.spin.limit_val_batches=7", "eval_subset_num_batches", 56),
        ("trainer.spin.limit_val_batches=1", "eval_subset_num_batches", 8),
        ("trainer.spin.val_check_interval=50", "eval_interval", "50ba"),
        ("trainer.spin.val_check_interval=1", "eval_interval", "1ba"),
        ("trainer.spin.val_check_interval=0.1", "eval_interval", "1ep"),
        ("trainer.spin.gradient_clip_val=0.5",
         "algorithms.gradient_clipping.clipping_threshold", 0.5),
        ("trainer.precision=bf16-mixed", "precision", "amp_bf16"),
        ("trainer.precision=32", "precision", "fp32"),
        ("trainer.precision=32", "callbacks.hf_exporter.precision", "float32"),
        ("model.global_batch_size=128", "global_train_batch_size", 128),
        ("model.micro_batch_size=2", "device_train_microbatch_size", 2),
        ("model.data.validation_ds.micro_batch_size=3", "device_eval_batch_size", 3),
        ("model.encoder_seq_length=1024", "max_seq_len", 1024),
        (f"{TRAIN}.max_seq_length=512", "max_seq_len", 512),
        ("model.seed=5", "seed", 5),
        ("model.optim.lr=1e-6", "optimizer.lr", 1e-6),
        ("model.optim.weight_decay=0.1", "optimizer.weight_decay", 5e-8),
        ("model.optim.betas=[0.9,0.95]", "optimizer.betas", [0.9, 0.95]),
        ("~model.optim.betas", "optimizer.betas", [0.9, 0.999]),
        ("model.optim.sched.warmup_steps=5", "scheduler.t_warmup", "5ba"),
        ("model.optim.sched.min_lr=5e-8", "scheduler.alpha_f", 0.1),
        ("model.optim.sched.name=WarmupAnnealing", "scheduler.decay", "linear"),
        ("exp_manager.explicit_log_dir=/x", "save_folder", "/x/checkpoints"),
        ("exp_manager.explicit_log_dir=/x", f"{GAME}.store", "/x/self-play"),
        ("exp_manager.wandb_logger_kwargs.group=g", "loggers.wandb.group", "g"),
        ("exp_manager.checkpoint_callback_params.save_top_k=3", "save_num_checkpoints_to_keep", 3),
        ("+trainer.log_every_n_steps=20", "console_log_interval", "20ba"),
        ("model.activations_checkpoint_granularity=full",
         "fsdp_config.activation_checkpointing", True),
        ("model.peft.peft_scheme=lora", "model.peft_config.target_modules",
         ["q_proj", "k_proj", "v_proj"]),
        ("model.data.train_ds.file_path=[a.jsonl,b.jsonl]",
         "train_loader.dataset.hf_kwargs.data_files", ["a.jsonl", "b.jsonl"]),
    ],
)  # fmt: skip
def test_a_key_is_mapped(override: str, ours: str, value: object):
    found = setting(imported(override).config(), ours)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)


CHATLESS = [
    "model.data.chat=False", f"{TRAIN}.context_key=question", f"{TRAIN}.label_key=answer",
    f"{TRAIN}.prompt_template='{{question}}{{answer}}'",
]  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        CHATLESS,
        ["model.peft.peft_scheme=lora", "exp_manager.create_wandb_logger=false"],
        ["trainer.devices=1", "model.activations_checkpoint_granularity=full"],
        ["trainer.spin.limit_val_batches=7", "trainer.spin.limit_train_batches=3"],
        ["trainer.spin.limit_val_batches=0", "trainer.spin.gradient_clip_val=0"],
        ["model.data.validation_ds.file_path=null", "model.optim.sched.name=WarmupPolicy"],
        ["exp_manager.checkpoint_callback_params.save_top_k=0", "+model.spin.num_rounds=2"],
        ["model.spin.sampling_params.end_strings=[]", "exp_manager.explicit_log_dir=null"],
    ],
    ids=str,
)
def test_every_key_of_the_config_is_named_with_what_became_of_it(overrides: list[str]):
    draft = imported(*overrides)
    found = fates(draft)
    assert set(found) == set(leaves(read_config(YAML, [*TUTORIAL, *overrides])))
    for key in [key for key, why in found.items() if why == "is so here without a setting"]:
        assert any(fnmatchcase(key, one) for one in (*REFUSED, "*.weight_tying")), key
    require_comments(draft)


def test_every_reason_can_be_reached():
    require_reachable(EXPLAINED, REFUSED)


@pytest.mark.parametrize(
    ("overrides", "key", "reason"),
    [
        ([], "trainer.spin.limit_train_batches", "every row is played"),
        ([], "trainer.spin.limit_val_batches", "every held-out row"),
        ([], f"{TRAIN}.context_key", "a row is a conversation"),
        ([], f"{TRAIN}.global_batch_size", "model.global_batch_size is used"),
        (["trainer.spin.gradient_clip_val=0"], "trainer.spin.gradient_clip_val", "not clipped"),
        (["trainer.spin.limit_val_batches=0"], "trainer.spin.val_check_interval", "switches"),
        (["exp_manager.explicit_log_dir=null", "exp_manager.exp_dir=/x"], "exp_manager.exp_dir",
         "or else runs/{run_name}"),
        (["model.optim.sched.name=WarmupPolicy"], "model.optim.sched.min_lr", "stays constant"),
        (["model.peft.peft_scheme=lora"], "model.peft.lora_tuning.adapter_dropout", "dropout"),
        (["model.peft.peft_scheme=lora"], "model.peft.lora_tuning.row_init_method", "no change"),
        (["trainer.devices=1", "model.activations_checkpoint_granularity=full"],
         "model.activations_checkpoint_granularity", "they are kept, in more memory"),
        (["exp_manager.checkpoint_callback_params.save_top_k=0"],
         "exp_manager.checkpoint_callback_params.save_top_k", "the newest are kept"),
    ],
)  # fmt: skip
def test_what_is_not_carried_over_is_explained(overrides: list[str], key: str, reason: str):
    assert reason in fates(imported(*overrides))[key]


def test_a_small_share_of_warm_up_has_no_exponent():
    sched = "model.optim.sched"
    config = imported(f"~{sched}.warmup_steps", f"+{sched}.warmup_ratio=1e-5").config()
    assert config["scheduler"]["t_warmup"] == "0.00001dur"


def test_batches_count_by_the_data_sets_own_size_where_the_models_is_open():
    own = ["model.global_batch_size=null", f"{TRAIN}.global_batch_size=16"]
    own += ["model.data.validation_ds.global_batch_size=20", "trainer.spin.limit_val_batches=3"]
    config = imported(*own, "trainer.spin.limit_train_batches=5").config()
    assert config["global_train_batch_size"] == 16
    assert config["algorithms"]["spin"]["samples_per_iteration"] == 80
    assert config["eval_subset_num_batches"] == 8  # 60 rows, 8 at a time


@pytest.mark.parametrize("limit", ["1.0", "null", "-1"])
def test_all_rows_are_played_without_a_limit(limit: str):
    spin = imported(f"trainer.spin.limit_train_batches={limit}").config()["algorithms"]["spin"]
    assert "samples_per_iteration" not in spin


def test_epochs_on_the_same_responses_are_told_from_nemos():
    assert "NeMo-Aligner samples in each epoch" in imported("trainer.spin.max_epochs=2").yaml.text
    assert "NeMo-Aligner samples in each epoch" not in imported().yaml.text


LAST_TUTORIAL = [
    *FILES, "trainer.num_nodes=1", "trainer.devices=8", "model.micro_batch_size=1",
    "model.global_batch_size=64", "exp_manager.create_wandb_logger=false",
    "exp_manager.wandb_logger_kwargs.project=spin_training",
    "exp_manager.wandb_logger_kwargs.name=spin_training", "exp_manager.explicit_log_dir=/results",
    "trainer.spin.max_iterations=1", "trainer.spin.max_epochs=1",
    "model.spin.ref_policy_kl_penalty=0.1", "model.spin.length_params.max_length=2048",
    "model.data.train_ds.max_seq_length=4096",
]  # fmt: skip
"""The command line of NeMo-Aligner's tutorial."""


def test_the_last_versions_tutorial_is_carried_over():
    values = read_config(LAST_YAML, LAST_TUTORIAL)
    draft = convert_nemo(values, "gpt_spin.yaml", "my/sft")
    config = draft.config()
    assert config["max_seq_len"] == 4096
    assert config["max_duration"] == "1iter"
    assert config["algorithms"]["spin"]["beta"] == 0.1
    assert config["algorithms"]["spin"]["generation"]["max_new_tokens"] == 2048
    assert config["optimizer"]["weight_decay"] == 9e-7
    assert config["scheduler"]["alpha_f"] == 0.1
    assert "model_parallel_size='${multiply:" in draft.yaml.text  # of the checkpoint's config


@pytest.mark.parametrize("key", ["model.spin.length_params.max_length", f"{TRAIN}.max_seq_length"])
def test_a_value_of_the_checkpoints_own_config_is_asked_for(key: str):
    given = [one for one in LAST_TUTORIAL if not one.startswith(key)]
    with pytest.raises(InputError, match=rf"{key}=\$\{{.*Add {key}=VALUE to the command"):
        convert_nemo(read_config(LAST_YAML, given), "gpt_spin.yaml", "my/sft")
    set_above = [*given, "+model.encoder_seq_length=512"]
    convert_nemo(read_config(LAST_YAML, set_above), "gpt_spin.yaml", "my/sft")


def test_the_first_versions_names_are_known():
    first = ["~trainer.spin.max_iterations", "~model.spin.rollout_micro_batch_size"]
    new = ["+model.spin.num_rounds=2", "+model.spin.generation_batch_size=8"]
    config = imported(*first, *new).config()
    assert config["max_duration"] == "2iter"
    assert config["algorithms"]["spin"]["generation"]["batch_size"] == 8


def test_the_tutorials_run_is_of_one_node():
    config = imported().config()
    assert config["loggers"] == {"wandb": {"project": "spin_training", "name": "spin_training"}}
    assert config["run_name"] == "spin_training"
    assert config["model"]["init_device"] == "mixed"
    assert config["fsdp_config"]["sharding_strategy"] == "FULL_SHARD"
    assert "composer -n 8" in imported().yaml.text
    assert "sbatch --nodes=4" in imported("trainer.num_nodes=4").yaml.text


def test_rows_without_chat_are_read_by_their_columns():
    config = imported(*CHATLESS).config()
    columns = {"prompt": "question", "response": "answer"}
    assert config["train_loader"]["dataset"]["preprocessing_fn"] == columns
    assert config["eval_loader"]["dataset"]["preprocessing_fn"] == columns


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+model.spin.beta=1", r"model\.spin\.beta is not a known key"),
        ("+model.spin.rollout_micro_batchsize=1", "Did you mean 'model.spin.rollout_micro_batch"),
        ("~model.spin.nothing", "there is no such key"),
        ("model.spin.ref_policy_kl_penalty=[0.1,0.2]", "2 values for 3 iterations"),
        ("trainer.spin.max_steps=100", r"trainer\.spin\.max_steps=100"),
        ("trainer.spin.limit_train_batches=0.5", "limit_train_batches=0.5"),
        ("trainer.spin.limit_train_batches=0", "limit_train_batches=0"),
        ("trainer.spin.gradient_clip_val=on", "gradient_clip_val=.*give a number"),
        ("model.spin.sampling_params.use_greedy=True", "use_greedy=True"),
        (f"{TRAIN}.concat_sampling_probabilities=[1]", "concat_sampling_probabilities"),
        ("model.data.chat=False", "prompt_template"),
        ("model.answer_only_loss=False", "answer_only_loss"),
        ("model.peft.peft_scheme=ptuning", "peft_scheme='ptuning'"),
        ("model.optim.name=sgd", r"model\.optim\.name='sgd'"),
        ("model.optim.name=[adamw]", r"model\.optim\.name="),
        ("model.optim.name=adam", r"weight_decay=0\.01.*adamw"),
        ("model.optim.sched.name=[Noam]", r"sched\.name="),
        ("model.optim.sched.name=Noam", r"sched\.name='Noam'"),
        ("trainer.precision=8", "trainer.precision=8"),
        ("+exp_manager.resume_from_checkpoint=x", "resume_from_checkpoint='x'"),
        ("model.optim.lr=0", r"model\.optim\.lr=0.*peak learning rate"),
        ("model.optim.weight_decay=much", "weight_decay='much'.*give a number"),
        ("model.optim.sched.min_lr=low", "min_lr='low'.*give a number"),
        ("model.spin.sampling_params.end_strings=5", "end_strings=5.*give a list of texts"),
        ("trainer.devices=auto", r"trainer\.devices='auto'"),
        ("trainer.num_nodes=0", r"trainer\.num_nodes=0"),
        ("model.spin.length_params.max_length=0", "max_new_tokens"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(override: str, named: str):
    with pytest.raises(InputError, match=named):
        imported(override)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.peft.lora_tuning.layer_selection=[1,12]", "layer_selection=.*all layers"),
        ("model.peft.lora_tuning.weight_tying=True", "weight_tying=True"),
        ("model.peft.lora_tuning.target_modules=5", "target_modules=5.*give a list of texts"),
        ("+model.peft.lora_tuning.rank_pattern=x", "rank_pattern='x'"),
    ],
)
def test_lora_that_is_another_is_refused_by_name(override: str, named: str):
    with pytest.raises(InputError, match=named):
        imported("model.peft.peft_scheme=lora", override)
    imported(override)


def test_a_checkpoint_of_nemo_must_be_converted():
    with pytest.raises(InputError, match=r"sft\.nemo.*--model FOLDER"):
        imported(model=None)


def test_a_value_that_the_config_leaves_open_is_asked_for():
    with pytest.raises(InputError, match=r"train_ds\.file_path is not set"):
        convert_nemo(read_config(YAML, FILES[:1]), "gpt_spin.yaml", "my/sft")


def test_the_command_prints_a_yaml():
    command = ["import-nemo", str(YAML), *TUTORIAL, "--model", "my/sft"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "\nmax_duration: 3iter\n" in done.stdout
    assert "model.tensor_model_parallel_size=8" in done.stderr
