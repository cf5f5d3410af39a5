"""Dry run of a run's outputs: checkpoints, exports, and their folders."""

from __future__ import annotations

from pathlib import Path

from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import format_name_with_dist_and_time

from spin_composer.distributed import from_rank_zero
from spin_composer.engines.base import engine_class
from spin_composer.export.exporters import exporters, local_export_folders
from spin_composer.model.lm import SpinLM
from spin_composer.pretrained.dry_run import dry_run_export, dry_run_metadata, dry_run_tokenizer
from spin_composer.save_folder import try_to_write
from spin_composer.settings.spin import SpinSettings


def dry_run_outputs(state: State, settings: SpinSettings, model: SpinLM) -> None:
    """Try to write what checkpoints and exports will contain; a collective.

    Call it before FSDP wraps the model.

    Raises:
        InputError: Names what cannot be written, and the remedy.
    """
    found = exporters(state)
    saves = any(isinstance(c, CheckpointSaver) for c in state.callbacks)
    if not (found or saves or engine_class(settings.generation).exports_model):
        return

    tokenizer, inner = model.tokenizer, model.model

    def try_all() -> None:
        dry_run_metadata(model)
        for exporter in found:
            dry_run_tokenizer(tokenizer, exporter.exported_config(model.config))
            dry_run_export(inner, exporter.exported_config)

    from_rank_zero(try_all)


def check_writable(state: State) -> None:
    """Check that the local folders of checkpoints and exports are writable; a collective.

    An error at the first save would lose the work until then.

    Raises:
        OSError: The system's error, with the file's name.
    """
    savers = [c for c in state.callbacks if isinstance(c, CheckpointSaver)]
    folders = [saver.folder for saver in savers if saver.remote_uploader is None]
    folders += local_export_folders(state)

    def write() -> None:
        for name in folders:
            at = Path(format_name_with_dist_and_time(name, state.run_name, state.timestamp))
            try_to_write(at)

    from_rank_zero(write)
