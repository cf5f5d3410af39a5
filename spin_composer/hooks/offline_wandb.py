"""Runs with W&B offline or disabled: avoid requests to its server, which would block."""

from __future__ import annotations

import os

from composer.loggers import Logger, WandBLogger
from composer.utils import dist

_MODES = ("offline", "disabled", "dryrun")


def log_tables_offline() -> None:
    """Let an offline W&B run log tables without a request to the server, which would block.

    Call it before the run's ``wandb.init``.
    """
    if os.environ.get("WANDB_MODE") in _MODES:
        os.environ.setdefault("WANDB_ALLOW_OFFLINE_ARTIFACTS", "false")


def disable_artifact_lookup(logger: Logger) -> None:
    """Make offline W&B loggers report that they have no checkpoint; a collective.

    Composer asks every logger for a checkpoint to resume. Without a server W&B's logger has neither
    entity nor project and raises a RuntimeError, where Composer expects FileNotFoundError. Call it
    at ``INIT``, after ``wandb.init``.
    """
    for destination in logger.destinations:
        if isinstance(destination, WandBLogger) and _is_offline(destination):
            destination.download_file = _not_found  # pyright: ignore[reportAttributeAccessIssue]


def _is_offline(logger: WandBLogger) -> bool:
    """Return whether rank 0's run is offline; other ranks may have no run."""
    import wandb

    run = wandb.run
    off = run is not None and getattr(run.settings, "mode", None) in _MODES
    off = off or not (logger.entity and logger.project)
    off = off or logger.entity == logger.project == "disabled"  # set by Composer
    return any(dist.all_gather_object(off and logger._enabled))


def _not_found(remote_file_name: str, destination: str, *_: object, **__: object) -> None:
    del destination
    raise FileNotFoundError(f"W&B is offline, so it holds no {remote_file_name}")
