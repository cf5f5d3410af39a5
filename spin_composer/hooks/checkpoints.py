"""Repair of a killed run's save folder before the Trainer reads it."""

from __future__ import annotations

from pathlib import Path

from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import format_name_with_dist

from spin_composer.distributed import from_rank_zero
from spin_composer.save_folder import name_pattern, repair_folder, require_readable


def repair_checkpoints(state: State) -> None:
    """Set aside partial checkpoints in the save folder, and repair ``latest``; a collective.

    Call it at ``BEFORE_LOAD``: after that the Trainer looks for the checkpoint to resume. Does
    nothing if checkpoints are saved to an object store, whose objects are atomic.

    Raises:
        InputError: If the newest checkpoint is sharded and the run reads full ones, or vice versa.
    """
    saver = next((c for c in state.callbacks if isinstance(c, CheckpointSaver)), None)
    if saver is None or saver.remote_uploader is not None or saver.latest_filename is None:
        return
    folder = Path(format_name_with_dist(saver.folder, state.run_name))
    name = str(saver.filename.filename)
    full = name_pattern(name, state.run_name)
    sharded = state.fsdp_sharded_state_dict_enabled
    if sharded:
        assert state.fsdp_config is not None
        name = str(state.fsdp_config.sharded_ckpt_prefix_dir)
    latest = format_name_with_dist(str(saver.latest_filename.filename), state.run_name)
    pattern = name_pattern(name, state.run_name)
    if not saver.overwrite:
        from_rank_zero(lambda: require_readable(folder, full, sharded))
    from_rank_zero(lambda: repair_folder(folder, pattern, folder / latest))
