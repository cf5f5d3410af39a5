"""What must hold before a run and an iteration: checked, not assumed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.utils import dist, format_name_with_dist, format_name_with_dist_and_time
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.loader import examples_of
from spin_composer.data.pairs import Pair, collate_pairs
from spin_composer.errors import InputError, shown
from spin_composer.exports import exporters
from spin_composer.preflight import check_first_batch_is_whole, check_rows, model_facts
from spin_composer.rehearsal import rehearse_export, rehearse_metadata, rehearse_tokenizer
from spin_composer.save_folder import mend_folder, name_pattern, require_readable, try_to_write
from spin_composer.self_play.ranks import from_rank_zero
from spin_composer.settings import SpinSettings

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
    examples, facts = examples_of(loader), model_facts(model.config)
    check_rows(examples, facts, settings.generation.max_new_tokens)
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
    if not (found or saves or settings.generation.engine == "server"):
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
            f"spin.generation has {given}: responses are then not samples of the policy, and "
            "SPIN's fixed point is not the data's distribution."
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
    folders = [
        callback.folder if isinstance(callback, CheckpointSaver) else callback.save_dir_format_str
        for callback in state.callbacks
        if (isinstance(callback, CheckpointSaver) and callback.remote_uploader is None)
        or (isinstance(callback, HuggingFaceCheckpointer) and callback.remote_ud is None)
    ]

    def write() -> None:
        for name in folders:
            at = Path(format_name_with_dist_and_time(name, state.run_name, state.timestamp))
            try_to_write(at)

    from_rank_zero(write)


def mend_checkpoints(state: State) -> None:
    """Set aside what a kill left partial in the save folder, and mend ``latest``; a collective.

    Call it at ``BEFORE_LOAD``: after that the Trainer looks for the checkpoint to resume. Does
    nothing where checkpoints go to an object store, whose objects are whole or absent.

    Raises:
        InputError: If the newest checkpoint is sharded and the run reads full ones, or conversely.
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
    from_rank_zero(lambda: mend_folder(folder, pattern, folder / latest))


def evaluate_at_iteration_ends(state: State, epochs_per_iteration: int) -> None:
    """Make every evaluator also run at each iteration's end, whatever its interval."""
    for evaluator in state.evaluators:
        interval = evaluator.eval_interval
        if getattr(interval, "spin_iteration_ends", False):
            continue

        def due(state: State, event: Event, interval: Any = interval) -> bool:
            ends = int(state.timestamp.epoch_in_iteration) >= epochs_per_iteration
            return interval(state, event) or (event == Event.EPOCH_END and ends)

        due.spin_iteration_ends = True  # pyright: ignore[reportFunctionMemberAccess]
        evaluator.eval_interval = due


def save_at_iteration_ends(
    state: State,
    epochs_per_iteration: int,
    also: Callable[[Event], bool] = lambda event: False,
) -> None:
    """Save checkpoints at each iteration's end, and where ``also`` says so, whatever the interval.

    That of the iteration's last batch or epoch is put off until then: a run resumed from it would
    have to do again, or would miss, what is done at an iteration's end.

    Resumed from within the iteration before, a run on GPUs would come to slightly other weights
    than the opponent whose play is in the store, and be refused.
    """
    # llm-foundry puts its Hugging Face export behind the checkpoint: killed in between, a run would
    # resume from the iteration's end and never write that folder.
    state.callbacks[:] = sorted(state.callbacks, key=lambda c: isinstance(c, CheckpointSaver))
    for saver in state.callbacks:
        if not isinstance(saver, CheckpointSaver):
            continue
        interval = saver.save_interval
        if getattr(interval, "spin_iteration_ends", False):
            continue

        def due(state: State, event: Event, interval: Any = interval) -> bool:
            wanted = interval(state, event) or also(event)
            return event == Event.ITERATION_CHECKPOINT or (
                wanted and not _ends_iteration(state, event, epochs_per_iteration)
            )

        due.spin_iteration_ends = True  # pyright: ignore[reportFunctionMemberAccess]
        saver.save_interval = due


def _ends_iteration(state: State, event: Event, epochs_per_iteration: int) -> bool:
    """Tell whether the batch or epoch that an event closes is the last of its iteration."""
    epochs = int(state.timestamp.epoch_in_iteration)
    if event == Event.BATCH_CHECKPOINT:
        assert state.dataloader_len is not None
        epochs += int(state.timestamp.batch_in_epoch) >= int(state.dataloader_len)
    return epochs >= epochs_per_iteration


def mend_gloo_average(state: State) -> None:
    """Divide FSDP2's gradients by the number of ranks where its averaging reduce-scatter sums.

    gloo's does (pytorch#162338): gradients on CPU would be too large by the world size. The
    backend is probed, so that nothing changes where it averages.
    """
    modules = [m for m in state.model.modules() if isinstance(m, FSDPModule)]
    world_size = dist.get_world_size()
    if not modules or world_size == 1:
        return
    probe = state.device.tensor_to_device(torch.ones(world_size))
    out = probe.new_empty(1)
    torch.distributed.reduce_scatter_tensor(out, probe, op=torch.distributed.ReduceOp.AVG)
    factor = float(out)
    if factor == 1.0:
        return
    if dist.get_global_rank() == 0:
        log.info(f"reduce_scatter(AVG) gives {factor:g} for a mean of 1: gradients are divided.")

    def divide(gradient: torch.Tensor) -> None:
        gradient.div_(factor)

    for module in modules:
        module.set_all_reduce_hook(divide)
