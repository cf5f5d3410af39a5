"""The figures of an iteration's play: its units', added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin_composer.play.plan import PLAY, REPLAY
from spin_composer.store.unit import UnitReport


@dataclass(frozen=True)
class PlayReport:
    """What an iteration's units hold together; times are summed over ranks."""

    pairs: int
    prompts: int
    replayed_pairs: int
    degenerate: int
    truncated: int
    generated_tokens: int
    generation_seconds: float
    scoring_seconds: float
    noise: float
    """Largest of the units' noises, in nats per token."""
    spans: tuple[tuple[float, float], ...] = ()
    """When each unit was made, in seconds since the epoch."""
    server_gap: float | None = None
    """Largest of the units' gaps, in nats per token; None where no server gave log-probs."""

    def metrics(self) -> dict[str, float]:
        """Return the figures that are logged, by name."""
        prompts = max(1, self.prompts)
        gap = {} if self.server_gap is None else {"spin/server_gap": self.server_gap}
        return {
            **gap,
            "spin/pairs": self.pairs,
            "spin/replayed_pairs": self.replayed_pairs,
            "spin/generated_length": self.generated_tokens / prompts,
            "spin/truncated_fraction": self.truncated / prompts,
            "spin/degenerate_fraction": self.degenerate / prompts,
            "spin/generated_tokens_per_second_per_rank": self.generated_tokens
            / max(self.generation_seconds, 1e-9),
            "spin/generation_seconds": self.generation_seconds,
            "spin/scoring_seconds": self.scoring_seconds,
            "spin/scoring_noise": self.noise,
        }


def total(reports: Sequence[UnitReport]) -> PlayReport:
    """Return what units hold together."""
    played = [r for r in reports if r.kind == PLAY]
    return PlayReport(
        pairs=sum(r.pairs for r in reports),
        prompts=sum(r.prompts for r in played),
        replayed_pairs=sum(r.pairs for r in reports if r.kind == REPLAY),
        degenerate=sum(r.degenerate for r in played),
        truncated=sum(r.truncated for r in played),
        generated_tokens=sum(r.generated_tokens for r in played),
        generation_seconds=sum(r.generation_seconds for r in played),
        scoring_seconds=sum(r.scoring_seconds for r in reports),
        noise=max((r.noise for r in reports), default=0.0),
        spans=tuple((r.began, r.ended) for r in reports),
        server_gap=max((r.server_gap for r in reports if r.server_gap is not None), default=None),
    )
