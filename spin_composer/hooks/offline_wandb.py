"""Runs whose W&B is offline or disabled: no server is asked for anything, so none is waited for."""

from __future__ import annotations

import os

from composer.loggers import Logger, WandBLogger
from composer.utils import dist

_MODES = ("offline", "disabled", "dryrun")


def log_tables_offline() -> None:
    """Let an offline W&B run log tables without asking a server, which it would wait for.

    Call it before the run's ``wandb.init``.
    """
    if os.environ.get("WANDB_MODE") in _MODES:
        os.environ.setdefault("WANDB_ALLOW_OFFLINE_ARTIFACTS", "false")


def disable_artifact_lookup(logger: Logger) -> None:
    """Have W&B loggers that reach no server answer that they hold no checkpoint; a collective.

    Looking for a checkpoint to go on from, Composer asks every logger. Without a server W&B's has
    neither entity nor project and raises a RuntimeError, where Composer expects FileNotFoundError.
    Call it at ``INIT``, when ``wandb.init`` has been called.
    """
    for destination in logger.destinations:
        if isinstance(destination, WandBLogger) and _is_offline(destination):
            destination.download_file = _not_found  # pyright: ignore[reportAttributeAccessIssue]


def _is_offline(logger: WandBLogger) -> bool:
    """Tell whether rank 0's run reaches no server; on other ranks there may be no run."""
    import wandb

    run = wandb.run
    off = run is not None and getattr(run.settings, "mode", None) in _MODES
    off = off or not (logger.entity and logger.project)
    off = off or logger.entity == logger.project == "disabled"  # Composer's, of a run that is none
    return any(dist.all_gather_object(off and logger._enabled))


def _not_found(remote_file_name: str, destination: str, *_: object, **__: object) -> None:
    del destination
    raise FileNotFoundError(f"W&B is offline, so it holds no {remote_file_name}")
