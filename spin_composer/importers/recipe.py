"""A recipe of the alignment handbook's kind, as uclaml/SPIN's, as a SPIN YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml, put_outputs
from spin_composer.importers.recipe_keys import EXPLAINED, REFUSED
from spin_composer.importers.recipe_training import put_adapters, put_optimizer
from spin_composer.importers.sharding import put_sharding
from spin_composer.settings.fields import is_int, is_number

TRAINER = "the recipe"
ITERATIONS, NEW_TOKENS, GPUS = 3, 256, 8
"""What uclaml/SPIN's scripts and not its recipe say: T, the tokens of a response, the processes."""
_LOSSES = {"sigmoid": "logistic", "hinge": "hinge", "ipo": "squared"}
_LOGGERS: dict[str, dict[str, str]] = {"wandb": {"project": "spin"}, "tensorboard": {}}
_EVALUATIONS = ("no", "steps", "epoch")
_PAIR = "each iteration's own: real rows are read, responses are generated here"
_MOST = "every row is read once: write a mixture as a data set of its own, and name that"


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
    key = next((key for key in ("run_name", "hub_model_id") if theirs.take(key)), "")
    name = theirs.take(key) if key else Path(where).stem
    draft = FreshYaml(where, str(name).rpartition("/")[2], key, theirs.values)
    _put_model(theirs, draft, gpus)
    _put_data(theirs, draft)
    _put_game(theirs, draft, iterations)
    put_optimizer(theirs, draft)
    _put_batches(theirs, draft, gpus)
    key = "gradient_checkpointing"
    put_sharding(theirs, draft, gpus, key, bool(theirs.take(key)))
    _put_outputs(theirs, draft)
    theirs.explain_rest(draft, EXPLAINED)
    draft.require_valid()
    return draft


def _put_model(theirs: ForeignConfig, draft: FreshYaml, gpus: int) -> None:
    key, longest = theirs.take_first("max_length", "max_seq_length")
    if not is_int(longest):
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
    key, attention = theirs.take_first("attn_implementation", "use_flash_attention_2")
    if attention is True:
        attention = "flash_attention_2"
    why = "sdpa needs no package" if attention == "flash_attention_2" else ""
    draft.put("model.attn_implementation", attention or "sdpa", key, why)
    draft.put(
        "model.trust_remote_code", bool(theirs.take("trust_remote_code")), "trust_remote_code"
    )
    put_adapters(theirs, draft)
    key = "tokenizer_name_or_path"
    tokenizer = theirs.take(key)
    draft.put(
        "tokenizer.name",
        tokenizer or model,
        key if tokenizer else "",
        "" if tokenizer else "the model's",
    )
    draft.yaml.set("tokenizer.kwargs.model_max_length", "${max_seq_len}")


def _put_data(theirs: ForeignConfig, draft: FreshYaml) -> None:
    name, trained, held_out, keys = _data_set(theirs)
    draft.yaml.set("train_loader.name", "spin")
    dataset, details = _dataset(theirs, name, trained)
    draft.put("train_loader.dataset", dataset, ", ".join([*keys, *details]), _PAIR)
    evaluations = ("eval_strategy", "evaluation_strategy")
    key, given = theirs.take_first(*evaluations)
    # Unquoted, `no` is false in a YAML.
    strategy = "no" if given is False else theirs.take_one_of(key, _EVALUATIONS, "no")
    if held_out is None or not theirs.take("do_eval", strategy != "no"):
        why = "there are no held-out rows" if held_out is None else "do_eval is off"
        for unused in ("do_eval", key, "eval_steps"):
            theirs.explain(unused, why)
        return
    draft.yaml.set("eval_loader.name", "spin")
    dataset, _ = _dataset(theirs, name, held_out)
    draft.put("eval_loader.dataset", dataset, f"{keys[-1]}, do_eval")
    _put_interval(theirs, draft, key, strategy)


def _put_interval(theirs: ForeignConfig, draft: FreshYaml, key: str, strategy: str) -> None:
    """Put how often held-out rows are evaluated; the trainer counts steps or shares of the run."""
    if strategy == "no":
        draft.put("eval_interval", "1iter", key, "once, after the training (do_eval)")
    elif strategy == "epoch":
        draft.put("eval_interval", "1ep", key)
    else:
        counted = "logging_steps" if theirs.values.get("eval_steps") is None else "eval_steps"
        steps = theirs.take(counted, 500)  # TrainingArguments' default
        if is_int(steps) and steps > 0:
            draft.put("eval_interval", f"{steps}ba", f"{key}, {counted}")
        else:
            draft.put("eval_interval", "1ep", f"{key}, {counted}", "100ba counts in batches")
        return
    theirs.explain("eval_steps", f"counts only with {key}: steps")


def _data_set(theirs: ForeignConfig) -> tuple[str, str, str | None, list[str]]:
    """Return the data set, its split to train on, the held-out one, and the keys that name them."""
    mixer = theirs.take("dataset_mixer")
    if mixer is None and theirs.values.get("dataset_name") is not None:
        keys = ["dataset_name", "dataset_train_split", "dataset_test_split"]
        name, trained = theirs.take(keys[0]), theirs.take(keys[1], "train")
        return str(name), str(trained), theirs.take(keys[2]), keys
    if not isinstance(mixer, dict) or not mixer:
        raise theirs.refuse("dataset_mixer", "name a data set, in dataset_mixer or dataset_name")
    if len(mixer) > 1:
        raise theirs.refuse("dataset_mixer", _one_data_set(list(map(str, mixer))))
    ((name, share),) = mixer.items()
    splits = theirs.take_texts("dataset_splits", ["train", "test"])
    held_out = [split for split in splits if split.startswith(("test", "eval", "valid"))]
    trained = [split for split in splits if split not in held_out]
    if len(trained) != 1 or len(held_out) > 1:
        raise theirs.refuse("dataset_splits", "give one split to train on and at most one held out")
    part = trained[0] if share == 1 else f"{trained[0]}[:{_percent(theirs, name, share)}%]"
    return str(name), part, next(iter(held_out), None), ["dataset_mixer", "dataset_splits"]


