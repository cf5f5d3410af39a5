"""A job that only plays: ``spin-composer play YAML --iteration k --units a:b``.

It uses the run's own YAML and is started like training, on any machine, so model, data, precision
and settings are those of the run. It loads the policy from the start of the iteration, generates
the given units and exits. The training run finds the committed units in the store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_composer.errors import InputError
from spin_composer.report.outline import RunOutline, checkpoint_patterns, outline_of
from spin_composer.save_folder import Checkpoint, find_checkpoints, structure_problem
from spin_composer.settings.section import Config
from spin_composer.settings.spin import PlayOnly, SpinSettings, count_iterations
from spin_composer.settings.yaml import is_spin, read_yaml, to_mapping, validate
from spin_composer.train import train_config

_OPTIMIZER_STATE = ["state/optimizers/*"]


def play(path: str | Path, overrides: Sequence[str], iteration: int, units: str) -> None:
    """Make units of an iteration of the run of a YAML.

    Args:
        path: The run's YAML.
        overrides: ``key=value`` settings, the training command's.
        iteration: Which iteration.
        units: ``a:b``, the units from a up to, and without, b; or ``all``.

    Raises:
        PlayDone: When they are in the store; says how many were made.
        InputError: If something in the YAML or the arguments cannot work.
        StoreError: If the store is not this run's, or is damaged.
        EnvironmentFailure: If the machine does not give what the job needs.
    """
    from omegaconf import OmegaConf

    only = PlayOnly(iteration, units)
    plain = to_mapping(read_yaml(path, overrides))
    if not is_spin(plain):
        raise InputError(f"{path} is not a SPIN run's YAML: it has no algorithms.spin.")
    settings = validate(plain)
    total = count_iterations(plain["max_duration"], settings.epochs_per_iteration)
    if iteration >= total:
        raise InputError(
            f"--iteration {iteration} is out of range: {path} has {total} iterations, numbered "
            "from 0."
        )
    given = any(override.startswith("load_path=") for override in overrides)
    train_config(OmegaConf.create(job_config(plain, settings, only, str(path), given)))
    raise AssertionError("the job continued after its play")


def job_config(
    plain: Config,
    settings: SpinSettings,
    only: PlayOnly,
    where: str,
    load_path_given: bool,
) -> dict[str, Any]:
    """Return the training config of a job that only plays: no evaluation, saving or logging.

    Args:
        plain: The run's config.
        settings: Of its algorithm.
        only: What to play.
        where: The YAML's path, for messages.
        load_path_given: ``load_path`` was given on the command line and is used as it is.

    Raises:
        InputError: If the checkpoint of the iteration's start cannot be found.
    """
    algorithms = dict(plain["algorithms"])
    spin = dict(algorithms["spin"] or {})
    spin["play_only"] = {"iteration": only.iteration, "units": only.units}
    config = {**plain, "algorithms": {**algorithms, "spin": spin}}
    for name in ("eval_loader", "eval_loaders", "callbacks", "loggers", "save_folder"):
        config.pop(name, None)
    config |= {"autoresume": False, "eval_first": False}
    if only.iteration and not load_path_given:
        outline = outline_of(plain, settings, where)
        config["load_path"] = str(
            _start_checkpoint(outline, only.iteration, settings).path.absolute()
        )
    if only.iteration and settings.reset_optimizer:
        config["load_ignore_keys"] = [*(plain.get("load_ignore_keys") or []), *_OPTIMIZER_STATE]
    return config


def _start_checkpoint(outline: RunOutline, iteration: int, settings: SpinSettings) -> Checkpoint:
    """Return the checkpoint of an iteration's start."""
    epoch = iteration * settings.epochs_per_iteration
    remedy = f"Give load_path=... of the checkpoint at epoch {epoch}."
    if outline.save_folder is None:
        raise InputError(
            f"iteration {iteration} is played with the checkpoint at its start, and the YAML has "
            f"no local save_folder to look for it in. {remedy}"
        )
    found = [
        checkpoint
        for pattern in checkpoint_patterns(outline)
        for checkpoint in find_checkpoints(outline.save_folder, pattern)
        if checkpoint.counts[-1] == epoch and structure_problem(checkpoint.path) is None
    ]
    if not found:
        raise InputError(
            f"{outline.save_folder} has no whole checkpoint of epoch {epoch}, where iteration "
            f"{iteration} starts. Wait until the run has trained the iteration before, or: {remedy}"
        )
    start = min(found, key=lambda checkpoint: checkpoint.counts)  # the boundary's is the earliest
    if start.path.is_dir() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise InputError(
            f"{start.path} is sharded, and one process reads full checkpoints only. Start several: "
            "composer -n 2 -c spin-composer play ..."
        )
    return start
