"""A Composer callback that judges every iteration, ends a game that does not help, marks the best.

What it decides is a function of the rows that are kept in the run's folder, so a run that is killed
and resumed decides the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from composer.core import Callback, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist, format_name_with_dist_and_time

from spin_composer.algorithm import SPIN
from spin_composer.data.examples import ExampleDataset
from spin_composer.data.held_out import HeldOutRows
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import InputError
from spin_composer.export.exporters import exporters
from spin_composer.extras import require_judge
from spin_composer.game import Game
from spin_composer.judge.best import best_below, mark_best
from spin_composer.judge.held_out import JudgedRows, choose_rows, read_held_out
from spin_composer.judge.kept import (
    START,
    Kept,
    find_kept,
    kept_name,
    make_key,
    read_kept,
    way_of_judging,
    write_kept,
)
from spin_composer.judge.measures import Measures
from spin_composer.judge.result import Result, judge
from spin_composer.judge.sampling import JudgedModel, sample_rows, sampling_settings
from spin_composer.model.fingerprint import fingerprint
from spin_composer.model.unwrap import composer_model
from spin_composer.pretrained.limits import model_limits
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.judge import JUDGE_SECTION, JudgeSettings
from spin_composer.settings.section import fill
from spin_composer.store.layout import JUDGE, iteration_name

log = logging.getLogger(__name__)

PREFIX = "judge/"
"""Of the names of its metrics."""


class SpinJudge(Callback):
    """Judges the policy on held-out rows: the start model, and after each iteration.

    Answers are sampled by the policy itself (engine ``hf``, whatever plays), whose parameters are
    gathered once. Rank 0 measures them (docs/judge.md), logs ``judge/...``, and keeps
    ``judge.json`` in the run's store. The run ends early after ``patience`` iterations in a row
    that did not help, and the best of the exports is marked by a link ``best``.

    Args:
        settings: The fields of :class:`~spin_composer.settings.judge.JudgeSettings` by keyword.

    Raises:
        InputError: If a setting is unknown or invalid, or the extra ``judge`` is not installed.

    Example:
        .. code-block:: python

            Trainer(..., callbacks=[SpinJudge(rows=200), HuggingFaceExporter("runs/my-run/hf")])
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = fill(JudgeSettings, settings)
        require_judge(JUDGE_SECTION)
        self.stop_reason = ""
        """Why the run ends early, for its log."""
        self._rows: JudgedRows | None = None
        self._held_out = ""
        self._result: Result | None = None
        self._measures: dict[str, Measures] = {}
        self._places: list[Sequence[str]] = []
        self._noted_batch = -1
        self._noted: dict[int, str] = {}
        self._at_start: dict[str, int] = {}
        """Sizes that the start model was judged with, of a run that had begun."""

    def init(self, state: State, logger: Logger) -> None:
        """Check the run, and stand after the exporters, so that an export is there to be marked.

        Raises:
            InputError: If it is not a run of SPIN.
        """
        del logger
        if not any(isinstance(algorithm, SPIN) for algorithm in state.algorithms):
            raise InputError(
                f"{JUDGE_SECTION} judges a run of SPIN, and the run has no such algorithm. Add it, "
                "or remove the callback."
            )
        state.callbacks[:] = sorted(state.callbacks, key=lambda callback: callback is self)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Judge the start model; of a run that had begun, check what is kept; a collective.

        Raises:
            InputError: There are no held-out rows, or too few; what is kept was judged in another
                way, or is gone.
        """
        examples, self._held_out = self._held_out_examples(state)
        model = composer_model(state)
        if int(state.timestamp.batch):
            self._at_start = from_rank_zero(lambda: self._sizes_at_start(state))
        sampling = self._sampling(state)
        limits = model_limits(model.config)
        self._rows = choose_rows(examples, self.settings, sampling.max_new_tokens, limits)
        if int(state.timestamp.batch):
            done = int(state.timestamp.iteration)
            from_rank_zero(lambda: self._kept_models(state, done))
            return
        kept = self._sample(state, START)
        if dist.get_global_rank() == 0:
            log.info("The start model is judged on %d responses.", len(kept.rows))

    def iteration_end(self, state: State, logger: Logger) -> None:
        """Judge the policy that the iteration has trained; a collective."""
        began = time.perf_counter()
        iteration = int(state.timestamp.iteration) - 1
        self._sample(state, iteration_name(iteration))
        metrics, since_best = from_rank_zero(lambda: self._judge(state, iteration))
        logger.log_metrics({**metrics, f"{PREFIX}seconds": time.perf_counter() - began})
        patience = self.settings.patience
        elapsed = state.get_elapsed_duration()
        ends = elapsed is not None and elapsed >= 1.0
        if patience is not None and since_best >= patience and not ends:
            self.stop_reason = f"the last {since_best} iterations did not help; docs/judge.md"
            state.stop_training()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Note what is exported."""
        del logger
        self._note_exports(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Note what is exported."""
        del logger
        self._note_exports(state, Event.EPOCH_CHECKPOINT)

    def iteration_checkpoint(self, state: State, logger: Logger) -> None:
        """Mark the best of the exports, the last of which was just written."""
        del logger
        if self._result is None or dist.get_global_rank() != 0:  # rank 0 has the result
            return
        for exporter in exporters(state):
            folder = format_name_with_dist_and_time(
                exporter.folder, state.run_name, state.timestamp
            )
            best = best_below(folder, self._places, self._result.verdict.helped)
            mark_best(exporter, folder, best)

    def _note_exports(self, state: State, event: Event) -> list[str]:
        """Note what exporters write at an event; return what they have of the policy of now.

        Returns:
            Each one's folder, or name in the object store; empty where it has no export of it.
        """
        batch, iteration = int(state.timestamp.batch), int(state.timestamp.iteration)
        if batch != self._noted_batch:
            self._noted_batch, self._noted = batch, {}
        found = exporters(state)
        for number, exporter in enumerate(found):
            if number not in self._noted and exporter.check_interval(state, event):
                trained = iteration - (event == Event.ITERATION_CHECKPOINT)
                self._noted[number] = exporter.place(state, trained)
        return [self._noted.get(number, "") for number in range(len(found))]

    def _held_out_examples(self, state: State) -> tuple[ExampleDataset, str]:
        if self.settings.dataset is not None:
            return read_held_out(self.settings.dataset, composer_model(state).tokenizer)
        for evaluator in state.evaluators:
            rows = getattr(evaluator.dataloader.dataloader, "dataset", None)
            if isinstance(rows, HeldOutRows):
                config = rows.examples.config
                return rows.examples, config.source if config else evaluator.label
        raise InputError(
            f"{JUDGE_SECTION} has no held-out rows: the run has no evaluation by SPIN's loader. "
            f"Add one (build_spin_evaluator; eval_loader with name: spin), or set {JUDGE_SECTION}."
            "dataset."
        )

    def _game(self, state: State) -> Game:
        games = [one.game for one in state.algorithms if isinstance(one, SPIN)]
        assert games[0] is not None, "SPIN makes it at FIT_START, before callbacks run"
        return games[0]

    def _sampling(self, state: State) -> GenerationSettings:
        # The run's own may be lowered while it runs, where memory does not suffice for play.
        kept = {name: getattr(self.settings, name) or x for name, x in self._at_start.items()}
        settings = replace(self.settings, **kept)
        return sampling_settings(settings, self._game(state).settings.generation)

    def _sizes_at_start(self, state: State) -> dict[str, int]:
        kept = self._find(state, START)
        names = ("batch_size", "max_new_tokens")
        return {} if kept is None else {name: kept.key[name] for name in names if name in kept.key}

    def _sample(self, state: State, name: str) -> Kept:
        """Return the policy's rows, sampled unless they are kept already; a collective."""
        assert self._rows is not None, "set at FIT_START"
        store, sampling, seed = self._game(state).store, self._sampling(state), self.settings.seed
        model = composer_model(state)
        key = make_key(fingerprint(model), self._rows, sampling, seed)
        kept = from_rank_zero(lambda: self._find(state, name))
        if kept is None or kept.key != key:
            for optimizer in state.optimizers:
                optimizer.zero_grad(set_to_none=True)  # frees the last batch's gradients
            autocast = partial(get_precision_context, state.precision, state.precision_config)
            judged = JudgedModel(model, state.device, autocast)
            rows = sample_rows(judged, self._rows, sampling, seed)
            # Of an iteration: it has ended, and its exports are written next.
            ended = Event.ITERATION_CHECKPOINT
            places = [] if name == START else self._note_exports(state, ended)
            export = next(filter(None, places), "")
            written = kept = Kept(key, rows, export=export, places=places)

            def write() -> None:
                write_kept(store.root / kept_name(name), written)
                store.publish(kept_name(name))

            from_rank_zero(write)
        return kept

    def _find(self, state: State, name: str) -> Kept | None:
        store = self._game(state).store
        path = store.root / kept_name(name)
        if path.exists():
            return find_kept(path)
        return read_kept(store.read_published(kept_name(name)), path)

    def _kept_models(self, state: State, iterations: int) -> list[Kept]:
        """Return what is kept of the start model and of the first iterations; on rank 0.

        Raises:
            InputError: Something is gone, or was judged in another way.
        """
        assert self._rows is not None, "set at FIT_START"
        way = way_of_judging(self._rows, self._sampling(state), self.settings.seed)
        found = []
        for name in [START, *map(iteration_name, range(iterations))]:
            kept = self._find(state, name)
            place = self._game(state).store.root / kept_name(name)
            remedy = (
                f"Remove {JUDGE_SECTION}, and judge the exports afterward: spin-composer judge."
            )
            if kept is None:
                raise InputError(
                    f"{JUDGE_SECTION}: the run had begun, and {place} is not there: its "
                    f"{name} cannot be judged any more. {remedy}"
                )
            before = {key: value for key, value in kept.key.items() if key != "weights"}
            differing = [key for key in {**way, **before} if before.get(key) != way.get(key)]
            if differing:
                raise InputError(
                    f"{JUDGE_SECTION}: {place} was judged with another {', '.join(differing)}. "
                    f"Give the settings and held-out rows of before. Or: {remedy}"
                )
            found.append(kept)
        return found

    def _judge(self, state: State, iteration: int) -> tuple[dict[str, float], int]:
        """Return the metrics, and how many iterations did not help since the best; on rank 0."""
        start, *iterations = self._kept_models(state, iteration + 1)
        named = [(iteration_name(number), kept) for number, kept in enumerate(iterations)]
        self._places = [kept.places for kept in iterations]
        self._result = result = judge(start, named, self.settings, self._held_out, self._measures)
        store = self._game(state).store
        result.write(store.root)
        store.publish(JUDGE)
        verdict = result.verdict
        log.info("%s: %s. %s", named[-1][0], verdict.reasons[-1], result.conclusion())
        metrics = {
            f"{PREFIX}{name}": found.value for name, found in result.iterations[-1].known().items()
        }
        metrics[f"{PREFIX}helped"] = float(verdict.helped[-1])
        metrics[f"{PREFIX}best_iteration"] = float(-1 if verdict.best is None else verdict.best)
        return metrics, verdict.since_best
