"""The alarms: pure functions of a run's figures, each with its threshold and its advice.

An alarm's docstring says what it finds, why its threshold is what it is, and what it cannot see;
docs/alarms.md is made of them. A figure that is missing or nan raises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from spin_composer.errors import already_registered

Figures = Mapping[str, float]

ACCURACY = "metrics/train/SpinAccuracy"
REWARD_REAL, REWARD_GENERATED = "metrics/train/SpinRewardReal", "metrics/train/SpinRewardGenerated"
LOGPS_REAL, LOGPS_GENERATED = "metrics/train/SpinLogpsReal", "metrics/train/SpinLogpsGenerated"
OF_BATCHES = (ACCURACY, REWARD_REAL, REWARD_GENERATED, LOGPS_REAL, LOGPS_GENERATED)
"""The metrics of a batch that alarms look at."""
GENERATED_LENGTH, TRUNCATED = "spin/generated_length", "spin/truncated_fraction"
REAL_LENGTH = "responses/real_length"
REAL_LOGP = "responses/real_logp_per_token"
FIRST_TOKEN_GAP = "responses/first_token_gap"
FIRST_WORDS_SHARED = "responses/first_words_shared"
DISTINCT_REAL = "responses/distinct_2_real"
DISTINCT_GENERATED = "responses/distinct_2_generated"

# --- thresholds; the alarms' docstrings give the reasons ----------------------------------------

FALL = 0.05
"""Of the opponent's log-prob of real responses."""
WINDOW_SHARE, LEAST_WINDOW = 0.25, 16
"""Steps that a fall is averaged over: a share of the iteration's, and at least so many."""
HIGH_ACCURACY = 0.98
WARM_UP_SHARE, LEAST_STEPS = 0.1, 8
"""Steps that accuracy is averaged over: all after a share of the iteration's, at least so many."""
NEVER_STOPS = 0.5
"""Share of generated responses that are cut off."""
LENGTH_GROWTH, LENGTH_OVER_REAL = 1.5, 1.25
"""Mean generated length by that of the first iteration, and by that of real responses."""
TRUNCATION_GROWTH = 0.1
"""Growth of the share of responses that are cut off."""
FIRST_TOKEN, LEAST_SHARED = 0.5, 0.1
"""Share of the first words that both sides have that begin with other tokens; share of responses
that must begin with such a word."""
_CHANCE = 0.5
"""Accuracy of a classifier that tells nothing."""
DIVERSITY = 0.7
"""Distinct-2, by that of real responses, as a part of the first iteration's."""


@dataclass(frozen=True)
class Alarm:
    """An alarm that was raised."""

    name: str
    iteration: int
    """The iteration whose figures raised it."""
    finding: str
    """What was found, with the figures."""
    advice: str

    def __str__(self) -> str:
        return f"alarm {self.name}, iteration {self.iteration}: {self.finding}. {self.advice}"


class Moment(Enum):
    """When an alarm is looked for."""

    PLAY = "after an iteration's play"
    TRAINING = "during training"
    JUDGED = "once a judge has measured an iteration"


@dataclass(frozen=True)
class Judged:
    """What ``spin-composer judge`` or the callback ``spin_judge`` measured of an iteration."""

    accuracy: float
    """Of telling the policy's responses from real ones: 0.5 is the game's goal."""
    standard_error: float


@dataclass(frozen=True)
class RunFigures:
    """What alarms look at: a run so far."""

    plays: Sequence[Figures] = ()
    """Of each iteration so far, the current one last: metrics of play, and figures of responses
    (``alarms.responses``), by name."""
    batches: Sequence[Figures] = ()
    """The metrics :data:`OF_BATCHES` of the current iteration's batches so far."""
    num_batches: int = 0
    """Batches that the current iteration will have."""
    beta: float = 1.0
    """Of the iteration's loss: rewards are in nats times beta."""
    per_token: bool = False
    """Rewards are divided by the number of tokens (``length_normalised``)."""
    margins: Mapping[int, float] = field(default_factory=dict)
    """Mean margin of each finished iteration, in nats: without beta."""
    judged: Mapping[int, Judged] = field(default_factory=dict)
    """By the iteration that trained the policy; the start model's by -1."""


Rule = Callable[[RunFigures], str | None]
"""Returns what it found, with the figures, or None."""


@dataclass(frozen=True)
class AlarmRule:
    """An alarm that may be raised: its rule, when it is looked for, and its advice."""

    rule: Rule
    moment: Moment
    advice: str


ALARMS: dict[str, AlarmRule] = {}
"""Every alarm by its name in the settings (``algorithms.spin.alarms``) and metrics."""


def register_alarm(name: str, moment: Moment, advice: str) -> Callable[[Rule], Rule]:
    """Return a decorator that makes a function of :class:`RunFigures` an alarm.

    Args:
        name: In settings, metrics (``alarms/<name>``) and docs.
        moment: When it is looked for.
        advice: What to do when it is raised, in full sentences.

    Raises:
        ValueError: The name belongs to another alarm.
    """

    def register(rule: Rule) -> Rule:
        if name in ALARMS:
            raise already_registered(f"the alarm {name!r}")
        ALARMS[name] = AlarmRule(rule, moment, advice)
        return rule

    return register


