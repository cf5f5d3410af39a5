"""The checkpoint that a run goes on from: of self-play, and with every weight that is trained."""

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
    """Refuse to go on from the checkpoint of another training, at ``AFTER_LOAD``.

    Its clock would have the run resumed in the midst of a game that was never played.

    Args:
        state: After a checkpoint was loaded, if one was.
        restored: It held the algorithm's state.

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
    """Have the names of trained parameters noted that a checkpoint, loaded next, lacks.

    Returns:
        Filled while it is loaded. Composer itself resumes from a checkpoint that lacks weights
        without a word.
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
    """Refuse to go on from a checkpoint that lacks weights which are trained; a collective.

    Before the first batch they are the base model's in any case: a warning then.

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
        "start anew with another run_name and other folders."
    )
