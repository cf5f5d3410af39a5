"""One iteration of the game: freeze, play, hand the pairs to the Trainer, and take it up again.

Functions of Composer's state and the run's :class:`Game`; the algorithm calls them at events.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.pairs import Pair
from spin_composer.distributed import from_rank_zero
from spin_composer.engines.base import Engine
from spin_composer.engines.offload import offloaded
from spin_composer.engines.open import engine_of, held_for_play, require_room, server_gap
from spin_composer.errors import InputError, PlayDone, StoreError
from spin_composer.fsdp import is_sharded, reshard
from spin_composer.loss import PairLoss
from spin_composer.model.fingerprint import fingerprint
from spin_composer.play.degenerate import comparison_of
from spin_composer.play.lockstep import Rounds
from spin_composer.play.plan import PlayUnit, Unit, idle_ranks
from spin_composer.play.player import (
    Player,
    PlayReport,
    Turns,
    finished_play,
    make_units,
    one_by_one,
)
from spin_composer.play.prepare import check_iteration, in_training
from spin_composer.play.samples import log_samples
from spin_composer.report.spans import covered_seconds
from spin_composer.settings.spin import SpinSettings, of_iteration
from spin_composer.store.local import Store
from spin_composer.store.manifest import RECORDED, differing, meaning
from spin_composer.store.pair_loader import build_pair_loader, resume_at
from spin_composer.terms import Terms, terms_of

log = logging.getLogger(__name__)


@dataclass
class Game:
    """What a run keeps from iteration to iteration."""

    settings: SpinSettings
    seed: int
    store: Store
    examples: ExampleDataset
    sft_loader: DataLoader[Any]
    """The loader that came with the Trainer; its dataset is ``examples``."""
    play_seconds: float = 0.0
    """Wall-clock time spent in play, by the processes before this one too."""
    earlier_play_seconds: float = 0.0
    """Of them in this iteration, before this process came to it."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """Of the iteration that is being trained."""
    noise: float = 0.0
    """Noise of scoring of this iteration, in nats per token."""
    still_ours: Callable[[], None] = lambda: None
    """Raises if the store became another run's."""


def composer_model(state: State) -> Any:
    """Return the SpinLM inside ``state.model``, which DDP may have wrapped."""
    model = state.model
    return model.module if isinstance(model, DistributedDataParallel) else model


def start_iteration(game: Game, state: State, logger: Logger) -> dict[str, float]:
    """Play iteration ``state.timestamp.iteration`` with the policy as it is, and load its pairs.

    Finishes a play that an earlier process began. A collective. Returns the play's figures.

    Raises:
        PlayDone: In a job that only plays (``settings.play_only``), when it has.
    """
    iteration = int(state.timestamp.iteration)
    if game.settings.reset_optimizer:
        for optimizer in state.optimizers:
            optimizer.state.clear()
    started, began = time.perf_counter(), time.time()
    model = composer_model(state)
    terms = terms_of(game, state, iteration, model.tokenizer)
    units = terms.units
    to_make = [units[unit] for unit in _wanted(game, len(units))]
    if dist.get_global_rank() == 0 and (warning := idle_ranks(to_make, dist.get_world_size())):
        log.warning(f"iteration {iteration}: {warning}")
    opponent = fingerprint(model)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)  # the last batch's, which nobody reads any more
    offload = offloaded(state.optimizers) if game.settings.offload_during_play else nullcontext()
    with offload:
        merge = _room(game, state, terms)
        with held_for_play(game.settings.generation, model):
            game.manifest = terms.manifest | {"opponent": opponent}
            if not terms.begun:
                game.manifest["merged"] = merge
            from_rank_zero(lambda: _check(game, terms))
            with _engine(game, state, iteration, units, bool(merge)) as engine:
                wanted = _wanted(game, len(units))
                player = _player(game, state, engine)
                turns = _turns(game, state)
                made = make_units(player, iteration, units, wanted, turns, lambda: _begin(game))
    if game.settings.play_only is not None:
        raise PlayDone(
            f"iteration {iteration}: {len(made)} units made, {len(wanted) - len(made)} were there, "
            f"of the {len(wanted)} asked for; it has {len(units)}."
        )
    report = finished_play(game.store, iteration, len(units))
    game.earlier_play_seconds = covered_seconds(report.spans, until=began)
    seconds = game.earlier_play_seconds + time.perf_counter() - started
    game.play_seconds += seconds
    game.noise = report.noise
    left_out = report.pairs % _global_batch_size(game)
    figures = report.metrics() | {
        "spin/pairs": report.pairs - left_out,
        "spin/left_out_pairs": left_out,
        "spin/play_seconds": seconds,
    }
    if left_out and dist.get_global_rank() == 0:
        log.warning(
            f"iteration {iteration}: each epoch trains {report.pairs - left_out} of the "
            f"{report.pairs} pairs; {left_out}, fewer than a batch, are left out, others in each."
        )
    logger.log_metrics(figures)
    rows, step = game.settings.sample_table_rows, int(state.timestamp.batch)
    from_rank_zero(
        lambda: log_samples(logger, model.tokenizer, game.store, iteration, len(units), rows, step)
    )
    _load_pairs(game, state, iteration, report)
    return figures


