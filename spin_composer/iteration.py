"""One iteration of the game: freeze, play, hand the pairs to the Trainer, and take it up again.

Functions of Composer's state and the run's :class:`Game`; the algorithm calls them at events.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from spin_composer.engines import engine_of, held_for_play, server_gap
from spin_composer.errors import StoreError
from spin_composer.loss import PairLoss
from spin_composer.self_play.engine import Engine
from spin_composer.self_play.gather import fingerprint, is_sharded, reshard
from spin_composer.self_play.offload import offloaded
from spin_composer.self_play.pair_loader import build_pair_loader, resume_at
from spin_composer.self_play.plan import PlayUnit, Unit, plan_units
from spin_composer.self_play.play import Player, PlayReport, Turns, finished_play, one_by_one, play
from spin_composer.self_play.prepare import in_training, open_iteration
from spin_composer.self_play.ranks import from_rank_zero
from spin_composer.self_play.rounds import Rounds
from spin_composer.self_play.samples import log_samples
from spin_composer.self_play.store import FORMAT_VERSION, Store
from spin_composer.settings import SpinSettings, of_iteration


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
    """Wall-clock time of this process spent in play."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """Of the iteration that is being trained."""
    noise: float = 0.0
    """Noise of scoring of this iteration, in nats per token."""


def composer_model(state: State) -> Any:
    """Return the SpinLM inside ``state.model``, which DDP may have wrapped."""
    model = state.model
    return model.module if isinstance(model, DistributedDataParallel) else model


def start_iteration(game: Game, state: State, logger: Logger) -> dict[str, float]:
    """Play iteration ``state.timestamp.iteration`` with the policy as it is, and load its pairs.

    Finishes a play that an earlier process began. A collective. Returns the play's figures.
    """
    iteration = int(state.timestamp.iteration)
    if game.settings.reset_optimizer:
        for optimizer in state.optimizers:
            optimizer.state.clear()
    started = time.perf_counter()
    units = plan_units(game.settings, game.seed, iteration, len(game.examples))
    model = composer_model(state)
    opponent = fingerprint(model)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)  # the last batch's, which nobody reads any more
    offload = offloaded(state.optimizers) if game.settings.offload_during_play else nullcontext()
    with offload, held_for_play(game.settings.generation, model):
        game.manifest = _manifest(game, state, iteration, len(units)) | {"opponent": opponent}
        from_rank_zero(lambda: _open(game, iteration, units))
        with _engine(game, state, iteration, units) as engine:
            player = _player(game, state, engine)
            report = play(player, iteration, units, _turns(game, state))
    seconds = time.perf_counter() - started
    game.play_seconds += seconds
    game.noise = report.noise
    figures = report.metrics() | {"spin/play_seconds": seconds}
    if player.server_gap is not None:
        figures |= player.server_gap.metrics()
    logger.log_metrics(figures)
    rows = game.settings.sample_table_rows
    from_rank_zero(
        lambda: log_samples(logger, model.tokenizer, game.store, iteration, len(units), rows)
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
    units = len(plan_units(game.settings, game.seed, iteration, len(game.examples)))
    # The opponent is gone; which one it was, only the checkpoint knows.
    wanted = _manifest(game, state, iteration, units) | {"opponent": game.manifest.get("opponent")}
    from_rank_zero(lambda: game.store.check_manifest(wanted))
    if game.manifest != wanted:
        fields = sorted(k for k in wanted if wanted[k] != game.manifest.get(k))
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
        kind=settings.loss,  # pyright: ignore[reportArgumentType]  (checked by the settings)
        beta=of_iteration(settings.beta, iteration),
        nll_weight=settings.nll_weight,
        length_normalised=settings.length_normalised,
    )


def _engine(
    game: Game, state: State, iteration: int, units: Sequence[Unit]
) -> AbstractContextManager[Engine]:
    missing = from_rank_zero(lambda: game.store.missing_units(iteration, len(units)))
    return engine_of(
        game.settings.generation,
        state,
        composer_model(state),
        game.examples.stop_token_id,
        game.store.folder(iteration),
        game.manifest["opponent"],
        needed=any(isinstance(units[u], PlayUnit) for u in missing),
    )


def _player(game: Game, state: State, engine: Engine) -> Player:
    @torch.no_grad()
    def score(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with get_precision_context(state.precision, state.precision_config):
            return composer_model(state).score(state.device.batch_to_device(batch))

    score_batch_size = max(1, game.settings.generation.batch_size // 2)  # a pair is two sequences
    gap = server_gap(game.settings.generation, state, engine)
    return Player(game.store, engine, score, game.examples, game.seed, score_batch_size, gap)


def _turns(game: Game, state: State) -> Turns:
    model = composer_model(state)
    if game.settings.generation.engine == "server" and is_sharded(model):
        return Rounds(state.device.tensor_to_device, lambda: reshard(model))
    return one_by_one


def _open(game: Game, iteration: int, units: Sequence[Unit]) -> None:
    """Open the iteration's folder, and check those of the iterations replayed."""
    open_iteration(game.store, game.manifest, units, game.examples, game.settings.repair)
    same = ("data", "tokenizer", "stop_token_id", "seed")
    for earlier in range(max(0, iteration - game.settings.replay), iteration):
        wanted = game.store.manifest(earlier) | {name: game.manifest[name] for name in same}
        game.store.check_manifest(wanted)


def _manifest(game: Game, state: State, iteration: int, num_units: int) -> dict[str, Any]:
    """Return what an iteration's play depends on, the opponent excepted."""
    settings = game.settings
    return {
        "format_version": FORMAT_VERSION,
        "iteration": iteration,
        "seed": game.seed,
        "num_units": num_units,
        "unit_size": settings.unit_size,
        "samples_per_iteration": settings.samples_per_iteration,
        "replay": settings.replay,
        "generation": settings.generation.of_samples(),
        "precision": str(state.precision),
        "num_examples": len(game.examples),
        "data": game.examples.fingerprint,
        "tokenizer": tokenizer_fingerprint(composer_model(state).tokenizer),
        "stop_token_id": game.examples.stop_token_id,
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
