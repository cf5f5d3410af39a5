"""A recipe of the alignment handbook's kind, as uclaml/SPIN's, as a SPIN YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml, put_outputs, put_sharding
from spin_composer.importers.recipe_keys import EXPLAINED, REFUSED
from spin_composer.importers.recipe_training import put_adapters, put_optimizer
from spin_composer.settings.fields import is_int, is_number

TRAINER = "the recipe"
ITERATIONS, NEW_TOKENS, GPUS = 3, 256, 8
"""What uclaml/SPIN's scripts and not its recipe say: T, the tokens of a response, the processes."""
_LOSSES = {"sigmoid": "logistic", "hinge": "hinge", "ipo": "squared"}
_PAIR = "each iteration's own: real rows are read, responses are generated here"


def convert_recipe(
    values: dict[str, Any], where: str, gpus: int = GPUS, iterations: int = ITERATIONS
) -> FreshYaml:
    """Turn a recipe into a YAML of SPIN.

    Args:
        values: The recipe.
        where: The file's name in messages.
        gpus: Processes that it was run with: they make its batch.
        iterations: Iterations of play and training; a recipe trains one.

    Returns:
        The result, valid as far as it can be known without loading anything.

    Raises:
        InputError: A key is unknown, missing, or asks for what SPIN cannot do.
    """
    mixer = values.pop("dataset_mixer", None)
    theirs = ForeignConfig(values, where, TRAINER)
    theirs.values["dataset_mixer"] = mixer  # its keys are names of data sets
    theirs.check_refused(REFUSED)
    name = theirs.take("run_name") or theirs.take("hub_model_id") or Path(where).stem
    key = "run_name" if theirs.values.get("run_name") else "hub_model_id"
    key = key if theirs.values.get(key) else ""
    draft = FreshYaml(where, str(name).rpartition("/")[2], key, theirs.values)
    _put_model(theirs, draft, gpus)
    _put_data(theirs, draft)
    _put_game(theirs, draft, iterations)
    put_optimizer(theirs, draft)
    _put_batches(theirs, draft, gpus)
    key = "gradient_checkpointing"
    put_sharding(draft, gpus, bool(theirs.take(key)), key)
    _put_outputs(theirs, draft)
    theirs.explain_rest(draft, EXPLAINED)
    draft.require_valid()
    return draft


def _put_model(theirs: ForeignConfig, draft: FreshYaml, gpus: int) -> None:
    key = "max_seq_length" if theirs.values.get("max_length") is None else "max_length"
    longest = theirs.take(key)
    if not is_int(longest):
        key = "max_length"
        raise theirs.refuse(key, "give the most tokens of prompt and response")
    draft.put("max_seq_len", longest, key)
    draft.put("seed", theirs.take("seed", 42), "seed")
    key = "model_name_or_path"
    model = theirs.take(key)
    if not model:
        raise theirs.refuse(key, "give the SFT model")
    draft.yaml.set("model.name", "hf_spin_lm")
    draft.put("model.pretrained_model_name_or_path", model, key)
    draft.yaml.set("model.init_device", "mixed" if gpus > 1 else "cpu")
    attention = theirs.take_first("attn_implementation", "use_flash_attention_2")
    if attention is True:
        attention = "flash_attention_2"
    key = "attn_implementation" if "attn_implementation" in theirs.values else ""
    key = "use_flash_attention_2" if "use_flash_attention_2" in theirs.values else key
    why = "sdpa needs no package" if attention == "flash_attention_2" else ""
    draft.put("model.attn_implementation", attention or "sdpa", key, why)
    draft.put(
        "model.trust_remote_code", bool(theirs.take("trust_remote_code")), "trust_remote_code"
    )
    put_adapters(theirs, draft)
    draft.yaml.set("tokenizer.name", theirs.take("tokenizer_name_or_path") or model)
    draft.yaml.set("tokenizer.kwargs.model_max_length", "${max_seq_len}")


def _put_data(theirs: ForeignConfig, draft: FreshYaml) -> None:
    name, trained, held_out, keys = _data_set(theirs)
    draft.yaml.set("train_loader.name", "spin")
    dataset = _dataset(theirs, name, trained)
    draft.put("train_loader.dataset", dataset, ", ".join(keys), _PAIR)
    for key, ours in (
        ("max_prompt_length", "max_prompt_len, and truncate_prompt: left"),
        ("preprocessing_num_workers", "num_proc"),
        ("dataset_num_proc", "num_proc"),
    ):
        if theirs.values.get(key) is not None:
            draft.note(key, f"train_loader.dataset.{ours}")
    wanted = theirs.take("do_eval", True)
    interval = theirs.take_first("eval_strategy", "evaluation_strategy")
    if held_out and wanted:
        draft.yaml.set("eval_loader.name", "spin")
        dataset = _dataset(theirs, name, held_out)
        draft.put("eval_loader.dataset", dataset, f"{keys[-1]}, do_eval")
        steps = theirs.take("eval_steps")
        in_steps = interval == "steps" and is_int(steps)
        key = "eval_strategy" if "eval_strategy" in theirs.values else "evaluation_strategy"
        draft.put("eval_interval", f"{steps}ba" if in_steps else "1ep", key)