def _one_data_set(names: list[str]) -> str:
    """Return how to get along with one data set of several."""
    if len({re.sub(r"\d+$", "", name) for name in names}) > 1:
        return _MOST
    return (  # config_iter1.yaml of uclaml/SPIN and so on
        "they hold the same real rows beside two iterations' responses, which algorithms.spin."
        f"replay: 1, the default, mixes here: add '~dataset_mixer.{names[0]}' to the command"
    )


def _percent(theirs: ForeignConfig, name: object, share: Any) -> int:
    """Return a share in whole percents, the only ones that `datasets` reads."""
    if is_number(share) and 0 < share < 1:
        percent = round(100 * share)
        if percent and abs(percent - 100 * share) < 1e-9:
            return percent
    raise theirs.refuse(
        "dataset_mixer", "its share must be 1.0 or whole percents (0.05), or give a number of "
        f"rows: '~dataset_mixer' dataset_name={name} 'dataset_train_split=train[:5000]'"
    )  # fmt: skip


def _dataset(theirs: ForeignConfig, name: str, split: str) -> tuple[dict[str, Any], list[str]]:
    """Return a loader's dataset, and the keys that its details are of."""
    dataset: dict[str, Any] = {"hf_name": name, "split": split, "max_seq_len": "${max_seq_len}"}
    if (most := theirs.take_count("max_prompt_length")) is not None:
        dataset |= {"max_prompt_len": most, "truncate_prompt": "left"}
    if subset := theirs.take("dataset_config"):
        dataset["hf_kwargs"] = {"name": subset}
    key, _ = theirs.take_first("preprocessing_num_workers", "dataset_num_proc")
    if (processes := theirs.take_count(key)) is not None:
        dataset["num_proc"] = processes
    return dataset, ["max_prompt_length", "dataset_config", key]


def _put_game(theirs: ForeignConfig, draft: FreshYaml, iterations: int) -> None:
    where = "algorithms.spin"
    draft.put("max_duration", f"{iterations}iter", "", "a recipe is one iteration: --iterations")
    key = "num_train_epochs"
    epochs = theirs.take(key, 3)
    if not is_number(epochs) or int(epochs) != epochs or epochs < 1:
        raise theirs.refuse(key, "SPIN counts whole epochs")
    draft.put(f"{where}.iteration_length", f"{int(epochs)}ep", key)
    draft.put(f"{where}.beta", theirs.take("beta", 0.1), "beta", "one number, or one per iteration")
    key = "loss_type"
    loss = theirs.take_one_of(key, _LOSSES, "sigmoid", f", or set {where}.loss by hand")
    draft.put(f"{where}.loss", _LOSSES[loss], key)
    if loss == "ipo":
        draft.put(f"{where}.length_normalised", True, key, "TRL's ipo averages over tokens")
    draft.put(f"{where}.generation.max_new_tokens", NEW_TOKENS, "", "as uclaml/SPIN's generate.py")
    key = "max_grad_norm"
    clip = theirs.take_number(key, 1.0)
    if clip > 0:
        clipping = {"clipping_type": "norm", "clipping_threshold": clip}
        draft.put("algorithms.gradient_clipping", clipping, key)
    else:
        theirs.explain(key, "gradients are not clipped")


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
    if (held_out := theirs.take_count(key)) is not None:
        draft.put("device_eval_batch_size", held_out, key)
    precision = "amp_bf16" if theirs.take("bf16") else "fp32"
    precision = "amp_fp16" if theirs.take("fp16") else precision
    draft.put("precision", precision, "bf16, fp16", "weights and optimizer stay in fp32")


def _put_outputs(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "output_dir"
    folder = theirs.take(key)
    named, where = (str(folder).rstrip("/"), key) if folder else ("runs/{run_name}", "")
    draft.put("algorithms.spin.store", f"{named}/self-play", where, "shared by all nodes")
    put_outputs(draft, named, where)
    if (kept := theirs.take_count("save_total_limit", 0) or 0) > 0:
        draft.put("save_num_checkpoints_to_keep", kept, "save_total_limit")
    else:
        theirs.explain("save_total_limit", "all checkpoints are kept")
    steps = theirs.take("logging_steps")
    if is_int(steps) and steps > 0:
        draft.put("console_log_interval", f"{steps}ba", "logging_steps")
    else:
        theirs.explain("logging_steps", "console_log_interval counts batches (10ba)")
    if level := theirs.take("log_level"):
        known = level if level in ("debug", "info", "warning", "error") else "info"
        draft.put("python_log_level", known, "log_level")
    if (seconds := theirs.take_count("ddp_timeout")) is not None:
        draft.put("dist_timeout", seconds, "ddp_timeout")
    key = "report_to"
    loggers = theirs.take_texts(key)
    others = [name for name in loggers if name not in (*_LOGGERS, "none")]
    why = f"add loggers.NAME for {', '.join(others)} by hand" if others else ""
    for name in loggers:
        if name in _LOGGERS:
            draft.put(f"loggers.{name}", _LOGGERS[name], key, why)
    theirs.explain(key, why or "no logger is added")
