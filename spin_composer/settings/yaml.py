"""Read a run's YAML and check it before anything heavy is imported or loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_composer.errors import InputError, collect_errors, format_value
from spin_composer.settings.dataset import (
    DatasetConfig,
    check_loader_keys,
    dataset_block,
    read_config,
)
from spin_composer.settings.eval_loaders import check_eval_loaders
from spin_composer.settings.fields import suggest_key
from spin_composer.settings.launch import check_folders, launch_checks
from spin_composer.settings.model import check_model_settings
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.section import Config, fill
from spin_composer.settings.spin import (
    SpinSettings,
    count_iterations,
)
from spin_composer.settings.yaml_file import load_settings

if TYPE_CHECKING:
    from omegaconf import DictConfig

MODELS = {"hf_causal_lm": "hf_spin_lm", "mpt_causal_lm": "mpt_spin_lm"}
"""llm-foundry's names of models, and those of the same models trained by SPIN."""
# Copied from llm-foundry so that a typo is found before llm-foundry is imported (20 s).
TOP_LEVEL_KEYS = frozenset(
    """
    accumulate_train_batch_on_tokens algorithms autoresume callbacks code_paths
    compile_config console_log_interval cuda_load_lazy device_eval_batch_size
    device_train_batch_size device_train_grad_accum device_train_microbatch_size
    dist_timeout eval_first eval_gauntlet eval_gauntlet_str eval_interval eval_loader
    eval_loaders eval_subset_num_batches expandable_segments flatten_metadata fsdp_config
    global_train_batch_size icl_seq_len icl_subset_num_batches icl_tasks icl_tasks_str
    load_ignore_keys load_path load_strict_model_weights load_weights_only log_config
    log_to_console loggers max_duration max_seq_len max_split_size_mb metadata model
    n_gpus only_composer_checkpoint only_hf_checkpoint optimizer precision profiler
    progress_bar python_log_level run_name save_filename save_folder save_ignore_keys
    save_interval save_latest_filename save_num_checkpoints_to_keep save_overwrite
    save_weights_only scheduler seed spin_dataloaders tokenizer tp_config train_loader
    train_subset_num_batches variables
    """.split()  # noqa: SIM905
)

_NEEDED = (
    "model", "tokenizer", "train_loader", "optimizer", "scheduler", "max_duration", "max_seq_len",
    "global_train_batch_size", "device_train_microbatch_size",
)  # fmt: skip
"""What llm-foundry's training command takes from every config, SPIN's or not."""


