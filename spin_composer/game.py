"""One iteration of self-play: plan it, play it and load its pairs, or resume it.

The algorithm calls :class:`Game` at Composer's events. The engine and the store are used through
their interfaces only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from composer.core import State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch.utils.data import DataLoader

from spin_composer import startup
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.microbatches import TokenBudget
from spin_composer.data.pairs import Pair, PairBatch
from spin_composer.distributed import from_rank_zero
from spin_composer.engines.base import Generator, NoGenerator, Opponent, make_engine
from spin_composer.errors import EnvironmentFailure, InputError, PlayDone, StoreError
from spin_composer.fsdp import gathered, is_sharded, reshard
from spin_composer.hooks.sample_table import SampleTable
from spin_composer.hooks.time_left import TimeLeft
from spin_composer.loss import PairLoss, loss_parameters
from spin_composer.model.fingerprint import fingerprint
from spin_composer.model.unwrap import composer_model
from spin_composer.play.ahead import run_ahead
from spin_composer.play.degenerate import duplicate_check_for
from spin_composer.play.iteration import (
    IterationPlan,
    RunContext,
    build_manifest,
    existing_manifest,
    plan_iteration,
    require_same_play,
)
from spin_composer.play.lockstep import Lockstep
from spin_composer.play.metrics import PlayReport
from spin_composer.play.plan import too_few_units_warning
from spin_composer.play.player import Player, Schedule, finish_play, make_units, run_independently
from spin_composer.play.prepare import resume_remedy
from spin_composer.report.spans import union_seconds
from spin_composer.settings.spin import LayoutName, SpinSettings, value_for_iteration
from spin_composer.store.base import RESUME_AT_START, Store
from spin_composer.store.manifest import FIXED_AT_START, Manifest, differing_fields, manifest_value
from spin_composer.store.pair_loader import build_pair_loader, resume_at

log = logging.getLogger(__name__)

_CPU_FULL = "DefaultCPUAllocator: can't allocate memory"
"""torch's message if CPU memory is exhausted; it raises a plain RuntimeError."""


