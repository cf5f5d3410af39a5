"""The algorithm SPIN: what it does at each of Composer's events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from composer.core import Algorithm, Event, State, Time
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import reproducibility
from torch.utils.data import DataLoader

from spin_composer.data.examples import Example
from spin_composer.data.loader import examples_of
from spin_composer.distributed import from_rank_zero, on_all_ranks
from spin_composer.engines.base import engine_class, make_engine
from spin_composer.errors import InputError
from spin_composer.export.card import RunFacts
from spin_composer.export.exporters import describe_exports, exporters
from spin_composer.foundry.exporter import export_for_all_users, set_export_names
from spin_composer.fsdp import correct_gloo_average, reshard
from spin_composer.game import Game, check_play_only
from spin_composer.hooks.checkpoints import repair_checkpoints
from spin_composer.hooks.early_end import EarlyEnd
from spin_composer.hooks.finite import FiniteMonitor, is_saved_after_batch, require_finite_weights
from spin_composer.hooks.first_batch import FirstBatchMonitor
from spin_composer.hooks.intervals import (
    evaluate_at_iteration_ends,
    export_at_the_end,
    save_at_iteration_ends,
)
from spin_composer.hooks.offline_wandb import disable_artifact_lookup, log_tables_offline
from spin_composer.hooks.run_records import RunRecords
from spin_composer.hooks.start_phases import PHASES, start_phase
from spin_composer.hooks.stopping import GracefulStop
from spin_composer.hybrid_sharding import keep_degrees
from spin_composer.model.lm import SpinLM
from spin_composer.model.unwrap import composer_model
from spin_composer.preflight.checkpoint import (
    check_is_self_play,
    check_restored,
    track_missing_weights,
)
from spin_composer.preflight.held_out import warn_about_tokenization_mismatch
from spin_composer.preflight.outputs import check_writable, dry_run_outputs
from spin_composer.preflight.rows import (
    check_microbatches,
    check_rows_fit,
    longest_sequence,
    sample_tokens,
    short_pair_batch,
)
from spin_composer.preflight.sampling import warn_off_policy
from spin_composer.preflight.stop import check_stop
from spin_composer.preflight.tokenization import check_tokenize
from spin_composer.preflight.trainable import check_trainable
from spin_composer.schedule import refresh_learning_rates, require_spin_scheduler
from spin_composer.settings.section import fill
from spin_composer.settings.spin import SpinSettings, count_iterations
from spin_composer.store.lock import StoreLock
from spin_composer.store.open import open_store
from spin_composer.store.original_tokenization import find_manifest, with_original_tokenization
from spin_composer.versions import warn_about_versions


class SPIN(Algorithm):
    """Self-play fine-tuning (Chen et al., 2024, arXiv 2401.01335, algorithm 1).

    In every iteration the policy is frozen as the opponent, answers the prompts of the SFT set,
    and is then trained to distinguish the real responses from the opponent's. Runs on
    ``ITERATION_START`` (play), ``BATCH_START`` (learning rate), ``AFTER_FORWARD`` and
    ``AFTER_TRAIN_BATCH`` (the check of an iteration's first batch), ``ITERATION_END`` (history).

    Args:
        settings: The fields of :class:`~spin_composer.settings.spin.SpinSettings` by keyword.

    Raises:
        InputError: If a setting is unknown or invalid.

    Example:
        .. code-block:: python

            trainer = Trainer(
                model=HFSpinLM.from_model(model, tokenizer),
                train_dataloader=build_spin_dataloader(tokenizer, 64, dataset={...}),
                optimizers=torch.optim.RMSprop(model.parameters(), lr=5e-7),
                schedulers=SpinScheduler(t_warmup="0.1dur"),
                algorithms=[SPIN(beta=[0.1, 0.1, 5.0])],
                max_duration="3iter",
            )
            trainer.fit()
    """

    def __init__(self, **settings: Any):
        self.settings = fill(SpinSettings, settings)
        engine_class(self.settings.generation).check_settings(self.settings.generation)
        if self.settings.deterministic:
            reproducibility.configure_deterministic_mode()
        log_tables_offline()
        keep_degrees()
        self.game: Game | None = None
        self.records = RunRecords(self.settings)
        self._locks: list[StoreLock] = []
        self._saved: dict[str, Any] = {}
        self._first_batch = FirstBatchMonitor()
        self._finite = FiniteMonitor()
        self._stopping = GracefulStop(
            self.settings.save_on_signal and self.settings.play_only is None
        )
        self._early_end = EarlyEnd()
        self._missing_weights: set[str] | None = None
        self._clock = 0.0
        self._num_iterations = 0

    def match(self, event: Event, state: State) -> bool:
        """Run at the events of :attr:`HANDLERS`, and those between which a run's start is timed."""
        return event in self.HANDLERS or event in PHASES

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Handle an event."""
        with start_phase(event):
            if event in self.HANDLERS:
                getattr(self, self.HANDLERS[event])(state, logger)

    def _init(self, state: State, logger: Logger) -> None:
        warn_about_versions()
        disable_artifact_lookup(logger)
        self._early_end.watch(state)
        if not isinstance(composer_model(state), SpinLM):
            raise InputError(
                f"model must be a spin_composer model, got {type(state.model).__name__}. Use "
                "`model: {name: hf_spin_lm}` or mpt_spin_lm, or HFSpinLM.from_model(...)."
            )
        if composer_model(state).tokenizer is None:
            raise InputError("the model needs its tokenizer, got None. Give it to the model.")
        composer_model(state).add_metrics_of(self.settings.game)
        dry_run_outputs(state, self.settings, composer_model(state))
        state._iteration_length = Time.from_timestring(str(self.settings.iteration_length))

    def _before_load(self, state: State, logger: Logger) -> None:
        del logger
        epochs = self.settings.epochs_per_iteration
        self._num_iterations = count_iterations(state.max_duration, epochs)
        self.settings.check_iterations(self._num_iterations)
        warn_off_policy(self.settings)
        if state.train_dataloader is not None:  # else fit() is given it
            loader = cast("DataLoader[Example]", state.train_dataloader)
            check_rows_fit(self.settings, loader, composer_model(state))
            check_microbatches(self.settings, state, loader.batch_size or 1)
        self._missing_weights = track_missing_weights(state)
        if self.settings.play_only is None:
            self._take_locks(state)  # before changing the save folder: it may be another run's
            check_writable(state)
            repair_checkpoints(state)

    def _check_locks(self) -> None:
        for lock in self._locks:  # held on rank 0 only; if it raises, all ranks end
            lock.check()

    def _take_locks(self, state: State) -> None:
        def take() -> None:
            if not self._locks:
                store = open_store(self.settings, state.run_name)
                self._locks = [StoreLock(place) for place in store.lock_backends()]
            for lock in self._locks:
                lock.acquire(state.run_name)

        from_rank_zero(take)

    def _after_load(self, state: State, logger: Logger) -> None:
        """Set the duration in epochs, which all of Composer supports, and correct the clock."""
        del logger
        epochs = self.settings.epochs_per_iteration
        total = count_iterations(state.max_duration, epochs) * epochs
        state.max_duration = Time.from_timestring(f"{total}ep")
        # A checkpoint of an iteration's last epoch was saved before the iteration was closed.
        if int(state.timestamp.epoch_in_iteration) >= epochs:
            state.timestamp = state.timestamp.to_next_iteration()
        self._early_end.restore(state, self._saved.get("ended", {}), total)
        check_is_self_play(state, self._saved, epochs)
        check_play_only(self.settings, state)
        require_finite_weights(state)
        check_restored(state, self._missing_weights)

    def _fit_start(self, state: State, logger: Logger) -> None:
        del logger
        self._early_end.require_started(state)
        self._stopping.begin(state)
        # Composer runs algorithms in reverse order after a batch: ours, last in the list, runs
        # first and sees gradients before clipping.
        state.algorithms[:] = sorted(state.algorithms, key=lambda algorithm: algorithm is self)
        model = composer_model(state)
        # In a second fit() the Trainer has the pair loader of the previous iteration.
        loader = cast(
            "DataLoader[Example]", self.game.sft_loader if self.game else state.train_dataloader
        )
        examples_of(loader)  # raises if it is another loader
        schedule = require_spin_scheduler(state).settings
        check_rows_fit(self.settings, loader, model)
        check_microbatches(self.settings, state, loader.batch_size or 1)
        # The first evaluation leaves FSDP2's root parameters gathered; the optimizer has shards.
        reshard(model)
        low = self.settings.allow_low_precision_weights
        adapters_only = any(not exporter.merges_adapters for exporter in exporters(state))
        check_trainable(state, model, low, exports=adapters_only)
        make_engine(self.settings.generation).check(model)
        if self.settings.play_only is None:
            self._take_locks(state)  # fit() may be called again
        if self.game is None:  # else a second fit() continues after the first one
            self.game = self._new_game(state, loader)
        warn_about_tokenization_mismatch(state.evaluators, self.game.examples)
        size, iterations = self.game.global_batch_size, self._num_iterations
        self.records.open(self.game.store, state, schedule, size, iterations)
        self._attach_to_trainer(state)
        self._check_scores(state, self.game)
        if int(state.timestamp.epoch_in_iteration) or int(state.timestamp.batch_in_epoch):
            self.game.resume_iteration(state)
            self.records.resume_iteration(state)
        if self._saved.get("ended"):
            self.records.write_history()  # the run continues: remove the end reason

    def _new_game(self, state: State, loader: DataLoader[Example]) -> Game:
        """Return the game of this run, restored from its checkpoint."""
        store = on_all_ranks(lambda: open_store(self.settings, state.run_name))
        self._clock = time.perf_counter() - self._saved.get("seconds", 0.0)
        manifest, iteration = self._saved.get("manifest", {}), int(state.timestamp.iteration)
        rows, repair = examples_of(loader), self.settings.repair
        examples = with_original_tokenization(rows, store, iteration, manifest, repair)
        seed = state.rank_zero_seed if self.settings.seed is None else self.settings.seed
        game = Game(self.settings, seed, store, examples, loader, self._check_locks)
        game.play_seconds = self._saved.get("play_seconds", 0.0)
        game.manifest = manifest
        game.time_left.num_iterations = self._num_iterations
        return game

    def _attach_to_trainer(self, state: State) -> None:
        """Adapt the Trainer: intervals at iterations' ends, exports, and its loader."""
        evaluate_at_iteration_ends(state, self.settings.epochs_per_iteration)
        save_at_iteration_ends(state, self.settings.epochs_per_iteration, self._should_save)
        export_at_the_end(state)
        describe_exports(state, self._facts(state))
        export_for_all_users(state)
        set_export_names(state)
        correct_gloo_average(state)
        # The SFT loader, never trained on; Game.resume_iteration sets the pair loader's position.
        state.dataset_resumption["train"] = True
        if state.dataset_state is not None:
            state.dataset_state["train"] = None

    def _facts(self, state: State) -> RunFacts:
        """Return what the model cards of exports say of the run."""
        assert self.game is not None
        examples = self.game.examples
        return RunFacts(
            run_name=state.run_name,
            data="rows made in memory" if examples.config is None else examples.config.source,
            num_rows=len(examples), renders_chats=examples.kind == "chat",
            num_iterations=self._num_iterations,  # fit() may be called for a part of them
            settings=self.settings,
            stop_token_id=examples.stop_token_id,
            history=self.records.history.up_to,
        )  # fmt: skip

    def _check_scores(self, state: State, game: Game) -> None:
        """Check the head, and how rows are tokenized and end, by the policy's own log-probs."""
        model = composer_model(state)
        # Ordinary forward passes, layer by layer under FSDP: parameters are not gathered.
        with get_precision_context(state.precision, state.precision_config):
            model.check_head(state.device.batch_to_device(short_pair_batch(game.examples)))
            longest = longest_sequence(game.examples, self.settings.generation.max_new_tokens)
            tokens = sample_tokens(game.examples, longest)
            before = game.layout_so_far(state)
            model.choose_layout(self.settings.layout, before, tokens, longest, state.device)
            # A started run continues with its tokenization.
            store, repair = game.store, self.settings.repair
            started = from_rank_zero(lambda: find_manifest(store, 0, repair))
            if not (started or int(state.timestamp.batch)):
                assert model.tokenizer is not None  # see _init
                vocabulary, to_device = len(model.tokenizer), state.device.batch_to_device
                check_tokenize(game.examples, vocabulary, model.score, to_device)
                check_stop(game.examples, model.tokenizer, model.score, to_device)
        reshard(model)

    def _iteration_start(self, state: State, logger: Logger) -> None:
        assert self.game is not None
        self._stopping.iteration_start(state, logger)
        from_rank_zero(self._check_locks)
        set_export_names(state)
        play = self.game.start_iteration(state, logger)
        self.records.start_iteration(state, logger, play, self.game.manifest)
        self._clock -= self.game.earlier_play_seconds  # spent by earlier processes of the run
        self._first_batch.start_iteration(self.game.noise)

    def _before_dataloader(self, state: State, logger: Logger) -> None:
        self._stopping.before_dataloader(state, logger)
        self.records.steps.before_dataloader()

    def _batch_start(self, state: State, logger: Logger) -> None:
        del logger
        refresh_learning_rates(state)
        self.records.steps.batch_start(state)

    def _before_train_batch(self, state: State, logger: Logger) -> None:
        self._finite.before_train_batch(state, logger)
        self._first_batch.before_train_batch(state, logger)

    def _after_forward(self, state: State, logger: Logger) -> None:
        self._first_batch.after_forward(state, logger)

    def _after_loss(self, state: State, logger: Logger) -> None:
        self._finite.after_loss(state, logger)

    def _after_train_batch(self, state: State, logger: Logger) -> None:
        self._finite.after_train_batch(state, logger)
        self._first_batch.after_train_batch(state, logger)

    def _batch_end(self, state: State, logger: Logger) -> None:
        self._check_locks()
        self.records.add_batch(state, logger)
        self._stopping.batch_end(state, logger)

    def _batch_checkpoint(self, state: State, logger: Logger) -> None:
        if is_saved_after_batch(state):
            self._checkpoint(state, logger)

    def _checkpoint(self, state: State, logger: Logger) -> None:
        del logger
        require_finite_weights(state)
        self.records.steps.publish()

    def _eval_batch_end(self, state: State, logger: Logger) -> None:
        self._stopping.eval_batch_end(state, logger)

    def _eval_end(self, state: State, logger: Logger) -> None:
        del logger
        self.records.steps.add_evaluation(state)

    def _should_save(self, event: Event) -> bool:
        return self._stopping.should_save(event) or self._early_end.should_save(event)

    def _fit_end(self, state: State, logger: Logger) -> None:
        self._stopping.fit_end()
        if self._early_end.record:
            self.records.write_history(self._early_end.record["line"])
        self.records.close(state, logger)
        for lock in self._locks:
            lock.release()

    def _iteration_end(self, state: State, logger: Logger) -> None:
        assert self.game is not None
        self.game.finish_samples(state)
        share = self.game.play_seconds / (time.perf_counter() - self._clock)
        self.records.close_iteration(state, logger, share)

    HANDLERS: ClassVar[Mapping[Event, str]] = {
        Event.INIT: "_init",
        Event.BEFORE_LOAD: "_before_load",
        Event.AFTER_LOAD: "_after_load",
        Event.FIT_START: "_fit_start",
        Event.ITERATION_START: "_iteration_start",
        Event.BEFORE_DATALOADER: "_before_dataloader",
        Event.BATCH_START: "_batch_start",
        Event.BEFORE_TRAIN_BATCH: "_before_train_batch",
        Event.AFTER_FORWARD: "_after_forward",
        Event.AFTER_LOSS: "_after_loss",
        Event.AFTER_TRAIN_BATCH: "_after_train_batch",
        Event.BATCH_END: "_batch_end",
        Event.BATCH_CHECKPOINT: "_batch_checkpoint",
        Event.EPOCH_CHECKPOINT: "_checkpoint",
        Event.ITERATION_CHECKPOINT: "_checkpoint",
        Event.EVAL_BATCH_END: "_eval_batch_end",
        Event.EVAL_END: "_eval_end",
        Event.ITERATION_END: "_iteration_end",
        Event.FIT_END: "_fit_end",
    }
    """The handler of each of Composer's events."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a resumed run: the manifest of the current play, and the history."""
        game = self.game
        return {
            **super().state_dict(),
            "play_seconds": game.play_seconds if game else 0.0,
            "seconds": time.perf_counter() - self._clock if game else 0.0,
            "manifest": game.manifest if game else {},
            "books": self.records.state_dict(),  # as checkpoints have always named it
            "ended": self._early_end.record,
            "epochs_per_iteration": self.settings.epochs_per_iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._saved = state
        self.records.load_state_dict(state.get("books", {}))

    def __repr__(self) -> str:
        """Name the algorithm and its settings."""
        return f"SPIN({self.settings})"
