"""How long a run is: prompts, pairs and batches of each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spin_composer.data.examples import ExampleDataset
from spin_composer.play.plan import PlayUnit, earlier_iterations, plan_units
from spin_composer.report.figures import Section
from spin_composer.settings.ditto import DITTO
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.spin import SpinSettings


@dataclass(frozen=True)
class Iteration:
    """What an iteration plays and trains."""

    prompts: int
    played: int
    """Pairs that are generated, if no response is unusable."""
    replayed: int
    """Pairs with responses of earlier iterations."""
    batches_per_epoch: int
    batches: int


def plan_game(
    settings: SpinSettings, num_iterations: int, num_examples: int, batch: int
) -> list[Iteration]:
    """Return the iterations of a run, as play and the loader of pairs will make them.

    Args:
        settings: The algorithm's.
        num_iterations: T.
        num_examples: Kept rows.
        batch: Pairs of an optimizer step on all ranks.
    """
    made: list[Iteration] = []
    for k in range(num_iterations):
        units = plan_units(settings, 0, k, num_examples, {})
        indices = [unit.indices for unit in units if isinstance(unit, PlayUnit)]
        played = sum(map(len, indices))
        earlier = earlier_iterations(k, settings)
        replayed = sum(made[j].played for j in earlier)
        if settings.game == DITTO and earlier:
            replayed = sum(settings.ditto.planned_pairs(played))
        per_epoch = (played + replayed) // batch
        made.append(
            Iteration(
                sum(len(np.unique(one)) for one in indices), played, replayed, per_epoch,
                per_epoch * settings.epochs_per_iteration,
            )
        )  # fmt: skip
    return made


def game_section(settings: SpinSettings, game: Sequence[Iteration], batch: int) -> Section:
    """Return the game's length."""
    section = Section("game")
    epochs = settings.epochs_per_iteration
    section.add("iterations", len(game))
    section.add("epochs per iteration", epochs)
    section.add("pairs per batch", batch)
    section.add("prompts", [one.prompts for one in game], _each([one.prompts for one in game]))
    pairs = [one.played + one.replayed for one in game]
    section.add("pairs", pairs, f"{_each(pairs)} (at most; {_each([o.played for o in game])} new)")
    steps = [one.batches_per_epoch for one in game]
    section.add("steps per epoch", steps, _each(steps))
    section.add("steps per iteration", [one.batches for one in game],
                _each([one.batches for one in game]))  # fmt: skip
    section.add("steps", sum(one.batches for one in game))
    return section


def warmup_note(scheduler: SchedulerSettings, game: Sequence[Iteration]) -> str | None:
    """Return a warning if the warm-up is as long as an iteration, or None."""
    shortest = min(one.batches for one in game)
    if not scheduler.t_warmup.endswith("ba"):
        return None
    if int(scheduler.t_warmup.removesuffix("ba")) < shortest:
        return None
    return (
        f"scheduler.t_warmup={scheduler.t_warmup} and an iteration has {shortest} batches: the "
        "learning rate never reaches its peak. Set it to 0.1dur."
    )


@dataclass(frozen=True)
class Tokens:
    """Tokens of a whole run, at most."""

    generated: int
    trained: int


def count_tokens(
    settings: SpinSettings, game: Sequence[Iteration], examples: ExampleDataset
) -> Tokens:
    """Return the tokens that a run generates and trains on, if every response is the longest."""
    prompt, response = examples.lengths.mean(axis=0)
    longest = settings.generation.max_new_tokens
    pair = 2 * prompt + response + longest
    pairs = sum(one.played + one.replayed for one in game)
    generated = longest * sum(one.played for one in game)
    return Tokens(generated, int(pair * pairs * settings.epochs_per_iteration))


def time_section(tokens: Tokens, play_speed: float | None, train_speed: float | None) -> Section:
    """Return times by measured speeds, in tokens per second of all GPUs together."""
    section = Section("time")
    for what, count, speed, option in (
        ("play", tokens.generated, play_speed, "--play-speed"),
        ("training", tokens.trained, train_speed, "--train-speed"),
    ):
        section.add(f"{what} tokens", count, f"at most {count}")
        seconds = None if speed is None else count / speed
        text = f"unknown: give the speed you measured ({option})"
        if seconds is not None:
            text = f"at most {seconds / 3600:.3g} hours at {speed:g} tokens/s"
        section.add(f"{what} seconds", seconds, text)
    return section


def _each(values: Sequence[int]) -> str:
    """Return values per iteration, one if they are all the same."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))
