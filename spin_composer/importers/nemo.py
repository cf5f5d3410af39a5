"""NeMo-Aligner's SPIN config as a SPIN YAML: ``spin-composer import-nemo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_composer.errors import InputError
from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml, put_outputs
from spin_composer.importers.nemo_data import put_data, put_evaluation_length
from spin_composer.importers.nemo_keys import EXPLAINED, REFUSED
from spin_composer.importers.nemo_training import BATCHES, put_adapters, put_game, put_optimizer
from spin_composer.importers.sharding import put_sharding
from spin_composer.settings.fields import is_int

TRAINER = "NeMo-Aligner"
_MISSING = "???"
_PRECISIONS = {
    "bf16": "amp_bf16", "bf16-mixed": "amp_bf16", "16": "amp_fp16", "16-mixed": "amp_fp16",
    "32": "fp32", "32-true": "fp32",
}  # fmt: skip
_CONVERT = (
    "convert it by NeMo's scripts/checkpoint_converters (convert_llama_nemo_to_hf.py and its like) "
    "and give the folder: --model FOLDER"
)


def convert_nemo(
    values: dict[str, Any], where: str, model: str | None = None, tokenizer: str | None = None
) -> FreshYaml:
    """Turn a NeMo-Aligner SPIN config into a YAML of SPIN.

    Args:
        values: The config of :func:`~spin_composer.importers.read.read_config`.
        where: The file's name in messages.
        model: The SFT model as a Hugging Face folder or Hub name.
        tokenizer: Likewise; the model's if not given.

    Returns:
        The result, valid as far as it can be known without loading anything.

    Raises:
        InputError: A key is unknown, missing, or asks for what SPIN cannot do.
    """
    theirs = ForeignConfig(values, where, TRAINER)
    missing = [key for key, value in theirs.values.items() if value == _MISSING]
    missing = [
        key for key in missing if not (model and key == "pretrained_checkpoint.restore_from_path")
    ]
    if missing:
        raise InputError(
            "\n".join(
                f"{where}: {key} is not set. Add {key}=... to the command." for key in missing
            )
        )
    theirs.check_refused(REFUSED)
    draft = _named(theirs, where)
    ranks = _put_model(theirs, draft, model, tokenizer)
    put_data(theirs, draft)
    put_game(theirs, draft)
    put_optimizer(theirs, draft)
    _put_batches(theirs, draft)
    put_evaluation_length(theirs, draft, ranks)
    key = "model.activations_checkpoint_granularity"
    put_sharding(theirs, draft, ranks, key, theirs.take(key) is not None)
    _put_outputs(theirs, draft)
    theirs.explain_rest(draft, EXPLAINED)
    draft.require_valid()
    return draft


def _named(theirs: ForeignConfig, where: str) -> FreshYaml:
    for key in ("exp_manager.wandb_logger_kwargs.name", "exp_manager.name"):
        if name := theirs.take(key):
            return FreshYaml(where, str(name), key, theirs.values)
    return FreshYaml(where, Path(where).stem, "", theirs.values)


def _put_model(
    theirs: ForeignConfig, draft: FreshYaml, model: str | None, tokenizer: str | None
) -> int:
    """Put model, tokenizer and precision; return the number of GPUs."""
    key = "pretrained_checkpoint.restore_from_path"
    given = theirs.take(key)
    if model is None:
        if not given or not (Path(str(given)) / "config.json").is_file():
            raise theirs.refuse(key, f"it is no Hugging Face folder: {_CONVERT}")
        model = str(given)
    nodes = _take_positive(theirs, "trainer.num_nodes", "give the number of nodes")
    devices = _take_positive(theirs, "trainer.devices", "give the number of GPUs of a node")
    ranks = nodes * devices
    how = f"composer -n {devices} -m spin_composer.train"
    if nodes > 1:
        how = f"sbatch --nodes={nodes} yamls/slurm/spin.sbatch"
    draft.say("run_name", "trainer.num_nodes, trainer.devices", f"start it by {how} YAML")
    tokens = ("model.data.train_ds.max_seq_length", "model.encoder_seq_length")
    longest_key, longest = theirs.take_first(*tokens)
    if not is_int(longest):
        raise theirs.refuse(longest_key, "give the most tokens of a row")
    draft.put("max_seq_len", longest, longest_key)
    if (seed := theirs.take("model.seed")) is not None:
        draft.put("seed", seed, "model.seed")
    draft.yaml.set("model.name", "hf_spin_lm")
    where = key if given else ""
    draft.put("model.pretrained_model_name_or_path", model, where, "the SFT model")
    draft.yaml.set("model.init_device", "mixed" if ranks > 1 else "cpu")
    draft.yaml.set("model.attn_implementation", "sdpa")
    draft.yaml.set("model.trust_remote_code", False)
    put_adapters(theirs, draft)
    draft.yaml.set("tokenizer.name", tokenizer or model)
    draft.yaml.set("tokenizer.kwargs.model_max_length", "${max_seq_len}")
    return ranks


def _take_positive(theirs: ForeignConfig, key: str, remedy: str) -> int:
    found = theirs.take(key, 1)
    if not (is_int(found) and found > 0):
        raise theirs.refuse(key, remedy)
    return found


def _put_batches(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key, batch = theirs.take_first(*BATCHES)
    if not is_int(batch):
        raise theirs.refuse(key, "give the pairs of an optimizer step")
    draft.put("global_train_batch_size", batch, key, "pairs per optimizer step on all GPUs")
    micros = ("model.micro_batch_size", "model.data.train_ds.micro_batch_size")
    key, micro = theirs.take_first(*micros)
    if micro is not None:
        draft.put("device_train_microbatch_size", micro, key, "pairs; auto takes what fits")
    key = "model.data.validation_ds.micro_batch_size"
    if (rows := theirs.take(key)) is not None:
        draft.put("device_eval_batch_size", rows, key)
    key = "trainer.precision"
    given = str(theirs.take(key, "bf16"))
    if given not in _PRECISIONS:
        raise theirs.refuse(key, f"give one of {', '.join(_PRECISIONS)}")
    draft.put("precision", _PRECISIONS[given], key, "weights and optimizer stay in fp32")


def _put_outputs(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "exp_manager.explicit_log_dir"
    folder = theirs.take(key)
    named, where = (str(folder).rstrip("/"), key) if folder else ("runs/{run_name}", "")
    draft.put("algorithms.spin.store", f"{named}/self-play", where, "shared by all nodes")
    put_outputs(draft, named, where)
    key = "exp_manager.checkpoint_callback_params.save_top_k"
    if kept := theirs.take_count(key):
        draft.put("save_num_checkpoints_to_keep", kept, key, "the newest, not the best")
    key = "trainer.log_every_n_steps"
    if (steps := theirs.take_count(key, 0) or 0) > 0:
        draft.put("console_log_interval", f"{steps}ba", key)
    else:
        theirs.explain(key, "the console shows a progress bar")
    key = "exp_manager.create_wandb_logger"
    wandb = theirs.take_mapping("exp_manager.wandb_logger_kwargs")
    names = [f"exp_manager.wandb_logger_kwargs.{name}" for name in wandb]
    if theirs.take(key):
        draft.put("loggers.wandb", wandb, ", ".join([key, *names]))
        return
    for name in names:
        if name not in draft.named:  # of the run's name
            theirs.explain(name, f"{key} is off")