def mean(batches: Sequence[Figures], name: str) -> float:
    """Return the mean of a figure over the batches that have it; nan if none has."""
    values = [x for x in (batch.get(name, math.nan) for batch in batches) if not math.isnan(x)]
    return sum(values) / len(values) if values else math.nan


# --- during training ----------------------------------------------------------------------------


@register_alarm(
    "falling_logps",
    Moment.TRAINING,
    "The policy gets away from both, so the margin grows by what it says about neither. Lower the "
    "learning rate, raise beta, set nll_weight (an anchor on the real responses) or loss: dpop.",
)
def falling_logps(run: RunFigures) -> str | None:
    """The log-probs of real and generated responses fall together.

    Raised when over the newest steps, a quarter of the iteration's (at least 16), real responses
    are by 5% less likely (in nats: the sum of log-probs, or what a token has of it in each response
    with length_normalised, as the loss does) than the opponent finds them, and
    generated ones less likely too. In a game that works the real side rises or stays; a fall of 5%
    is beyond what batches of some dozens of pairs differ by, and a policy that ends there has lost
    part of what SFT gave it. That generated responses fall is the game; alone it raises nothing.
    """
    window = max(LEAST_WINDOW, round(WINDOW_SHARE * run.num_batches))
    if len(run.batches) < window:
        return None
    last = run.batches[-window:]
    real, generated = (mean(last, name) / run.beta for name in (REWARD_REAL, REWARD_GENERATED))
    if run.per_token:  # like by like: a mean of what each response has per token
        opponent = run.plays[-1].get(REAL_LOGP, math.nan) if run.plays else math.nan
    else:
        opponent = mean(last, LOGPS_REAL) - real
    if not (real < FALL * opponent and generated < 0):
        return None
    nats = "nats per token" if run.per_token else "nats"
    return (
        f"over the last {window} steps the log-probs of real responses are {real / opponent:.0%} "
        f"below the opponent's ({opponent:.3g} -> {opponent + real:.3g} {nats}), and those of "
        f"generated ones are below them by {-generated:.3g} {nats}"
    )


@register_alarm(
    "high_accuracy",
    Moment.TRAINING,
    "The opponent is told apart by something easy. Read <store>/iter-<k>/samples.jsonl: responses "
    "that begin, end or are formatted otherwise than the real ones are an artifact of template, "
    "stop token or max_new_tokens. If they are simply worse, the opponent is stale: train an "
    "iteration for fewer epochs (iteration_length), so that the next opponent comes sooner.",
)
def high_accuracy(run: RunFigures) -> str | None:
    """Real and generated responses are told apart in nearly every pair for most of an iteration.

    Raised once half of an iteration's steps are made (at least 8 after the first tenth), when the
    mean accuracy after the first tenth is 0.98 or more. Most games that improve a model stay below:
    0.74 and falling in the demo, 0.88 for SmolLM2-135M on GSM8K at a learning rate of 1e-6; a wrong
    first token gives 1.0 at once. `make real`, at ten times that rate and with most of the first
    generated responses cut off, raises it and improves. Little is left to learn from pairs that are
    all won, whatever the cause.
    """
    after = run.batches[round(WARM_UP_SHARE * run.num_batches) :]
    if len(run.batches) < run.num_batches / 2 or len(after) < LEAST_STEPS:
        return None
    accuracy = mean(after, ACCURACY)
    if not accuracy >= HIGH_ACCURACY:
        return None
    return (
        f"accuracy is {accuracy:.3f} in the mean of {len(after)} of the iteration's "
        f"{run.num_batches} steps"
    )


# --- after an iteration's play ------------------------------------------------------------------


@register_alarm(
    "never_stops",
    Moment.PLAY,
    "Such a response ends without the stop token, and the policy learns little but to stop. See by "
    "`spin-composer data check` that the stop token is the one that the model writes, and that the "
    "SFT model stops at all; raise generation.max_new_tokens if real responses are as long.",
)
def never_stops(run: RunFigures) -> str | None:
    """Most generated responses never stop: max_new_tokens cuts them off.

    Raised when half of an iteration's generated responses are cut off. Models that were tuned on
    their rows stop in nearly all; a share of half comes from a wrong stop token, a model that was
    not tuned to stop, a limit below the length of real responses, or one below that of the model's
    own (`make real`: 66% in the first iteration, and 38% in the second, as it learns to stop).
    """
    truncated = run.plays[-1].get(TRUNCATED, math.nan)
    if not truncated >= NEVER_STOPS:
        return None
    return f"{truncated:.0%} of the generated responses are cut off by max_new_tokens"


