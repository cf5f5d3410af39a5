"""Is what a server serves the exported opponent? Its log-probs of its own tokens must be ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from composer.core import Precision

from spin_composer.data.pairs import Pair
from spin_composer.errors import EngineError

FP32_TOLERANCE = 1e-2
LOW_PRECISION_TOLERANCE = 5e-2
"""Nats per token, of a unit's mean. What is compared are sums over a response, in which roundings,
some 0.02 a token in bf16, mostly cancel; a server samples what its own model finds likely, so that
another model is off by tenths of a nat and more. An estimate: no bf16 server has been measured."""
_NOISE_MULTIPLE = 4.0


def default_tolerance(precision: Precision) -> float:
    """Return the tolerance of a training precision, in nats per token."""
    return FP32_TOLERANCE if precision == Precision.FP32 else LOW_PRECISION_TOLERANCE


class LogprobGap:
    """Compares, unit by unit, a server's log-probs of its responses with those of scoring.

    Args:
        tolerance: Of a unit's mean difference, in nats per token.
        server: Name of the server, for the error.
    """

    def __init__(self, tolerance: float, server: object):
        self.tolerance = tolerance
        self.server = server

    def check(
        self, pairs: Sequence[Pair], served: Sequence[float | None], noise: float
    ) -> float | None:
        """Compare a unit's pairs, as scored, with the sums that the server gave.

        Args:
            pairs: Scored ones.
            served: The server's log-prob sum of each pair's generated response, in nats; None where
                it gave none.
            noise: Of scoring, in nats per token.

        Returns:
            Mean |server - ours| in nats per token; None if the server gave no sums.

        Raises:
            EngineError: If they differ by more than roundings do.
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
