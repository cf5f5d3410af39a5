"""Check that a server serves the exported opponent: its log-probs must match ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from composer.core import Precision

from spin_composer.data.pairs import Pair
from spin_composer.errors import EngineError

FP32_TOLERANCE = 1e-2
LOW_PRECISION_TOLERANCE = 5e-2
"""Nats per token, for a unit's mean. Sums over a response are compared, in which rounding errors
(about 0.02 per token in bf16) mostly cancel; since a server samples from its own model, another
model is off by tenths of a nat or more. An estimate: no bf16 server has been measured."""
_NOISE_MULTIPLE = 4.0


def default_tolerance(precision: Precision) -> float:
    """Return the tolerance of a training precision, in nats per token."""
    return FP32_TOLERANCE if precision == Precision.FP32 else LOW_PRECISION_TOLERANCE


class LogprobGap:
    """Compares a server's log-probs of its responses with those of scoring, unit by unit.

    Args:
        tolerance: Largest accepted mean difference of a unit, in nats per token.
        server: Name of the server, for messages.
    """

    def __init__(self, tolerance: float, server: object):
        self.tolerance = tolerance
        self.server = server

    def check(
        self, pairs: Sequence[Pair], served: Sequence[float | None], noise: float
    ) -> float | None:
        """Compare the scores of a unit's pairs with the sums that the server returned.

        Args:
            pairs: Scored pairs.
            served: The server's log-prob sum of each pair's generated response, in nats; None if
                it returned none.
            noise: Noise of scoring, in nats per token.

        Returns:
            Mean |server - ours| in nats per token; None if the server returned no sums.

        Raises:
            EngineError: If they differ by more than rounding.
        """
        given = [(pair, logp) for pair, logp in zip(pairs, served, strict=True) if logp is not None]
        gaps = [abs(pair.opponent_generated - logp) for pair, logp in given]
        tokens = sum(len(pair.generated) for pair, _ in given)
        if not tokens:
            return None
        gap = math.fsum(gaps) / tokens
        tolerance = max(self.tolerance, _NOISE_MULTIPLE * noise)
        if not gap <= tolerance:
            raise EngineError(
                f"{self.server} does not serve the exported opponent: its log-probs of its own "
                f"tokens differ from ours by {gap:.3g} nats per token (tolerance {tolerance:.3g}). "
                "It serves another model, a quantized one, or the last iteration's after a "
                "reload_command that did nothing. If it is right, raise "
                "algorithms.spin.generation.server.logp_tolerance."
            )
        return gap
