"""Checks of the loaded checkpoint: it is of a SPIN run, and has all trained weights."""

from __future__ import annotations

import logging
from typing import Any

from composer.core import State
from composer.utils import dist

from spin_composer.errors import OTHER_WEIGHTS, InputError
from spin_composer.model.trained import trainable_names
from spin_composer.preflight.trainable import first_names

log = logging.getLogger(__name__)


def check_is_self_play(state: State, restored: bool) -> None:
    """Reject a checkpoint of another kind of training, at ``AFTER_LOAD``.

    Its clock would resume the run in the middle of an iteration that was never played.

    Args:
        state: Composer's state after loading.
        restored: The checkpoint had the algorithm's state.

    Raises:
        InputError: Names the key that takes its weights only.
    """
    t = state.timestamp
    if not restored and int(t.batch):
        raise InputError(
            f"load_path: the checkpoint stands at epoch {int(t.epoch)}, batch {int(t.batch)} of a "
            "training that was not by self-play. Set load_weights_only: true to begin with its "
            "weights. (Without a load_path it lies in save_folder: give the run one of its own.)"
        )


def track_missing_weights(state: State) -> set[str]:
    """Record which trained parameters the checkpoint lacks that is loaded next.

    Returns:
        A set that is filled during loading. Composer itself silently resumes from a checkpoint that
        lacks weights.
    """
    missing: set[str] = set()
    load = state.load_model_state

    def tracking_load(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        held = state_dict["model"]
        if held is not None:
            missing.update(trainable_names(state.model) - set(held))
        load(state_dict, *args, **kwargs)

    state.load_model_state = tracking_load
    return missing


def check_restored(state: State, missing: set[str] | None) -> None:
    """Reject a checkpoint that lacks trained weights; a collective.

    Before the first batch it is only a warning: they are the base model's weights anyway.

    Raises:
        InputError: Names the weights.
    """
    lacking = sorted({name for names in dist.all_gather_object(missing) for name in names or ()})
    if not lacking:
        return
    which = f"the checkpoint lacks {len(lacking)} of the trained weights"
    which += f" ({first_names(lacking)})"
    if int(state.timestamp.batch) == 0:
        if dist.get_global_rank() == 0:
            log.warning(f"{which}: they are the base model's.")
        return
    raise InputError(
        f"{which}: {OTHER_WEIGHTS}, and the run cannot go on as it was. Train the same weights, or "
        "start over with another run_name and other folders."
    )
