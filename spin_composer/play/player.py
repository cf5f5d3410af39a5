"""One iteration of play: answer the prompts, score both sides, store the units.

Ranks claim units from a shared counter, so a slow rank does not block the others; a unit's content
does not depend on the rank that makes it. There is no collective between gathering the parameters
and the end, and ranks wait by polling the store, so the process group's timeout cannot end a long
play. See lockstep.py for the case that parameters are not gathered.
"""

from __future__ import annotations

import collections.abc
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from spin_composer import interrupt
from spin_composer.data.examples import ExampleDataset
from spin_composer.data.pairs import LENGTH, Pair, PairBatch, collate_pairs
from spin_composer.distributed import check_shared, from_rank_zero
from spin_composer.engines.base import Generator, Response
from spin_composer.errors import NotFiniteError
from spin_composer.play.degenerate import Comparison, same_ids
from spin_composer.play.draws import draw_earlier, join_unit, joined_report
from spin_composer.play.iteration import IterationPlan
from spin_composer.play.metrics import PlayReport
from spin_composer.play.plan import (
    PLAY,
    REPLAY,
    BetweenUnit,
    EarlierUnit,
    PlayUnit,
    ReplayUnit,
    Unit,
    unit_seed,
)
from spin_composer.play.prepare import replay_remedy, replayed_units
from spin_composer.play.progress import Meter, Progress, Totals
from spin_composer.play.sharing import SharedWork, on_every_node
from spin_composer.store.base import REGENERATE_UNIT, Store
from spin_composer.store.unit import UnitReport

_NOISE_PAIRS = 8


@dataclass(frozen=True)
class Draft:
    """A unit before scoring: pairs without the opponent's log-prob sums, in order."""

    index: int
    unit: Unit
    pairs: list[Pair]
    responses: list[Response]
    """All generated responses, including those of dropped pairs."""
    engine_logps: list[float | None]
    """The engine's log-prob sum of each pair's response, or None."""
    seconds: float
    """Duration of generation."""
    started_at: float = 0.0
    """Start of generation, in seconds since the epoch."""


@dataclass(frozen=True)
class Scored:
    """A scored unit, ready to be stored."""

    draft: Draft
    pairs: list[Pair]
    report: UnitReport