def resume_iteration(game: Game, state: State) -> None:
    """Take up the training of an iteration in its midst: its play is in the store, whole.

    Raises:
        StoreError: If store, checkpoint and this run's settings are not of the same play.
    """
    t = state.timestamp
    iteration = int(t.iteration)
    # The opponent is gone; which one it was, and how it played, only the checkpoint knows.
    known = {name: meaning(game.manifest, name) for name in ("opponent", *RECORDED)}
    from_rank_zero(lambda: game.store.manifest(iteration))  # or it says that it is missing
    terms = terms_of(game, state, iteration, composer_model(state).tokenizer)
    wanted, units = terms.manifest | known, len(terms.units)
    from_rank_zero(lambda: game.store.check_manifest(wanted))
    if fields := differing(game.manifest, wanted):
        raise StoreError(
            f"the checkpoint was trained on another play of iteration {iteration}: it differs in "
            f"{', '.join(fields)}. Give the settings of that run, or resume from the checkpoint "
            "at the iteration's start."
        )
    remedy = in_training(iteration, game.settings.epochs_per_iteration)
    report = finished_play(game.store, iteration, units, remedy)
    game.noise = report.noise
    loader = _load_pairs(game, state, iteration, report)
    resume_at(
        loader,
        game.seed,
        iteration,
        epoch=int(t.epoch_in_iteration),
        sample=int(t.batch_in_epoch) * _global_batch_size(game),
        num_nodes=dist.get_world_size() // dist.get_local_world_size(),
    )


def _global_batch_size(game: Game) -> int:
    assert game.sft_loader.batch_size is not None
    return game.sft_loader.batch_size * dist.get_world_size()


def _load_pairs(game: Game, state: State, iteration: int, report: PlayReport) -> DataLoader[Pair]:
    loader = build_pair_loader(
        game.store, iteration, report.pairs, game.sft_loader, dist.get_world_size(), game.seed
    )
    state.set_dataloader(loader, "train")
    state.train_dataloader = loader
    composer_model(state).pair_loss = pair_loss(game.settings, iteration)
    return loader


def pair_loss(settings: SpinSettings, iteration: int) -> PairLoss:
    """Return the loss of an iteration."""
    return PairLoss(
        kind=settings.loss,
        beta=of_iteration(settings.beta, iteration),
        nll_weight=settings.nll_weight,
        length_normalised=settings.length_normalised,
    )


def _room(game: Game, state: State, terms: Terms) -> bool | None:
    """Check that what is left to generate can be; see :func:`require_room`.

    Returns:
        Whether LoRA adapters are merged meanwhile: as its manifest says if the iteration has
        begun, so that all of its units are made alike. None where there are none to merge.
    """
    recorded = terms.manifest.get("merged")
    # A repair may set units aside after this.
    if (
        terms.begun
        and not game.settings.repair
        and not _is_prompt_left(game, terms.manifest["iteration"], terms.units)
    ):
        return recorded
    longest = game.examples.max_prompt_tokens
    return require_room(game.settings.generation, state, composer_model(state), longest, recorded)


