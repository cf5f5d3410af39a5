"""Which iteration of a run is the best, by a rule that chance alone seldom passes.

An iteration *helped* if

1. the real-or-own classifier tells its responses from real ones worse than it does those of the
   best model before it (at first the start): the 95% interval of the paired difference of both
   accuracies, each counted from 0.5 up, lies below 0; and
2. nothing that the classifier does not see became worse than it was at the start: held-out NLL,
   stop rate and exact match (where the data has answers): the paired interval of none of them lies
   wholly on the worse side of 0.

The best is the last iteration that helped. So of iterations that cannot be told apart the earliest
is taken, and a run that is better by chance alone is named in 1% to 2% of the comparisons
(simulated: docs/judge.md), not in every run that has enough iterations.

Why the classifier: SPIN's game ends where the opponent's responses are distributed as the data
(arXiv 2401.01335, theorem 5.2), and accuracy is the distance from there that samples show. Why not
NLL alone: SFT lowers it as well, and a model may cover the data and still write what the data never
has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin_composer.judge.measures import Measures

_CHANCE = 0.5
GUARDS = {"nll": 1, "stop_rate": -1, "exact_match": -1}
"""Measures that must not become worse, with the sign of a change for the worse."""


@dataclass(frozen=True)
class Verdict:
    """What an iteration did, or the whole run."""

    helped: tuple[bool, ...]
    """Of each iteration, in order."""
    reasons: tuple[str, ...]
    """Why each did, or did not."""

    @property
    def best(self) -> int | None:
        """Index of the best iteration; None if none is better than the start."""
        found = [index for index, helped in enumerate(self.helped) if helped]
        return found[-1] if found else None

    @property
    def since_best(self) -> int:
        """Iterations after the best one (or the start) that did not help."""
        return len(self.helped) - 1 - (-1 if self.best is None else self.best)


def decide(start: Measures, iterations: Sequence[Measures]) -> Verdict:
    """Decide which iterations helped, by the rule above.

    Args:
        start: The start model's measures.
        iterations: Those of each iteration's policy, in order, of the same prompts and settings.
    """
    best, helped, reasons = start, [], []
    for measures in iterations:
        ok, reason = _compare(measures, best, start)
        best = measures if ok else best
        helped.append(ok)
        reasons.append(reason)
    return Verdict(tuple(helped), tuple(reasons))


def _compare(new: Measures, best: Measures, start: Measures) -> tuple[bool, str]:
    before, after = (measures.classifier_accuracy.at_least(_CHANCE) for measures in (best, new))
    change = after.minus(before)
    figures = (
        f"{before.value:.3f} -> {after.value:.3f}, change {change.low:+.3f} to {change.high:+.3f}"
    )
    if change.low > 0:
        return False, f"the classifier tells its responses more easily ({figures})"
    if not change.high < 0:
        return False, f"the classifier tells its responses as easily ({figures})"
    for name, worse in GUARDS.items():
        now, then = getattr(new, name), getattr(start, name)
        if now is None or then is None:
            continue
        change = now.minus(then)
        if worse * (change.low if worse > 0 else change.high) > 0:
            return False, (
                f"{name} is worse than at the start ({then.value:.4g} -> {now.value:.4g}, change "
                f"{change.low:+.4g} to {change.high:+.4g})"
            )
    return True, f"the classifier tells its responses less easily ({figures})"