@dataclass(frozen=True)
class Player:
    """Makes the units of one iteration on one rank.

    Args:
        store: The store of the units.
        generator: Answers the prompts.
        score: Returns the opponent's log-prob sums [B, 2] of a pair batch, in training's layout
            and precision.
        examples: The SFT set: ``examples[i]`` has ``prompt`` and ``response`` ids.
        seed: Seed of play.
        score_batch_size: Pairs per forward pass of scoring.
        meter: Counts progress.
        is_duplicate: Returns which generated responses equal the real ones.
        before_commit: Called before each unit is stored; raises if it must not be stored.
        verify_lock: Called periodically on rank 0; raises if another run took over the store.
    """

    store: Store
    generator: Generator
    score: Callable[[PairBatch], torch.Tensor]
    examples: ExampleDataset
    seed: int
    score_batch_size: int
    meter: Meter = field(default_factory=Meter)
    is_duplicate: Comparison = same_ids
    before_commit: Callable[[], object] = lambda: None
    verify_lock: Callable[[], None] = lambda: None

    def make(self, iteration: int, index: int, unit: Unit) -> UnitReport:
        """Make one unit and commit it; return its report."""
        return self.finish(iteration, self.draft(iteration, index, unit))

    def finish(self, iteration: int, draft: Draft) -> UnitReport:
        """Score a draft and commit it; return its report."""
        return self.commit(iteration, self.score_draft(draft))

    def draft(
        self,
        iteration: int,
        index: int,
        unit: Unit,
        check_wanted: Callable[[], None] = lambda: None,
    ) -> Draft:
        """Answer a unit's prompts, or read the pairs of another unit.

        Args:
            iteration: Index of the iteration.
            index: Of the unit.
            unit: What to answer or to read.
            check_wanted: Called from time to time; raises if the draft is not needed anymore.
        """
        started, started_at = time.perf_counter(), time.time()
        if not isinstance(unit, PlayUnit):
            pairs = self._read(iteration, unit)
            return Draft(index, unit, pairs, [], [None] * len(pairs), 0.0, started_at)
        pairs, logps, responses = self._answer(iteration, index, unit, check_wanted)
        seconds = time.perf_counter() - started
        return Draft(index, unit, pairs, responses, logps, seconds, started_at)

    def score_draft(self, draft: Draft) -> Scored:
        """Score a draft with the current opponent."""
        if isinstance(draft.unit, BetweenUnit):  # the responses were scored for other units
            report = joined_report(len(draft.pairs), draft.started_at, time.time())
            return Scored(draft, draft.pairs, report)
        started = time.perf_counter()
        with self.meter.scoring():
            pairs, noise = self._rescore(draft.pairs)
        _require_finite(pairs)
        played = isinstance(draft.unit, PlayUnit)
        if played:  # a response that equals the real one makes no pair
            self.meter.skip(0, len(draft.responses) - len(pairs))
        report = UnitReport(
            kind=PLAY if played else REPLAY,
            prompts=len(draft.responses) if played else len(pairs),
            pairs=len(pairs),
            degenerate=len(draft.responses) - len(pairs) if played else 0,
            truncated=sum(r.finish == LENGTH for r in draft.responses),
            generated_tokens=sum(len(r.ids) for r in draft.responses),
            generation_seconds=draft.seconds,
            scoring_seconds=time.perf_counter() - started,
            noise=noise,
            began=draft.started_at,
            ended=time.time(),
        )
        return Scored(draft, pairs, report)

    def commit(self, iteration: int, unit: Scored) -> UnitReport:
        """Store a unit; return its report.

        Raises:
            StoreError: If another play of the iteration has been started.
            EngineError: If another model than the opponent generated it.
        """
        noise = unit.report.noise
        gap = self.generator.check_logps(unit.pairs, unit.draft.engine_logps, noise)
        report = replace(unit.report, logprob_gap=gap)
        self.before_commit()
        self.store.commit_unit(iteration, unit.draft.index, unit.pairs, report)
        return report

    def recover(self, iteration: int, index: int, unit: Unit) -> bool:
        """Return whether a unit exists by now: made by another job, or by a killed process."""
        if not self.store.recover_unit(iteration, index):
            return False
        if isinstance(unit, PlayUnit):
            self.meter.skip(len(unit.indices), len(unit.indices))
        else:
            with suppress(FileNotFoundError):  # made on another node: it is in the object store
                self.meter.skip(0, self.store.report(iteration, index).pairs)
        return True

    def _read(self, iteration: int, unit: ReplayUnit | EarlierUnit | BetweenUnit) -> list[Pair]:
        """Return the pairs of a unit without prompts, from the store."""
        if isinstance(unit, ReplayUnit):
            return list(self.store.read_unit(unit.iteration, unit.unit))
        if isinstance(unit, EarlierUnit):
            return draw_earlier(self.store, self.seed, iteration, unit)
        return join_unit(self.store, self.seed, iteration, unit, self.is_duplicate)

    def _answer(
        self, iteration: int, index: int, unit: PlayUnit, check_wanted: Callable[[], None]
    ) -> tuple[list[Pair], list[float | None], list[Response]]:
        """Return a unit's pairs, the engine's log-probs of their responses, all responses."""
        examples = [self.examples[int(i)] for i in unit.indices]
        seed = unit_seed(self.seed, iteration, index)

        def on_progress(answered: int, tokens: int) -> None:
            check_wanted()
            self.meter.record_answered(answered, tokens)

        with self.meter.answering():
            prompts = [example.prompt for example in examples]
            responses = self.generator.generate(prompts, seed, on_progress)
            self.meter.record_answered(len(responses), sum(len(r.ids) for r in responses))
        is_duplicate = self.is_duplicate([e.response for e in examples], [r.ids for r in responses])
        made = zip(unit.indices, examples, responses, is_duplicate, strict=True)
        kept = [(int(i), e, r) for i, e, r, is_same in made if not is_same]
        pairs = [Pair(e.prompt, e.response, r.ids, index=i, finish=r.finish) for i, e, r in kept]
        return pairs, [r.logp for _, _, r in kept], responses

    def _rescore(self, pairs: Sequence[Pair]) -> tuple[list[Pair], float]:
        """Score pairs with the current opponent, and measure the noise of scoring."""
        sums = np.empty((len(pairs), 2))
        size = self.score_batch_size
        noise = 0.0
        for first in range(0, len(pairs), size):
            interrupt.check()
            batch = pairs[first : first + size]
            sums[first : first + size] = self.score(collate_pairs(batch)).double().cpu().numpy()
            self.meter.record_scored(len(batch))
            if first == 0:
                few = batch[:_NOISE_PAIRS]
                noise = self._noise(few, sums[: len(few)])
        return [
            replace(pair, opponent_real=real, opponent_generated=generated)
            for pair, (real, generated) in zip(pairs, sums.tolist(), strict=True)
        ], noise

    def _noise(self, pairs: Sequence[Pair], sums: np.ndarray) -> float:
        """Score the same pairs in other batches; return the mean |difference| per token."""
        halves = [pairs[i : i + max(1, len(pairs) // 2)][::-1] for i in _unit_starts(len(pairs))]
        again = [self.score(collate_pairs(h)).double().cpu().numpy()[::-1] for h in halves]
        tokens = sum(len(p.real) + len(p.generated) for p in pairs)
        return float(np.abs(np.concatenate(again) - sums).sum() / tokens)


def _require_finite(pairs: Sequence[Pair]) -> None:
    """Reject NaN or infinite log-prob sums of the opponent."""
    bad = [
        pair.index
        for pair in pairs
        if not np.isfinite((pair.opponent_real, pair.opponent_generated)).all()
    ]
    if bad:
        raise NotFiniteError(
            f"the opponent's log-probs of {len(bad)} responses are not finite (training rows "
            f"{', '.join(map(str, bad[:16]))} of the data). Nothing of their unit was stored. Look "
            "at these rows and the model; fp16 overflows where bf16 and fp32 do not."
        )


def _unit_starts(num_pairs: int) -> range:
    return range(0, num_pairs, max(1, num_pairs // 2))


Job = tuple[int, Unit]
"""The index of a unit to make, and the unit."""

Reports = collections.abc.Generator["UnitReport | None"]
"""The reports of this rank's jobs as they are done, and None for a unit that exists by now (made by
another job, or by a killed process). Closed before its end it gives up what it has begun."""

Schedule = Callable[[Player, SharedWork, int, Sequence[Job]], Reports]
"""Makes jobs of an iteration together with the other ranks."""


def run_independently(
    player: Player, work: SharedWork, iteration: int, jobs: Sequence[Job]
) -> Reports:
    """Make units independently of the other ranks: a slow rank does not block them."""
    for position in work.claims():
        there = player.recover(iteration, *jobs[position])
        yield None if there else player.make(iteration, *jobs[position])


def make_units(
    player: Player,
    plan: IterationPlan,
    schedule: Schedule = run_independently,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Make the missing units of a plan, on all ranks together.

    A unit that joins responses of other units is made when all others are there.

    Args:
        player: This rank's player; ``run_independently`` needs gathered parameters.
        plan: The plan of the iteration.
        schedule: How ranks share the units.
        begin: Called on rank 0 after all checks, before anything is written.

    Raises:
        StoreError: If the store is not shared between ranks, or an earlier one is damaged.
    """
    store, iteration = player.store, plan.iteration
    if store.shared:
        check_shared(store.root)
    missing = [(unit, plan.units[unit]) for unit in plan.missing]
    joins = [job for job in missing if isinstance(job[1], BetweenUnit)]
    jobs = [job for job in missing if not isinstance(job[1], BetweenUnit)]
    for earlier, count in replayed_units([unit for _, unit in jobs]).items():
        fetch_units(store, earlier, count, replay_remedy(earlier))  # verified before they are read
    from_rank_zero(begin)
    if not store.shared:
        on_every_node(lambda: store.prepare_node(iteration))
    if jobs:
        existing = len(plan.wanted) - plan.left - len(missing)
        longest = plan.manifest["generation"]["max_new_tokens"]
        totals = from_rank_zero(lambda: _totals(store, jobs, existing, longest))
        with Progress(iteration, totals) as progress:
            of_jobs = replace(player, meter=progress.meter)
            _work_through(of_jobs, schedule, iteration, jobs, progress)
    if joins:
        first, _ = joins[0]  # they are the last units
        fetch_units(store, iteration, first, REGENERATE_UNIT)
        _work_through(player, schedule, iteration, joins)


def _work_through(
    player: Player,
    schedule: Schedule,
    iteration: int,
    jobs: Sequence[Job],
    progress: Progress | None = None,
) -> None:
    """Make units, on all ranks together."""
    with SharedWork(len(jobs), player.verify_lock, progress=progress) as work:
        with closing(schedule(player, work, iteration, jobs)) as made:  # it may answer ahead
            for _ in made:
                work.done()
        work.wait()


def finish_play(
    store: Store,
    iteration: int,
    num_units: int,
    remedy: str = REGENERATE_UNIT,
    verified: Collection[int] = (),
) -> PlayReport:
    """Verify and merge the units of a complete iteration and return their reports; a collective.

    Args:
        store: The run's store.
        iteration: Index of the iteration.
        num_units: Number of its units.
        remedy: What to do about an incomplete unit.
        verified: Units that this process has verified already, since it planned the iteration.

    Raises:
        StoreError: If a unit is missing or damaged.
    """
    fetch_units(store, iteration, num_units, remedy, verified, merge=True)
    return from_rank_zero(
        lambda: PlayReport(tuple(store.report(iteration, u) for u in range(num_units)))
    )


def fetch_units(
    store: Store,
    iteration: int,
    num_units: int,
    remedy: str,
    verified: Collection[int] = (),
    merge: bool = False,
) -> None:
    """Make an iteration's units available and verified on every node; a collective.

    Raises:
        StoreError: If one is missing or damaged.
    """
    selected = from_rank_zero(lambda: store.select_attempts(iteration, num_units, remedy))

    def fetch() -> None:
        store.fetch(iteration, num_units, selected, remedy, verified)
        if merge:
            store.merge(iteration, num_units)

    if store.shared:
        from_rank_zero(fetch)
    else:
        on_every_node(fetch)


def _totals(store: Store, jobs: Sequence[Job], existing_units: int, max_new_tokens: int) -> Totals:
    """Return the amount of work in jobs."""
    units = [unit for _, unit in jobs]
    prompts = sum(len(unit.indices) for unit in units if isinstance(unit, PlayUnit))
    replayed = [unit for unit in units if isinstance(unit, ReplayUnit)]
    pairs = sum(store.report(unit.iteration, unit.unit).pairs for unit in replayed)
    pairs += sum(len(unit.draws) for unit in units if isinstance(unit, EarlierUnit))
    return Totals(len(units), prompts, prompts + pairs, existing_units, max_new_tokens)