class Game:
    """The state of self-play across iterations, and the steps of one iteration.

    Args:
        settings: The algorithm's settings.
        seed: Seed of play and of the order of pairs.
        store: The store of pairs.
        examples: The SFT set.
        sft_loader: The Trainer's original loader; its dataset is ``examples``.
        verify_lock: Raises if another run has taken over the store.
    """

    def __init__(
        self,
        settings: SpinSettings,
        seed: int,
        store: Store,
        examples: ExampleDataset,
        sft_loader: DataLoader[Example],
        verify_lock: Callable[[], None] = lambda: None,
    ):
        self.settings = settings
        self.seed = seed
        self.store = store
        self.examples = examples
        self.sft_loader = sft_loader
        self.verify_lock = verify_lock
        self.engine = make_engine(settings.generation)
        self.play_seconds = 0.0
        """Wall-clock time of play, including that of earlier processes."""
        self.earlier_play_seconds = 0.0
        """The part of it that earlier processes spent on this iteration."""
        self.manifest: Manifest = {}
        """Manifest of the iteration that is being trained."""
        self.noise = 0.0
        """Noise of scoring of this iteration, in nats per token."""
        self.time_left = TimeLeft()

    def layout_so_far(self, state: State) -> LayoutName | None:
        """Return the layout of an iteration that has begun, None before there is one; a collective.

        A run goes on as it began: sums of another layout are rounded otherwise.
        """
        iteration = int(state.timestamp.iteration)
        found = self.manifest or from_rank_zero(
            lambda: existing_manifest(self.store, self.settings, iteration)
        )
        return manifest_value(found, "layout") if found else None

    def start_iteration(self, state: State, logger: Logger) -> dict[str, float]:
        """Play iteration ``state.timestamp.iteration`` with the current policy; load its pairs.

        Finishes a play that an earlier process has started. A collective.

        Returns:
            The metrics of play.

        Raises:
            PlayDone: At the end of a play-only job (``settings.play_only``).
        """
        self.time_left.start_iteration(int(state.timestamp.iteration))
        if self.settings.reset_optimizer:
            for optimizer in state.optimizers:
                optimizer.state.clear()
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)  # frees the last batch's gradients
        started, began = time.perf_counter(), time.time()
        plan = self._plan(state)
        self.manifest = plan.manifest
        self._play(plan, state)
        if self.settings.play_only is not None:
            made, wanted = len(plan.missing), len(plan.wanted)
            left = " The last one joins responses of the others: the run makes it." * plan.left
            raise PlayDone(
                f"iteration {plan.iteration}: {made} units made, {wanted - made - plan.left} "
                f"existed, of {wanted} requested; it has {len(plan.units)}.{left}"
            )
        report = finish_play(self.store, plan.iteration, len(plan.units), verified=plan.verified)
        self.earlier_play_seconds = union_seconds(report.spans, until=began)
        self.time_left.add_earlier_play(self.earlier_play_seconds)
        seconds = self.earlier_play_seconds + time.perf_counter() - started
        self.play_seconds += seconds
        report = replace(report, batch_size=self.global_batch_size, seconds=seconds)
        if report.left_out_pairs and dist.get_global_rank() == 0:
            log.warning(
                f"iteration {plan.iteration}: each epoch trains "
                f"{report.pairs - report.left_out_pairs} of the {report.pairs} pairs; "
                f"{report.left_out_pairs}, fewer than a batch, are left out, a different set in "
                "each epoch."
            )
        figures = report.metrics()
        logger.log_metrics(figures)
        self._sample_table().begin(state, logger)
        self._load_pairs(state, plan.iteration, report)
        return figures

    @startup.within("store")
    def resume_iteration(self, state: State) -> None:
        """Resume training in the middle of an iteration, whose play is complete in the store.

        Raises:
            StoreError: If store, checkpoint and this run's settings do not match.
        """
        t = state.timestamp
        iteration, batch, sample = int(t.iteration), int(t.batch_in_epoch), int(t.sample_in_epoch)
        if sample != batch * self.global_batch_size:
            raise InputError(
                f"global_train_batch_size must be {sample // batch} until the epoch's end, as when "
                f"its {batch} batches were trained, got {self.global_batch_size}: pairs would be "
                "left out or trained twice. Set it back."
            )
        # The opponent is not available; the checkpoint has its fingerprint and how it played.
        known = {
            name: manifest_value(self.manifest, name) for name in ("opponent", *FIXED_AT_START)
        }
        from_rank_zero(lambda: self.store.manifest(iteration))  # raises if it is missing
        found = from_rank_zero(lambda: existing_manifest(self.store, self.settings, iteration))
        manifest, units = build_manifest(self.store, self._run_context(state), iteration, found)
        wanted = manifest | known
        from_rank_zero(lambda: self.store.check_manifest(wanted))
        if fields := differing_fields(self.manifest, wanted):
            raise StoreError(
                f"the checkpoint was trained on another play of iteration {iteration}: it differs "
                f"in {', '.join(fields)}. Give the settings of that run, or {RESUME_AT_START}"
            )
        remedy = resume_remedy(iteration, self.settings.epochs_per_iteration)
        report = finish_play(self.store, iteration, len(units), remedy)
        loader = self._load_pairs(state, iteration, report)
        resume_at(
            loader,
            self.seed,
            iteration,
            epoch=int(t.epoch_in_iteration),
            sample=sample,
            num_nodes=dist.get_world_size() // dist.get_local_world_size(),
        )

    # --- play -------------------------------------------------------------------------------

    def _plan(self, state: State) -> IterationPlan:
        model = composer_model(state)
        plan = plan_iteration(
            self.store,
            self._run_context(state),
            int(state.timestamp.iteration),
            fingerprint(model),
            self.engine.merges_adapters(model),
        )
        to_make = [plan.units[unit] for unit in plan.wanted]
        said = too_few_units_warning(to_make, dist.get_world_size())
        if said and dist.get_global_rank() == 0:
            log.warning(f"iteration {plan.iteration}: {said}")
        return plan

    def _run_context(self, state: State) -> RunContext:
        return RunContext(
            self.settings,
            self.seed,
            self.examples,
            composer_model(state).tokenizer,
            str(state.precision),
            self.engine.manifest_fields(),
            composer_model(state).layout.name,
        )

    def _play(self, plan: IterationPlan, state: State) -> None:
        """Make the missing units, on all ranks together."""
        model = composer_model(state)
        whole = gathered(model) if self.engine.needs_whole_model and plan.missing else nullcontext()
        is_whole_run = self.settings.play_only is None
        with (
            self._explain_out_of_memory(),
            whole,
            self._generator(plan, state) as generator,
        ):
            player = self._player(plan, state, generator)
            make_units(
                player,
                plan,
                self._schedule(state),
                lambda: self.store.open_iteration(plan.manifest, replace=is_whole_run),
            )

    def _generator(self, plan: IterationPlan, state: State) -> AbstractContextManager[Generator]:
        if not plan.has_prompts:
            return nullcontext(NoGenerator())
        merge = plan.manifest["merged"]
        if merge is None:  # no adapters, or a manifest of a version without the field
            merge = self.engine.merges_adapters(composer_model(state))
        opponent = Opponent(
            model=composer_model(state),
            stop_token_id=self.examples.stop_token_id,
            fingerprint=plan.manifest["opponent"],
            precision=state.precision,
            autocast=partial(get_precision_context, state.precision, state.precision_config),
            device=_device(state),
            folder=self._engine_folder(plan),
            merge_adapters=bool(merge),
        )
        return self.engine.open(opponent)

    def _engine_folder(self, plan: IterationPlan) -> Path:
        """Return the folder of the engine's files; concurrent jobs have different ones."""
        folder = self.store.folder(plan.iteration)
        if self.settings.play_only is None:
            return folder
        return folder / f"job-{plan.wanted.start}-{plan.wanted.stop}"

    def _player(self, plan: IterationPlan, state: State, generator: Generator) -> Player:
        model, stop = composer_model(state), self.examples.stop_token_id

        @torch.no_grad()
        def score(batch: PairBatch) -> torch.Tensor:
            with get_precision_context(state.precision, state.precision_config):
                return model.score(state.device.batch_to_device(batch))

        # A job does not hold the lock: the run may have started the iteration differently.
        is_job = self.settings.play_only is not None
        unchanged = partial(require_same_play, self.store, plan.manifest)
        return Player(
            self.store,
            generator,
            score,
            self.examples,
            self.seed,
            score_batch_size=max(1, self.settings.generation.batch_size // 2),  # pairs, not rows
            is_duplicate=duplicate_check_for(
                manifest_value(plan.manifest, "degenerate"), model.tokenizer, stop
            ),
            before_commit=unchanged if is_job else lambda: None,
            verify_lock=self.verify_lock,
        )

    def _schedule(self, state: State) -> Schedule:
        model = composer_model(state)
        if self.engine.needs_whole_model:
            return run_independently
        if is_sharded(model):
            return Lockstep(state.device.tensor_to_device, lambda: reshard(model))
        return run_ahead

    @contextmanager
    def _explain_out_of_memory(self) -> Iterator[None]:
        """Convert torch's out-of-memory error to one that names the remedy.

        Raises:
            EnvironmentFailure: If this rank's device runs out of memory.
        """
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not (isinstance(error, torch.OutOfMemoryError) or _CPU_FULL in str(error)):
                raise
            said = str(error).split(". ")[0]
            raise EnvironmentFailure(
                f"memory is full in play ({said}). {self.engine.memory_remedy()}"
            ) from error

    # --- training ---------------------------------------------------------------------------

    def finish_samples(self, state: State) -> None:
        """Complete the table of samples of the iteration that has just ended; a collective."""
        self._sample_table().finish(state)

    def _sample_table(self) -> SampleTable:
        return SampleTable(
            self.store,
            self.manifest["iteration"],
            self.manifest["num_units"],
            self.settings.sample_table_rows,
        )

    def _load_pairs(self, state: State, iteration: int, report: PlayReport) -> DataLoader[Pair]:
        self.noise = report.noise
        tokens, model = self.settings.device_train_microbatch_tokens, composer_model(state)
        loader = build_pair_loader(
            self.store,
            iteration,
            report.pairs,
            self.sft_loader,
            dist.get_world_size(),
            self.seed,
            None if tokens is None else TokenBudget(tokens, model.layout.name),
        )
        state.set_dataloader(loader, "train")
        state.train_dataloader = loader
        model.pair_loss = pair_loss(self.settings, iteration)
        return loader

    @property
    def global_batch_size(self) -> int:
        """Pairs of an optimizer step, over all ranks."""
        assert self.sft_loader.batch_size is not None
        return self.sft_loader.batch_size * dist.get_world_size()


def pair_loss(settings: SpinSettings, iteration: int) -> PairLoss:
    """Return the loss of an iteration."""
    given = {
        name: value_for_iteration(getattr(settings, name), iteration)
        for name in loss_parameters(settings.loss)
    }
    return PairLoss(
        kind=settings.loss,
        beta=given.pop("beta", None),
        nll_weight=settings.nll_weight,
        length_normalised=settings.length_normalised,
        parameters=given,
    )


def check_play_only(settings: SpinSettings, state: State) -> None:
    """Check that a play-only job has loaded the opponent of its iteration.

    Raises:
        InputError: Names the position of the loaded checkpoint.
    """
    t = state.timestamp
    at = (int(t.iteration), int(t.epoch_in_iteration), int(t.batch_in_epoch))
    if settings.play_only is not None and at != (settings.play_only.iteration, 0, 0):
        raise InputError(
            f"iteration {settings.play_only.iteration} is to be played, but the loaded checkpoint "
            f"is at iteration {at[0]}, epoch {at[1]}, batch {at[2]}. Give load_path=... of the "
            "checkpoint at that iteration's start."
        )


def _device(state: State) -> torch.device:
    if state.device.name == "gpu":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
