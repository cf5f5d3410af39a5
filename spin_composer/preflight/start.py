"""What must hold before a run and an iteration: checked, not assumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import dist, format_name_with_dist_and_time
from torch.utils.data import DataLoader

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.loader import examples_of
from spin_composer.data.pairs import Pair, collate_pairs
from spin_composer.distributed import from_rank_zero
from spin_composer.engines.base import engine_class
from spin_composer.errors import InputError, shown
from spin_composer.foundry.exporter import exporters, local_export_folders
from spin_composer.pretrained.fit import check_first_batch_is_whole, check_rows
from spin_composer.pretrained.limits import model_limits
from spin_composer.pretrained.rehearsal import (
    rehearse_export,
    rehearse_metadata,
    rehearse_tokenizer,
)
from spin_composer.save_folder import try_to_write
from spin_composer.settings.spin import SpinSettings

log = logging.getLogger(__name__)

_CHECKED_TOKENS = 64


def check_fit(settings: SpinSettings, loader: DataLoader[Any], model: Any) -> None:
    """Refuse rows that the model has no positions for, or that fill no batch.

    Args:
        settings: The game's.
        loader: The SFT loader.
        model: The SpinLM.

    Raises:
        InputError: Names the numbers.
    """
    examples, limits = examples_of(loader), model_limits(model.config)
    check_rows(examples, limits, settings.generation.max_new_tokens)
    batch = (loader.batch_size or 1) * dist.get_world_size()
    check_first_batch_is_whole(examples, settings.samples_per_iteration, batch)


def rehearse(state: State, settings: SpinSettings, model: Any) -> None:
    """Try what the run's checkpoints and exports will write; a collective.

    Call it before FSDP wraps the model.

    Raises:
        InputError: Names what cannot be written, and the remedy.
    """
    found = exporters(state)
    saves = any(isinstance(c, CheckpointSaver) for c in state.callbacks)
    if not (found or saves or engine_class(settings.generation).exports_model):
        return

    def try_all() -> None:
        rehearse_metadata(model)
        for exporter in found:
            rehearse_tokenizer(model.tokenizer, exporter.transform_config(model.config))
            rehearse_export(model.model, exporter.transform_config)

    from_rank_zero(try_all)


def require_of_spin(state: State, restored: bool) -> None:
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


def warn_unfaithful(settings: SpinSettings) -> None:
    """Warn of sampling settings under which responses are not the policy's samples."""
    generation = settings.generation
    if generation.unfaithful and dist.get_global_rank() == 0:
        given = ", ".join(f"{n}={shown(getattr(generation, n))}" for n in generation.unfaithful)
        log.warning(
            f"algorithms.spin.generation has {given}: responses are then not samples of the "
            "policy, and SPIN's fixed point is not the data's distribution."
        )


def head_check_batch(examples: ExampleDataset) -> dict[str, torch.Tensor]:
    """Return a short pair batch of the first example, both sides real."""
    first = examples[0]
    response = first.response[:_CHECKED_TOKENS]
    return collate_pairs([Pair(first.prompt[-_CHECKED_TOKENS:], response, response)])


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