def to_mapping(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain dicts and lists."""
    from omegaconf import OmegaConf

    return cast("dict[str, Any]", OmegaConf.to_container(config))


def is_spin(cfg: Config) -> bool:
    """Return whether a training config describes a SPIN run."""
    sections = [cfg.get(section) for section in ("train_loader", "model")]
    names = [s.get("name") if isinstance(s, Mapping) else s for s in sections]
    return (
        "spin" in (cfg.get("algorithms") or {})
        or "spin" in names
        or any(name in MODELS.values() for name in names)
    )


def check_other_run(cfg: Config, where: object) -> None:
    """Check that a config without SPIN, such as an SFT's, has all that a training needs.

    Raises:
        InputError: It lacks something: it is neither a run of SPIN nor one of llm-foundry.
    """
    missing = [key for key in _NEEDED if cfg.get(key) is None]
    if missing:
        raise InputError(
            f"{where} lacks {', '.join(missing)}, which every training needs, and is no run of "
            "SPIN: it has no algorithms.spin. Add them; spin-composer init makes a run of SPIN of "
            "an SFT's YAML."
        )


def validate(cfg: Config) -> SpinSettings:
    """Check a SPIN run's config without loading model or data; return the algorithm's settings.

    Raises:
        InputError: Names the setting, its value and the remedy.
    """
    algorithms = cfg.get("algorithms") or {}
    if not isinstance(algorithms, Mapping) or "spin" not in algorithms:
        found = list(algorithms) if isinstance(algorithms, Mapping) else algorithms
        raise InputError(
            f"algorithms must hold spin, got {format_value(found)}. Add `algorithms: {{spin: "
            "{}}`."
        )
    settings, _, scheduler, *_ = collect_errors(
        lambda: _check_game(algorithms["spin"], cfg.get("max_duration")),
        lambda: _check_model(_section(cfg, "model"), _allows_low_precision(algorithms["spin"])),
        lambda: _check_scheduler(_section(cfg, "scheduler")),
        lambda: check_eval_loaders(cfg, _check_loader(_section(cfg, "train_loader"))),
        lambda: _section(cfg, "tokenizer"),
        lambda: _section(cfg, "optimizer"),
        lambda: _check_batch(cfg),
    )
    scheduler.epochs(settings.epochs_per_iteration)  # raises if it is too short
    if settings.save_on_signal and settings.play_only is None and not cfg.get("save_folder"):
        raise InputError(
            "algorithms.spin.save_on_signal=true has nowhere to save: save_folder is not set. "
            "Set it."
        )
    return settings


def _check_game(given: Any, max_duration: object) -> SpinSettings:
    settings = fill(SpinSettings, given or {})
    epochs = settings.epochs_per_iteration
    settings.check_iterations(count_iterations(max_duration, epochs))
    return settings


def _check_batch(cfg: Config) -> None:
    subset = cfg.get("train_subset_num_batches", -1)
    if subset != -1:
        raise InputError(
            f"train_subset_num_batches={format_value(subset)} does not reach the iterations' "
            "loaders. Remove it and set algorithms.spin.samples_per_iteration."
        )
    batch = cfg.get("global_train_batch_size")
    if not isinstance(batch, int) or batch < 1:
        raise InputError(
            "global_train_batch_size must be a positive number of pairs, got "
            f"{format_value(batch)}."
        )


def check_launch(cfg: Config, settings: SpinSettings, world_size: int) -> None:
    """Run the checks that depend on the machine: installed packages, folders, number of ranks.

    Args:
        cfg: A SPIN run's config that :func:`validate` accepts.
        settings: Its algorithm's.
        world_size: Number of processes.

    Raises:
        InputError: A line for each problem: the setting, its value and the remedy.
        OSError: A folder that the run writes to cannot be written.
    """
    collect_errors(lambda: check_keys(cfg), *launch_checks(cfg, settings, world_size))
    check_folders(cfg, settings)


def check_keys(cfg: Config) -> None:
    """Reject unknown top-level keys.

    Raises:
        InputError: A line for each, with the nearest known key.
    """
    unknown = [key for key in cfg if key not in TOP_LEVEL_KEYS]
    if unknown:
        raise InputError(
            "\n".join(
                f"{key} is not a key of llm-foundry's training config. "
                f"{suggest_key(key, sorted(TOP_LEVEL_KEYS))}"
                for key in unknown
            )
        )


def _section(cfg: Config, name: str) -> Config:
    section = cfg.get(name)
    if not isinstance(section, Mapping) or not section.get("name"):
        raise InputError(f"{name} must be a mapping with a name, got {format_value(section)}.")
    return section


def _allows_low_precision(spin: object) -> bool:
    return isinstance(spin, Mapping) and spin.get("allow_low_precision_weights") is True


def _check_model(model: Config, allow_low_precision: bool) -> None:
    name = model["name"]
    if name in MODELS:
        raise InputError(f"model.name={name} cannot play SPIN. Use {MODELS[name]}.")
    check_model_settings(model, allow_low_precision)


def _check_scheduler(scheduler: Config) -> SchedulerSettings:
    if scheduler["name"] != "spin":
        raise InputError(
            f"scheduler.name={scheduler['name']} does not restart with each iteration. Use "
            "`scheduler: {name: spin, t_warmup: 0.1dur}`."
        )
    return fill(SchedulerSettings, {key: scheduler[key] for key in scheduler if key != "name"})


def _check_loader(loader: Config) -> DatasetConfig:
    if loader["name"] != "spin":
        raise InputError(
            f"train_loader.name={loader['name']} gives no prompts to play. Use name: spin; the "
            "other keys of llm-foundry's finetuning loader stay as they are."
        )
    check_loader_keys(key for key in loader if key != "run")  # transform()'s own
    return read_config(dataset_block(loader.get("dataset"), "train_loader"))


def read_yaml(path: str | Path, overrides: Sequence[str]) -> DictConfig:
    """Return the YAML's OmegaConf config with ``key=value`` overrides merged in.

    Raises:
        InputError: If the file is missing or not a YAML mapping, or an override is malformed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # spin.x is short for algorithms.spin.x
    given = read_overrides([f"algorithms.{x}" if x.startswith("spin.") else x for x in overrides])
    config = load_settings(path)
    try:
        merged = OmegaConf.merge(config, given)
        OmegaConf.resolve(merged)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    return cast("DictConfig", merged)


def read_overrides(overrides: Sequence[str]) -> DictConfig:
    """Return the OmegaConf config of ``key=value`` settings.

    Raises:
        InputError: One is malformed, or YAML would read a part of its value as a comment.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for override in overrides:
        _check_override(override)
    try:
        return OmegaConf.from_cli(list(overrides))
    except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None


def _check_override(override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"{override!r} is not a setting. Write key=value.")
    shown = " ".join(override.split())
    remedy = f"Quote the value for YAML too: {key}=\"'...'\""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{shown}: the value is not YAML ({said}). {remedy}.") from None
    read = 0 if node is None else node.end_mark.index
    if unread := text[read:].strip():  # a pattern that begins with # would be null
        raise InputError(f"{shown}: YAML reads {unread} as a comment. {remedy}.")
