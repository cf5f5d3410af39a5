"""Checks of a YAML against the machine, before anything is imported: can this run start?

Nothing here loads a library, a model or data; each problem is reported in one line.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from spin_composer.errors import InputError, format_value
from spin_composer.extras import missing_peft, require_judge
from spin_composer.save_folder import try_to_write
from spin_composer.settings.fields import is_int, is_number, suggest_key
from spin_composer.settings.judge import JUDGE, JUDGE_SECTION, JudgeSettings
from spin_composer.settings.model import (
    META_LOADS_NOTHING,
    NO_FLASH_ATTENTION,
    lora_on_output_layer,
    mpt_refusal,
    mpt_runs_on,
)
from spin_composer.settings.section import Config, fill
from spin_composer.settings.spin import SpinSettings

_INTERVAL = re.compile(r"[\d_]+(\.\d*)?(e-?\d+)?\s*(iter|ep|ba|sp|tok|dur|sec)", re.IGNORECASE)
_PRECISIONS = ("fp32", "amp_fp16", "amp_bf16", "amp_fp8")
_OF_TOKENIZERS = ("token", "vocab", "merges", "piece", "bpe", "tekken", ".model", ".gguf", ".py")
"""Parts of the names of files that tokenizers are read from."""
_HYBRID = ("HYBRID_SHARD", "_HYBRID_SHARD_ZERO2")
_OUTPUT_LAYERS = ("lm_head", "embed_out", "output_layer")
EVALUATIONS = ("eval_loader", "eval_loaders", "icl_tasks", "icl_tasks_str")
EXPORTERS = frozenset({"hf_checkpointer", "hf_exporter"})
"""Names of the callbacks that export Hugging Face folders: llm-foundry's and SPIN's."""

Problems = Iterator[str]


def launch_checks(
    cfg: Config, settings: SpinSettings, world_size: int
) -> list[Callable[[], object]]:
    """Return the checks to run at the start of a SPIN run; each raises an InputError.

    Args:
        cfg: A config that ``config.validate`` accepts.
        settings: Its algorithm's.
        world_size: Number of processes.
    """
    found: list[Problems] = [
        _names(cfg),
        _batches(cfg, world_size),
        _evaluation(cfg),
        _intervals(cfg),
        _swapped_data(cfg),
        _model(cfg, world_size),
        _sharding(cfg, world_size),
        _adapters(cfg["model"].get("peft_config")),
        _judge(cfg),
        _loaded(cfg),
        _engine(cfg, settings),
    ]
    return [lambda problems=problems: _raise(problems) for problems in found]


def _raise(problems: Problems) -> None:
    lines = list(problems)
    if lines:
        raise InputError("\n".join(lines))


def check_folders(cfg: Config, settings: SpinSettings) -> None:
    """Check that the run's folders are writable (store, checkpoints, exports), once per node.

    Raises:
        OSError: The system's own, with the file's name.
    """
    if (os.environ.get("LOCAL_RANK") or "0") != "0":
        return
    callbacks = cfg.get("callbacks") or {}
    exports = [(callbacks.get(name) or {}).get("save_folder") for name in sorted(EXPORTERS)]
    name = str(cfg.get("run_name") or "")
    for place in (settings.store, cfg.get("save_folder"), *exports):
        if isinstance(place, str) and place and "://" not in place:
            try_to_write(Path(place.replace("{run_name}", name)))


def _names(cfg: Config) -> Problems:
    names = {
        "tokenizer.name": cfg["tokenizer"]["name"],
        "model.pretrained_model_name_or_path": cfg["model"].get("pretrained_model_name_or_path"),
    }
    for where, name in names.items():
        local = isinstance(name, str) and (name.startswith((".", "/", "~")) or name.count("/") > 1)
        if local and not Path(name).expanduser().exists():
            yield f"{where}={name} does not exist. Give a folder or a Hub name."
    folder = Path(str(names["tokenizer.name"])).expanduser()
    files = [path.name.lower() for path in folder.iterdir()] if folder.is_dir() else []
    # transformers 5 would make an empty tokenizer of some, and say nothing of the folder of others.
    if folder.is_dir() and not any(part in file for file in files for part in _OF_TOKENIZERS):
        yield (
            f"tokenizer.name={folder} is a folder without a tokenizer's files. Save the model's "
            "there (tokenizer.save_pretrained), or name another."
        )


def _batches(cfg: Config, world_size: int) -> Problems:
    batch = cfg["global_train_batch_size"]
    if batch % world_size:
        yield (
            f"global_train_batch_size={batch} is not a multiple of the {world_size} ranks. Set it "
            f"to {max(1, batch // world_size) * world_size}, or start another number of ranks."
        )
    micro = cfg.get("device_train_microbatch_size", "auto")
    if micro != "auto" and not (is_int(micro) and micro > 0):
        yield (
            f"device_train_microbatch_size must be a positive number of pairs, or auto, got "
            f"{format_value(micro)}."
        )
    rows = cfg.get("device_eval_batch_size", 1)
    if rows != "auto" and not (is_number(rows) and rows > 0):
        yield f"device_eval_batch_size must be a positive number of rows, got {format_value(rows)}."
    longest = cfg.get("max_seq_len")
    if not is_int(longest) or longest < 1:
        yield (
            f"max_seq_len must be a positive number of tokens, got {format_value(longest)}. "
            "llm-foundry asks for it; write what train_loader.dataset has."
        )


def _evaluation(cfg: Config) -> Problems:
    if cfg.get("eval_first") and not any(cfg.get(key) for key in EVALUATIONS):
        yield (
            "eval_first=true, and there is nothing to evaluate. Add an eval_loader (name: spin, "
            "with held-out rows), or remove eval_first: the run then has no held-out metric."
        )


def _swapped_data(cfg: Config) -> Problems:
    for name in sorted({"curriculum_learning", "dataset_swap"} & set(cfg.get("callbacks") or {})):
        yield (
            f"callbacks.{name} changes the training data, which in SPIN are each iteration's "
            "pairs; it also removes shared memory that other runs use. Remove it."
        )


def _intervals(cfg: Config) -> Problems:
    given = {key: cfg.get(key) for key in ("save_interval", "eval_interval")}
    for name, callback in (cfg.get("callbacks") or {}).items():
        if isinstance(callback, Mapping):
            given[f"callbacks.{name}.save_interval"] = callback.get("save_interval")
    for where, interval in given.items():
        ok = interval is None or is_int(interval)
        if not ok and not (isinstance(interval, str) and _INTERVAL.fullmatch(interval)):
            yield f"{where} must be like 1iter, 1ep, 100ba or 0.5dur, got {format_value(interval)}."
    precision = cfg.get("precision")
    if precision is not None and precision not in _PRECISIONS:
        yield (
            f"precision={format_value(precision)} is not known. "
            f"{suggest_key(precision, _PRECISIONS)}"
        )


def _model(cfg: Config, world_size: int) -> Problems:
    model = cfg["model"]
    init, whole = model.get("init_device"), world_size == 1 or not cfg.get("fsdp_config")
    if world_size == 1 and init == "mixed":
        yield (
            "model.init_device=mixed needs FSDP, which one process does not use. Start several "
            "ranks (composer -n 8 -m spin_composer.train ...) or set model.init_device=cpu."
        )
    # Without FSDP llm-foundry takes cpu in place of meta.
    named = "pretrained_model_name_or_path" in model
    if init == "meta" and not whole and named and model.get("pretrained", True):
        yield f"{META_LOADS_NOTHING}."
    version = importlib.metadata.version("transformers")
    if str(model.get("name")).startswith("mpt_") and not mpt_runs_on(version):
        yield mpt_refusal(f"model.name={model['name']}", version)
    asks = model.get("use_flash_attention_2") or model.get("attn_implementation")
    if asks in (True, "flash_attention_2") and importlib.util.find_spec("flash_attn") is None:
        yield f"model asks for flash_attention_2, {NO_FLASH_ATTENTION}"


def _sharding(cfg: Config, world_size: int) -> Problems:
    fsdp = cfg.get("fsdp_config")
    if world_size == 1 or not isinstance(fsdp, Mapping):
        return
    where = "fsdp_config.data_parallel_replicate_degree"
    replicas, shards = fsdp.get(where.partition(".")[2]), fsdp.get("data_parallel_shard_degree", -1)
    strategy = fsdp.get("sharding_strategy")
    if replicas is None and strategy in _HYBRID and fsdp.get("process_group") is None:
        yield (
            f"fsdp_config.sharding_strategy={strategy} does not say how many replicas of the model "
            f"there are. Set {where}, for example to the number of nodes."
        )
    degrees = (1 if replicas is None else replicas, shards)
    if not all(is_int(degree) and (degree > 0 or degree == -1) for degree in degrees):
        yield (
            f"{where} and data_parallel_shard_degree must be positive numbers of ranks, or -1 for "
            f"what the other leaves, got {format_value(replicas)} and {format_value(shards)}."
        )
        return
    product = abs(degrees[0] * degrees[1])
    if degrees == (-1, -1) or (world_size % product if -1 in degrees else world_size != product):
        yield (
            f"{where}={replicas} and data_parallel_shard_degree={shards} do not make the "
            f"{world_size} ranks: their product must, or set one of them to -1."
        )


def _adapters(peft: object) -> Problems:
    if peft is None:
        return
    if not isinstance(peft, Mapping):
        yield f"model.peft_config must be a mapping, got {format_value(peft)}."
        return
    missing = missing_peft("model.peft_config")
    if missing is not None:
        yield missing
    for key, wanted in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        if str(peft.get(key, "")).upper() != wanted:
            yield f"model.peft_config.{key} must be {wanted}, got {format_value(peft.get(key))}."
    for key, least in (("r", 1), ("lora_alpha", 0)):
        value = peft.get(key)
        if value is not None and not (is_number(value) and value >= least):
            yield f"model.peft_config.{key} must be a number >= {least}, got {format_value(value)}."
    targets = peft.get("target_modules")
    for layer in _OUTPUT_LAYERS:
        if targets == layer or (isinstance(targets, list) and layer in targets):
            yield lora_on_output_layer(layer)


def _judge(cfg: Config) -> Problems:
    callbacks = cfg.get("callbacks") or {}
    if JUDGE not in callbacks:
        return
    try:
        settings = fill(JudgeSettings, callbacks[JUDGE] or {})
        require_judge(JUDGE_SECTION)
    except InputError as error:
        yield str(error)
        return
    loaders = cfg.get("eval_loader") or cfg.get("eval_loaders") or []
    loaders = loaders if isinstance(loaders, list) else [loaders]
    spin = any(isinstance(loader, Mapping) and loader.get("name") == "spin" for loader in loaders)
    if settings.dataset is None and not spin:
        yield (
            f"{JUDGE_SECTION} has no held-out rows: the run has no eval_loader with name: spin. "
            f"Add one, or set {JUDGE_SECTION}.dataset."
        )


def _loaded(cfg: Config) -> Problems:
    path, folder = cfg.get("load_path"), cfg.get("save_folder")
    if not isinstance(path, str) or "://" in path or "{" in path or Path(path).exists():
        return
    if folder and "://" not in str(folder):  # a run that goes on reads its own checkpoint instead
        at = Path(str(folder).replace("{run_name}", str(cfg.get("run_name") or "")))
        if cfg.get("autoresume") is not False and at.is_dir() and any(at.iterdir()):
            return
    yield f"load_path={path} does not exist. Give a checkpoint's file or folder."


def _engine(cfg: Config, settings: SpinSettings) -> Problems:
    section = settings.generation.engine_section
    if section is not None:
        yield from section.launch_problems(cfg)
