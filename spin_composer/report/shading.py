"""The samples of a run as a reader sees them: texts whose tokens are shaded by their log-probs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spin_composer.report.samples import ResponseTokens, Sample

_MOST_LEVEL = 9
_LEVELS_PER_NAT = 2
"""Of a change; of a log-prob it is one."""


@dataclass(frozen=True)
class ShadedToken:
    """A token with the names of its shades, which ``page.css`` colors."""

    text: str
    shades: str
    hint: str
    """Its log-probs, for people."""


@dataclass(frozen=True)
class Side:
    """A response of a sample."""

    text: str
    tokens: Sequence[ShadedToken]
    """None in a table that an older version wrote: then there is the text alone."""


@dataclass(frozen=True)
class ShownSample:
    """A row of the samples."""

    sample: Sample
    real: Side
    generated: Side
    margin: float | None
    """Before beta, in nats; None before the iteration's end."""


@dataclass(frozen=True)
class FirstTokens:
    """Mean log-probs of an iteration's samples by the opponent, in nats per token.

    Where the first token of real responses is much less likely than that of generated ones, and
    the others are not, the two are tokenized differently, and the game is about that token.
    """

    iteration: int
    real_first: float
    generated_first: float
    real_others: float
    generated_others: float
    share_of_margin: float | None
    """The part of the policy's margin that the first token has; None before the iteration's end."""

    @property
    def gap(self) -> float:
        """How much likelier generated responses begin than real ones."""
        return self.generated_first - self.real_first


def show(sample: Sample) -> ShownSample:
    """Return a sample with its tokens shaded."""
    return ShownSample(
        sample,
        Side(sample.real, _shaded(sample.real_tokens)),
        Side(sample.generated, _shaded(sample.generated_tokens)),
        sample.margin(),
    )


def first_tokens(samples: Iterable[Sample]) -> list[FirstTokens]:
    """Return how the responses of each iteration begin; of older versions' tables nothing."""
    by_iteration: dict[int, list[tuple[ResponseTokens, ResponseTokens]]] = {}
    for sample in samples:
        if sample.real_tokens is not None and sample.generated_tokens is not None:
            pair = sample.real_tokens, sample.generated_tokens
            by_iteration.setdefault(sample.iteration, []).append(pair)
    found = []
    for iteration, pairs in sorted(by_iteration.items()):
        real, generated = [p[0] for p in pairs], [p[1] for p in pairs]
        found.append(
            FirstTokens(
                iteration,
                _mean(side.opponent[:1] for side in real),
                _mean(side.opponent[:1] for side in generated),
                _mean(side.opponent[1:] for side in real),
                _mean(side.opponent[1:] for side in generated),
                _share_of_first(real, generated),
            )
        )
    return found


def _share_of_first(
    real: Sequence[ResponseTokens], generated: Sequence[ResponseTokens]
) -> float | None:
    if not all(side.policy for side in (*real, *generated)):
        return None
    whole = sum(side.gain() for side in real) - sum(side.gain() for side in generated)
    first = sum(map(_first_gain, real)) - sum(map(_first_gain, generated))
    return first / whole if whole else None


def _first_gain(side: ResponseTokens) -> float:
    return side.policy[0] - side.opponent[0]


def _mean(groups: Iterable[Sequence[float]]) -> float:
    values = [value for group in groups for value in group]
    return sum(values) / len(values) if values else float("nan")


def _shaded(tokens: ResponseTokens | None) -> list[ShadedToken]:
    if tokens is None:
        return []
    shaded = []
    for place, (text, opponent) in enumerate(zip(tokens.texts, tokens.opponent, strict=True)):
        shades, hint = f"o{_level(-opponent)}", f"opponent {opponent:.2f}"
        if tokens.policy:
            policy = tokens.policy[place]
            change = policy - opponent
            sign = "u" if change > 0 else "d"
            shades += f" p{_level(-policy)} {sign}{_level(_LEVELS_PER_NAT * abs(change))}"
            hint += f", policy {policy:.2f}, change {change:+.2f}"
        shaded.append(ShadedToken(text, shades, hint))
    return shaded


def _level(value: float) -> int:
    return round(min(max(value, 0.0), _MOST_LEVEL))
