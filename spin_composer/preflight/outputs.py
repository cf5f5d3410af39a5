"""What a run will write, tried before it costs: checkpoints, exports, and their folders."""

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
    """Try what the run's checkpoints and exports will write; a collective.

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
    """Try to write where checkpoints and exports will go, if on a disk; a collective.

    Found at the first save, a folder that cannot be written would cost the work until then.

    Raises:
        OSError: The system's own, with the file's name.
    """
    savers = [c for c in state.callbacks if isinstance(c, CheckpointSaver)]
    folders = [saver.folder for saver in savers if saver.remote_uploader is None]
    folders += local_export_folders(state)

    def write() -> None:
        for name in folders:
            at = Path(format_name_with_dist_and_time(name, state.run_name, state.timestamp))
            try_to_write(at)

    from_rank_zero(write)