def _data_set(theirs: ForeignConfig) -> tuple[str, str, str | None, list[str]]:
    """Return the data set, its split to train on, the held-out one, and the keys that name them."""
    mixer = theirs.take("dataset_mixer")
    if mixer is None and theirs.values.get("dataset_name") is not None:
        keys = ["dataset_name", "dataset_train_split", "dataset_test_split"]
        name, trained = theirs.take(keys[0]), theirs.take(keys[1], "train")
        return str(name), str(trained), theirs.take(keys[2]), keys
    if not isinstance(mixer, dict) or len(mixer) != 1:
        raise theirs.refuse(
            "dataset_mixer", "name one data set, in dataset_mixer or dataset_name: SPIN reads "
            "every row once, so write a mixture as a data set of its own"
        )  # fmt: skip
    ((name, share),) = mixer.items()
    if not is_number(share) or not 0 < share <= 1:
        raise theirs.refuse("dataset_mixer", "its share must lie between 0 and 1")
    splits = theirs.take_texts("dataset_splits", ["train"])
    held_out = [split for split in splits if split.startswith(("test", "eval", "valid"))]
    trained = [split for split in splits if split not in held_out]
    if len(trained) != 1 or len(held_out) > 1:
        raise theirs.refuse("dataset_splits", "give one split to train on and at most one held out")
    part = (
        trained[0] if share == 1 else f"{trained[0]}[:{share:.6%}".rstrip("0%").rstrip(".") + "%]"
    )
    return str(name), part, next(iter(held_out), None), ["dataset_mixer", "dataset_splits"]


def _dataset(theirs: ForeignConfig, name: str, split: str) -> dict[str, Any]:
    dataset: dict[str, Any] = {"hf_name": name, "split": split, "max_seq_len": "${max_seq_len}"}
    if is_int(most := theirs.take("max_prompt_length")):
        dataset |= {"max_prompt_len": most, "truncate_prompt": "left"}
    if subset := theirs.take("dataset_config"):
        dataset["hf_kwargs"] = {"name": subset}
    if is_int(processes := theirs.take_first("preprocessing_num_workers", "dataset_num_proc")):
        dataset["num_proc"] = processes
    return dataset


def _put_game(theirs: ForeignConfig, draft: FreshYaml, iterations: int) -> None:
    where = "algorithms.spin"
    draft.put("max_duration", f"{iterations}iter", "", "a recipe is one iteration: --iterations")
    key = "num_train_epochs"
    epochs = theirs.take(key, 1)
    if not is_number(epochs) or int(epochs) != epochs or epochs < 1:
        raise theirs.refuse(key, "SPIN counts whole epochs")
    draft.put(f"{where}.iteration_length", f"{int(epochs)}ep", key)
    draft.put(f"{where}.beta", theirs.take("beta", 0.1), "beta", "one number, or one per iteration")
    key = "loss_type"
    loss = theirs.take(key, "sigmoid")
    if loss not in _LOSSES:
        raise theirs.refuse(key, f"use one of {', '.join(_LOSSES)}, or set {where}.loss by hand")
    draft.put(f"{where}.loss", _LOSSES[loss], key)
    draft.put(f"{where}.generation.max_new_tokens", NEW_TOKENS, "", "as uclaml/SPIN's generate.py")
    key = "max_grad_norm"
    clip = theirs.take_number(key, 1.0)
    clipping = {"clipping_type": "norm", "clipping_threshold": clip}
    draft.put("algorithms.gradient_clipping", clipping, key)


def _put_batches(theirs: ForeignConfig, draft: FreshYaml, gpus: int) -> None:
    key = "per_device_train_batch_size"
    rows, steps = theirs.take(key, 8), theirs.take("gradient_accumulation_steps", 1)
    if not (is_int(rows) and is_int(steps)):
        raise theirs.refuse(key, "give the pairs of a GPU's batch")
    draft.put(
        "global_train_batch_size", rows * steps * gpus,
        f"{key}, gradient_accumulation_steps", f"{rows} x {steps} on {gpus} GPUs (--gpus)",
    )  # fmt: skip
    draft.put("device_train_microbatch_size", rows, key, "pairs; auto takes what fits")
    key = "per_device_eval_batch_size"
    if is_int(held_out := theirs.take(key)):
        draft.put("device_eval_batch_size", held_out, key)
    precision = "amp_bf16" if theirs.take("bf16") else "fp32"
    precision = "amp_fp16" if theirs.take("fp16") else precision
    draft.put("precision", precision, "bf16", "weights and optimizer stay in fp32")


def _put_outputs(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "output_dir"
    folder = theirs.take(key)
    named, where = (str(folder).rstrip("/"), key) if folder else ("runs/{run_name}", "")
    draft.put("algorithms.spin.store", f"{named}/self-play", where, "shared by all nodes")
    put_outputs(draft, named, where)
    if is_int(kept := theirs.take("save_total_limit")):
        draft.put("save_num_checkpoints_to_keep", kept, "save_total_limit")
    if is_int(steps := theirs.take("logging_steps")):
        draft.put("console_log_interval", f"{steps}ba", "logging_steps")
    if level := theirs.take("log_level"):
        known = level if level in ("debug", "info", "warning", "error") else "info"
        draft.put("python_log_level", known, "log_level")
    if is_int(seconds := theirs.take("ddp_timeout")):
        draft.put("dist_timeout", seconds, "ddp_timeout")
    loggers = theirs.take("report_to", [])
    loggers = [loggers] if isinstance(loggers, str) else loggers
    for name, settings in (("wandb", {"project": "spin"}), ("tensorboard", {})):
        if name in loggers:
            draft.put(f"loggers.{name}", settings, "report_to")