@register_alarm(
    "growing_length",
    Moment.PLAY,
    "Longer responses are how a game drifts that rewards sums of log-probs. Set length_normalised, "
    "lower the learning rate or raise beta, and judge the last iterations before you use them.",
)
def growing_length(run: RunFigures) -> str | None:
    """Generated responses get longer, or are cut off more often, from iteration to iteration.

    Raised when the mean length is 1.5 times that of the first iteration's play and 1.25 times that
    of real responses, or when the share of responses that are cut off has grown by 10 points. A
    policy that approaches longer real responses also grows, and raises nothing.
    """
    if len(run.plays) < 2:
        return None
    first, last = run.plays[0], run.plays[-1]
    before, now = (play.get(GENERATED_LENGTH, math.nan) for play in (first, last))
    real = last.get(REAL_LENGTH, math.nan)
    if now >= LENGTH_GROWTH * before and now >= LENGTH_OVER_REAL * real:
        return (
            f"the mean length of generated responses grew from {before:.1f} to {now:.1f} tokens "
            f"since the first iteration; real ones have {real:.1f}"
        )
    before, now = (play.get(TRUNCATED, math.nan) for play in (first, last))
    if now - before >= TRUNCATION_GROWTH:
        return (
            "the share of generated responses that max_new_tokens cuts off grew from "
            f"{before:.0%} to {now:.0%} since the first iteration"
        )
    return None


@register_alarm(
    "first_token_gap",
    Moment.PLAY,
    "The policy learns that token and little else, and the game looks won. Compare both ways by "
    "`spin-composer data check`; set train_loader.dataset.tokenize to how the model was tuned, or "
    "move the white space between the row's prompt and response.",
)
def first_token_gap(run: RunFigures) -> str | None:
    """Real and generated responses begin with other tokens though with the same words.

    Raised when, of the first words that both sides have in a sample of up to 1,024 pairs, half
    begin with other tokens: `The` for ` The`, or a line break before it. A word has one
    tokenization, so that no margin explains the gap: it is an artifact of how rows are tokenized,
    and it decides every pair. A model that begins its responses with other words than the data,
    which it may, raises nothing. Not seen where less than a tenth of the responses share first
    words, as in languages that are written without spaces.
    """
    gap, shared = (run.plays[-1].get(x, math.nan) for x in (FIRST_TOKEN_GAP, FIRST_WORDS_SHARED))
    if not (gap >= FIRST_TOKEN and shared >= LEAST_SHARED):
        return None
    return (
        f"{shared:.0%} of real and generated responses share their first words, and {gap:.0%} of "
        "these begin with other tokens"
    )


@register_alarm(
    "low_diversity",
    Moment.PLAY,
    "The policy collapses to few responses. Stop at the iteration before, or lower the learning "
    "rate, raise beta, keep replay on, and leave generation.temperature at 1.",
)
def low_diversity(run: RunFigures) -> str | None:
    """Generated responses lose their diversity from iteration to iteration.

    Raised when distinct-2 (different pairs of neighboring tokens by all of them, in a sample of as
    many of them) of generated responses, by that of real ones, is 0.7 of what it was in the first
    iteration, or of 1 if it was above: an opponent that is noisier than the data may come down to
    it. Samples of the same size differ by a few percent. It is of one response to each prompt, as
    the real ones are: with responses_per_prompt, responses to one prompt that get alike are not
    seen.
    """
    if len(run.plays) < 2:
        return None
    before, now = (
        play.get(DISTINCT_GENERATED, math.nan) / (play.get(DISTINCT_REAL, math.nan) or math.nan)
        for play in (run.plays[0], run.plays[-1])
    )
    if not now <= DIVERSITY * min(1.0, before):
        return None
    return (
        f"distinct-2 of generated responses fell from {before:.2f} to {now:.2f} of that of real "
        "ones since the first iteration"
    )


# --- once an iteration is judged ----------------------------------------------------------------


@register_alarm(
    "judge_falls",
    Moment.JUDGED,
    "What the loss rewards is no longer what the judge sees. Use the iteration before, and stop "
    "there (callbacks.spin_judge with its patience does).",
)
def judge_falls(run: RunFigures) -> str | None:
    """Margins grow while the judge finds the responses worse than an iteration before.

    Raised when an iteration's mean margin, without beta, is above that of the iteration before (0
    at the start), and the judge's classifier tells the policy's responses from real ones more often
    than before it, by more than the sum of both standard errors, each accuracy counted from 0.5 up:
    below it is chance. It needs the callback
    `spin_judge`, or `spin-composer judge` before the run goes on.
    """
    margins = {-1: 0.0, **run.margins}
    for iteration, margin in run.margins.items():
        before, now = (run.judged.get(k) for k in (iteration - 1, iteration))
        smaller = margins.get(iteration - 1, math.inf)
        if before is None or now is None:
            continue
        worse = max(_CHANCE, now.accuracy) - max(_CHANCE, before.accuracy)
        if margin > smaller and worse > before.standard_error + now.standard_error:
            return (
                f"in iteration {iteration} the margin grew from {smaller:.2f} to {margin:.2f} "
                "nats, while the accuracy by which the judge tells its responses from real ones "
                f"rose from {before.accuracy:.3f} to {now.accuracy:.3f}"
            )
    return None
