r"""How play scales, by simulation: efficiency and lost work of an iteration on 8 to 1024 ranks.

    python benchmarks/scaling/simulate_play.py \
        --times benchmarks/scaling/unit-times-gsm8k-tiny.json \
        --batch-seconds 8.4 --score-seconds 0.04

prints two tables: efficiency by ranks and unit size, and where the time goes, beside a split of
the prompts among ranks in advance and beside play that keeps nothing until all is done. ``make
simulate`` prints those of docs/scaling.md, which states the assumptions. Of a run of your own:

    python benchmarks/scaling/simulate_play.py --store runs/my-run/self-play --prompts 50000
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from play_events import Outcome, simulate
from unit_times import Times, lognormal, read_store, read_times, save_times, times_of

COUNTER, SPLIT, WHOLE = "counter", "split", "whole"
"""Ways to play: units from a shared counter (spin_composer's); the prompts split among the ranks
in advance, units kept; the same split and nothing kept until all is done."""

UNITS_PER_RANK = 12
"""From here on more units gain next to nothing: docs/scaling.md."""


@dataclass(frozen=True)
class World:
    """Everything that is assumed; times are in seconds unless their names say otherwise."""

    times: Times
    prompts: int = 50_000
    batch_size: int = 64
    """Prompts that a rank generates at once."""
    short_batch: float = 0.9
    """Share of a full batch's generation time that a batch of one prompt takes."""
    commit: float = 1.0
    """To write a unit, and to upload it."""
    slow_share: float = 0.05
    slow_factor: float = 1.5
    mtbf_hours: float = 50_000.0
    """Mean time between failures of one rank."""
    restart_minutes: float = 10.0


@dataclass(frozen=True)
class Result:
    """Shares of all rank-seconds of a play, which add up to 1; its minutes and its restarts."""

    efficiency: float
    """What the prompts take in full batches at nominal speed, commits excepted."""
    overhead: float
    """Slow ranks, short batches and commits."""
    waiting: float
    lost: float
    down: float
    minutes: float
    restarts: float


def cut(prompts: int, size: int) -> NDArray[np.int64]:
    """Return the sizes of the units that so many prompts are cut into."""
    full, rest = divmod(prompts, size)
    return np.array([size] * full + [rest] * (rest > 0))


def unit_seconds(
    world: World, sizes: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Draw the seconds [U] of units of ``sizes`` [U] prompts.

    Returns:
        The seconds with commits and short batches, and the sum of what full batches would take.
    """
    full, rest = np.divmod(sizes, world.batch_size)
    batches = full + (rest > 0)
    ends = np.cumsum(batches)
    prompts = np.full(ends[-1], world.batch_size)
    prompts[ends[rest > 0] - 1] = rest[rest > 0]
    drawn = rng.integers(len(world.times.generation), size=len(prompts))
    generation, scoring = world.times.generation[drawn], world.times.scoring[drawn] * prompts
    share = world.short_batch + (1 - world.short_batch) * prompts / world.batch_size
    taken = generation * world.batch_size * share + scoring
    useful = generation * prompts + scoring
    return np.add.reduceat(taken, ends - batches) + world.commit, float(useful.sum())


def play_once(world: World, ranks: int, unit_size: int, way: str, seed: int) -> Result:
    """Simulate one iteration's play on so many ranks."""
    rng = np.random.default_rng([seed, ranks, unit_size])
    slow = np.where(rng.random(ranks) < world.slow_share, world.slow_factor, 1.0)
    if way == COUNTER:
        shares = [cut(world.prompts, unit_size)]
    else:  # as even as can be, so some ranks have one prompt more; none may have no prompt
        counts = [n for n in np.bincount(np.arange(world.prompts) % ranks) if n]
        shares = [cut(int(n), int(n) if way == WHOLE else unit_size) for n in counts]
        shares += [np.array([], np.int64)] * (ranks - len(counts))
    seconds, useful = unit_seconds(world, np.concatenate(shares), rng)
    queues = np.split(seconds, np.cumsum([len(share) for share in shares])[:-1])
    mean_to_failure = world.mtbf_hours * 3600 / ranks
    outcome = simulate(
        [queue.tolist() for queue in queues],
        slow.tolist(),
        lambda: float(rng.exponential(mean_to_failure)),
        world.restart_minutes * 60,
        start_over=way == WHOLE,
    )
    return _result(outcome, useful)


def _result(outcome: Outcome, useful: float) -> Result:
    total = outcome.ranks * outcome.wall_seconds
    if not outcome.finished:
        return Result(0.0, 0.0, outcome.waiting / total, outcome.lost / total,
                      outcome.down / total, float("inf"), outcome.restarts)  # fmt: skip
    return Result(
        useful / total,
        (outcome.busy - useful) / total,
        outcome.waiting / total,
        outcome.lost / total,
        outcome.down / total,
        outcome.wall_seconds / 60,
        outcome.restarts,
    )


def play(
    world: World, ranks: int, unit_size: int, way: str, seeds: int
) -> tuple[Result, dict[str, float]]:
    """Return the mean over seeds, and each figure's standard deviation."""
    found = [play_once(world, ranks, unit_size, way, seed) for seed in range(seeds)]
    columns = {f.name: np.array([getattr(x, f.name) for x in found]) for f in fields(Result)}
    mean = Result(**{name: float(values.mean()) for name, values in columns.items()})
    return mean, {name: float(values.std()) for name, values in columns.items()}


def recommended(prompts: int, ranks: int, batch_size: int, default: int) -> int:
    """Return the default unit size, or less where it makes too few units for so many ranks.

    Less is as many whole batches as give each rank ``UNITS_PER_RANK``; a batch is the least. Where
    there is not one for each rank, the prompts are dealt out.
    """
    size = prompts // (UNITS_PER_RANK * ranks) // batch_size * batch_size
    return min(default, size or min(batch_size, -(-prompts // ranks)))


def efficiency_table(world: World, ranks: Sequence[int], sizes: Sequence[int], seeds: int) -> str:
    """Return efficiency by ranks and unit size, and the units of each size."""
    heads = ["ranks", *(f"{s} ({len(cut(world.prompts, s))} units)" for s in sizes)]
    rows = []
    for number in ranks:
        found = (play(world, number, size, COUNTER, seeds) for size in sizes)
        cells = [f"{_percent(x.efficiency)} ± {100 * sd['efficiency']:.0f}" for x, sd in found]
        rows.append([str(number), *cells])
    return _markdown(heads, rows)


def cost_table(world: World, ranks: Sequence[int], default: int, seeds: int) -> str:
    """Return where the time goes, by ranks, with the default unit size and the recommended one."""
    heads = ["ranks", "unit size", "units", "minutes", "efficiency", "overhead", "waiting", "lost",
             "down", "restarts", "split", "nothing kept"]  # fmt: skip
    rows = []
    for number in ranks:
        best = recommended(world.prompts, number, world.batch_size, default)
        for size in dict.fromkeys((default, best)):
            x, sd = play(world, number, size, COUNTER, seeds)
            peers = [play(world, number, size, way, seeds)[0] for way in (SPLIT, WHOLE)]
            rows.append([
                str(number), str(size), str(len(cut(world.prompts, size))),
                f"{x.minutes:.1f} ± {sd['minutes']:.1f}",
                *(_percent(v) for v in (x.efficiency, x.overhead, x.waiting)),
                *(f"{100 * v:.2f}%" for v in (x.lost, x.down)), f"{x.restarts:.2f}",
                *(_percent(peer.efficiency) for peer in peers),
            ])  # fmt: skip
    return _markdown(heads, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--store", type=Path, help="unit times of this self-play store")
    source.add_argument("--times", type=Path, help="unit times of a file that --save-times wrote")
    source.add_argument("--cv", type=float, help="lognormal unit times of this spread (std / mean)")
    add("--save-times", type=Path, help="write the store's unit times to this file, and stop")
    add("--note", default="", help="written with them: the run's command, the state of the machine")
    add("--batch-seconds", type=float,
        help="mean seconds to generate a full batch; default: as measured")  # fmt: skip
    add("--score-seconds", type=float,
        help="mean seconds to score one prompt's two responses; default: as measured")  # fmt: skip
    numbers = ("prompts", "batch_size", "short_batch", "commit", "slow_share", "slow_factor",
               "mtbf_hours", "restart_minutes")  # fmt: skip
    for field in (f for f in fields(World) if f.name in numbers):
        add(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default,
            help="default: %(default)s")  # fmt: skip
    add("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    add("--units", type=int, nargs="*", default=[32, 64, 128, 256, 512],
        help="unit sizes of the first table; none: leave it out")  # fmt: skip
    add("--default-unit", type=int, default=256, help="shown beside the recommended unit size")
    add("--seeds", type=int, default=20, help="plays that are averaged; default: %(default)s")
    found = parser.parse_args(words)
    if found.save_times and not found.store:
        parser.error("--save-times needs --store.")
    if not (found.store or found.times) and None in (found.batch_seconds, found.score_seconds):
        parser.error("give --store or --times, or both --batch-seconds and --score-seconds.")
    return found


def world_of(found: argparse.Namespace) -> World:
    """Return the world that the command line describes."""
    if found.store or found.times:
        times = times_of(read_store(found.store) if found.store else read_times(found.times))
    else:
        times = lognormal(0.1 if found.cv is None else found.cv)
    batch = found.batch_seconds
    times = times.scaled(None if batch is None else batch / found.batch_size, found.score_seconds)
    names = {f.name for f in fields(World)} - {"times"}
    return World(times, **{name: getattr(found, name) for name in names})


def described(world: World, seeds: int) -> str:
    """Return the assumptions in one paragraph."""
    generation, scoring = (float(x.mean()) for x in (world.times.generation, world.times.scoring))
    cvs = world.times.cv
    hours = world.prompts * (generation + scoring) / 3600
    return (
        f"{world.prompts} prompts, {hours:.1f} rank-hours of work. A full batch of "
        f"{world.batch_size}: {generation * world.batch_size:.2f} s to generate (cv {cvs[0]:.2f}), "
        f"{scoring * world.batch_size:.2f} s to score (cv {cvs[1]:.2f}); a batch of one prompt "
        f"generates in {_percent(world.short_batch)} of that. A commit takes {world.commit:g} s. "
        f"{_percent(world.slow_share)} of the ranks are {world.slow_factor:g} times as slow. A "
        f"rank fails once in {world.mtbf_hours:g} hours, and a restart takes "
        f"{world.restart_minutes:g} minutes. Means of {seeds} seeds ± standard deviation."
    )


def about(note: str) -> dict[str, Any]:
    """Return machine, versions and command of this call, and a note."""
    names = ("torch", "transformers", "mosaicml", "llm-foundry", "numpy")
    return {
        "note": note,
        "command": shlex.join("..." if word == note else word for word in ["python", *sys.argv]),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables, or save the times of a store."""
    found = arguments(words)
    if found.save_times:
        save_times(found.save_times, read_store(found.store), about(found.note))
        return
    world = world_of(found)
    print(described(world, found.seeds))
    if found.units:
        print("\nEfficiency by unit size:\n")
        print(efficiency_table(world, found.ranks, found.units, found.seeds))
    print("\nWhere the time goes (split, nothing kept: efficiency of the other two ways):\n")
    print(cost_table(world, found.ranks, found.default_unit, found.seeds))


if __name__ == "__main__":
    main()
