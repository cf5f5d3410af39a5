"""The metrics of an iteration's play, logged as ``spin/<name>``: one registered function each.

A metric is computed from what the iteration's units measured, their :class:`UnitReport`, once all
of them are in the store: the same value whichever process made which unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from spin_composer.errors import already_registered
from spin_composer.play.plan import BETWEEN, PLAY, REPLAY
from spin_composer.report.history import (
    DEGENERATE_FRACTION,
    GENERATED_LENGTH,
    PAIRS,
    PLAY_SECONDS,
    TRUNCATED_FRACTION,
)
from spin_composer.store.unit import UnitReport


@dataclass(frozen=True)
class PlayReport:
    """The result of an iteration's play: its units' reports and the run's own figures."""

    units: tuple[UnitReport, ...]
    """The reports of all units of the iteration."""
    batch_size: int = 1
    """Pairs of a global batch: epochs are made of whole batches."""
    seconds: float = 0.0
    """Wall-clock time of the play, over all processes that took part."""

    @property
    def pairs(self) -> int:
        """Pairs of the iteration, including replayed pairs of earlier iterations."""
        return sum(unit.pairs for unit in self.units)

    @property
    def left_out_pairs(self) -> int:
        """Pairs that each epoch leaves out because they do not fill a batch."""
        return self.pairs % self.batch_size

    @property
    def noise(self) -> float:
        """Largest noise of scoring of any unit, in nats per token."""
        return max((unit.noise for unit in self.units), default=0.0)

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """Start and end of each unit's creation, in seconds since the epoch."""
        return tuple((unit.began, unit.ended) for unit in self.units)

    @property
    def played(self) -> Iterator[UnitReport]:
        """The units that were generated, not replayed."""
        return (unit for unit in self.units if unit.kind == PLAY)

    @property
    def prompts(self) -> int:
        """Prompts that were answered."""
        return sum(unit.prompts for unit in self.played)

    def per_prompt(self, number: Callable[[UnitReport], float]) -> float:
        """Return the sum over played units of ``number``, divided by their prompts."""
        return sum(map(number, self.played)) / max(1, self.prompts)

    def metrics(self) -> dict[str, float]:
        """Return the values of all registered metrics that apply, by logged name."""
        values = {name: metric.value(self) for name, metric in PLAY_METRICS.items()}
        return {name: value for name, value in values.items() if value is not None}


Value = Callable[[PlayReport], float | None]
_Value = TypeVar("_Value", bound=Value)


@dataclass(frozen=True)
class PlayMetric:
    """A metric of play and its documentation."""

    value: Value
    """Returns the value, or None if it does not apply; its docstring's first line documents it."""
    unit: str
    nemo_aligner: str | None
    """Name of the metric in NeMo-Aligner's SPIN."""


PLAY_METRICS: dict[str, PlayMetric] = {}
"""Every metric of play by its logged name; :func:`register_play_metric` adds."""


def register_play_metric(
    name: str, unit: str, nemo_aligner: str | None = None
) -> Callable[[_Value], _Value]:
    """Return a decorator that makes a function of :class:`PlayReport` a metric of play.

    It is logged at the start of each iteration's training, kept in the store's records, and listed
    in docs/metrics.md.

    Args:
        name: What it is logged as, ``spin/...``.
        unit: Of its value.
        nemo_aligner: Its name in NeMo-Aligner's SPIN, if it has one there.

    Raises:
        ValueError: The name belongs to another metric.
    """

    def register(value: _Value) -> _Value:
        if name in PLAY_METRICS:
            raise already_registered(f"the metric {name!r}")
        PLAY_METRICS[name] = PlayMetric(value, unit, nemo_aligner)
        return value

    return register


@register_play_metric("spin/server_gap", "nats per token")
def logprob_gap(play: PlayReport) -> float | None:
    """Engine `server`: mean difference of its log-probs and ours, in the worst unit."""
    gaps = [unit.logprob_gap for unit in play.units if unit.logprob_gap is not None]
    return max(gaps) if gaps else None


@register_play_metric(PAIRS, "pairs")
def pairs(play: PlayReport) -> float:
    """Pairs trained on in each epoch of the iteration, in whole batches."""
    return play.pairs - play.left_out_pairs


@register_play_metric("spin/replayed_pairs", "pairs")
def replayed_pairs(play: PlayReport) -> float:
    """Pairs of the iteration that come from earlier ones."""
    return sum(unit.pairs for unit in play.units if unit.kind == REPLAY)


@register_play_metric("spin/between_pairs", "pairs")
def between_pairs(play: PlayReport) -> float | None:
    """Game `ditto`: pairs of a response of the iteration over an earlier one, after the first."""
    kinds = {unit.kind for unit in play.units}
    if BETWEEN not in kinds:
        return None
    return sum(unit.pairs for unit in play.units if unit.kind == BETWEEN)


@register_play_metric(GENERATED_LENGTH, "tokens", nemo_aligner="avg_generated_lengths")
def generated_length(play: PlayReport) -> float:
    """Mean length of a generated response."""
    return play.per_prompt(lambda unit: unit.generated_tokens)


@register_play_metric(TRUNCATED_FRACTION, "fraction")
def truncated_fraction(play: PlayReport) -> float:
    """Share of generated responses cut off by max_new_tokens."""
    return play.per_prompt(lambda unit: unit.truncated)


@register_play_metric(DEGENERATE_FRACTION, "fraction")
def degenerate_fraction(play: PlayReport) -> float:
    """Share of generated responses that equal the real one, by ids or text; they make no pair."""
    return play.per_prompt(lambda unit: unit.degenerate)


@register_play_metric("spin/generated_tokens_per_second_per_rank", "tokens per second")
def generated_tokens_per_second_per_rank(play: PlayReport) -> float:
    """Speed of generation."""
    tokens = sum(unit.generated_tokens for unit in play.played)
    return tokens / max(generation_seconds(play), 1e-9)


@register_play_metric("spin/generation_seconds", "seconds")
def generation_seconds(play: PlayReport) -> float:
    """Time spent in generation, summed over ranks."""
    return sum(unit.generation_seconds for unit in play.played)


@register_play_metric("spin/scoring_seconds", "seconds")
def scoring_seconds(play: PlayReport) -> float:
    """Time spent in scoring both sides, summed over ranks."""
    return sum(unit.scoring_seconds for unit in play.units)


@register_play_metric("spin/scoring_noise", "nats per token")
def scoring_noise(play: PlayReport) -> float:
    """Mean difference of two scorings of the same responses, in the worst unit."""
    return play.noise


@register_play_metric("spin/left_out_pairs", "pairs")
def left_out_pairs(play: PlayReport) -> float:
    """Pairs left out of each epoch, fewer than a batch, others in each; `drop_last` or not."""
    return play.left_out_pairs


@register_play_metric(PLAY_SECONDS, "seconds")
def play_seconds(play: PlayReport) -> float:
    """Wall-clock time of the iteration's play, also of interrupted processes and of other jobs."""
    return play.seconds