def _is_prompt_left(game: Game, iteration: int, units: Sequence[Unit]) -> bool:
    wanted = _wanted(game, len(units))
    missing = from_rank_zero(
        lambda: set(wanted).intersection(game.store.missing_units(iteration, len(units)))
    )
    return any(isinstance(units[u], PlayUnit) for u in missing)


def _engine(
    game: Game, state: State, iteration: int, units: Sequence[Unit], merge: bool
) -> AbstractContextManager[Engine]:
    return engine_of(
        game.settings.generation,
        state,
        composer_model(state),
        game.examples.stop_token_id,
        _engine_folder(game, iteration, _wanted(game, len(units))),
        game.manifest["opponent"],
        needed=_is_prompt_left(game, iteration, units),
        merge=merge,
    )


def _engine_folder(game: Game, iteration: int, wanted: range) -> Path:
    """Return where a server's files go: jobs that play at the same time have one each."""
    folder = game.store.folder(iteration)
    if game.settings.play_only is None or game.settings.generation.engine == "hf":
        return folder
    folder = folder / f"job-{wanted.start}-{wanted.stop}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _player(game: Game, state: State, engine: Engine) -> Player:
    @torch.no_grad()
    def score(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with get_precision_context(state.precision, state.precision_config):
            return composer_model(state).score(state.device.batch_to_device(batch))

    # A job does not hold the lock: a run may have begun the iteration in another way meanwhile.
    alone = game.settings.play_only is None
    before_commit = None if alone else lambda: game.store.check_manifest(game.manifest)
    score_batch_size = max(1, game.settings.generation.batch_size // 2)  # a pair is two sequences
    gap = server_gap(game.settings.generation, state, engine)
    tokenizer, stop = composer_model(state).tokenizer, game.examples.stop_token_id
    same = comparison_of(meaning(game.manifest, "degenerate"), tokenizer, stop)
    return Player(
        game.store,
        engine,
        score,
        game.examples,
        game.seed,
        score_batch_size,
        gap,
        same=same,
        before_commit=before_commit,
        still_ours=game.still_ours,
    )


def _turns(game: Game, state: State) -> Turns:
    model = composer_model(state)
    if game.settings.generation.engine == "server" and is_sharded(model):
        return Rounds(state.device.tensor_to_device, lambda: reshard(model))
    return one_by_one


def _check(game: Game, terms: Terms) -> None:
    """Check all that can refuse the iteration's play, before anything of it is written."""
    # A job that only plays leaves the damage to the run, whose lock it does not hold.
    repair = game.settings.repair and game.settings.play_only is None
    to_make = _wanted(game, len(terms.units))
    check_iteration(game.store, game.manifest, terms.units, game.examples, repair, to_make)


def _begin(game: Game) -> None:
    game.store.open_iteration(game.manifest, replace=game.settings.play_only is None)


def _wanted(game: Game, num_units: int) -> range:
    """Return the units of an iteration that this run, or job, is to make."""
    only = game.settings.play_only
    return range(num_units) if only is None else only.of(num_units)


def check_play_only(settings: SpinSettings, state: State) -> None:
    """Check that a job that only plays has the opponent of the iteration that it plays.

    Raises:
        InputError: Names where the loaded checkpoint stands.
    """
    t = state.timestamp
    at = (int(t.iteration), int(t.epoch_in_iteration), int(t.batch_in_epoch))
    if settings.play_only is not None and at != (settings.play_only.iteration, 0, 0):
        raise InputError(
            f"iteration {settings.play_only.iteration} is to be played, but what was loaded stands "
            f"in iteration {at[0]}, epoch {at[1]}, batch {at[2]}. Give load_path=... of the "
            "checkpoint at that iteration's start."
        )
