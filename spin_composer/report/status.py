"""The status of a run, from the files of its store, checkpoints and lock.

Works on any machine that can read the folders, while the run is active or after it has died.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spin_composer.alarms.rules import Alarm
from spin_composer.errors import StoreError
from spin_composer.report.history import GIVE_THE_STORE, ITERATION, find_history
from spin_composer.report.outline import RunOutline, checkpoint_patterns, completed
from spin_composer.report.spans import union_seconds
from spin_composer.report.steps import find_alarms
from spin_composer.save_folder import find_checkpoints, structure_problem
from spin_composer.store.layout import (
    HEARTBEAT_SECONDS,
    HISTORY,
    LOCK,
    MANIFEST,
    REPORT,
    UNITS,
    iteration_number,
    unit_number,
)

_LIVE_SECONDS = 6 * HEARTBEAT_SECONDS
"""A run is shown as dead if it has not touched its lock for so long."""


@dataclass(frozen=True)
class IterationStatus:
    """The status of an iteration in the store."""

    iteration: int
    units: int
    """Committed units."""
    num_units: int
    """Units of the iteration; 0 if its manifest cannot be read."""
    pairs: int
    tokens_per_second: float
    """Generated, per rank; 0 if nothing was generated yet."""
    closed: bool
    """Training is finished, and the iteration is in the history."""
    play_seconds: float = 0.0
    """Wall-clock time of making its units; 0 if it is not recorded."""
    problem: str = ""
    """What is damaged, checked without hashing; hashes are verified before training."""


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    outline: RunOutline
    iterations: list[IterationStatus]
    owner: str
    """The owner of the store's lock, for display."""
    live: bool
    """Whether the owner is alive."""
    checkpoint: str | None = None
    """Name of the newest complete checkpoint."""
    position: tuple[int, int] | None = None
    """Its epoch and batch; None if its name has no epoch, and batch -1 if it has no batch."""
    partial: list[str] = field(default_factory=list)
    """Names of incomplete checkpoints."""
    ended: str = ""
    """Which callback ended the run early, and when."""
    alarms: Sequence[Alarm] = ()
    """What the run has raised so far."""


def read_status(outline: RunOutline, records: Path | None = None) -> Status:
    """Read the status of a run.

    Args:
        outline: Returned by :func:`read_outline`; what it lacks is taken from the run's own record.
        records: Folder with the store's small files, if they were downloaded.

    Raises:
        StoreError: If there is no store, or its history, its steps or its record is damaged.
    """
    store = records or outline.store
    if not store.is_dir():
        raise StoreError(
            f"{store} does not exist: the run has not begun, or it is another run's name. "
            f"{GIVE_THE_STORE}"
        )
    outline = completed(outline, store)
    history = find_history(store / HISTORY)
    ended = history.ended if history else ""
    closed = {int(record[ITERATION]) for record in history.iterations} if history else set()
    iterations = [
        _read_iteration(folder, number, number in closed, store == outline.store)
        for folder in sorted(store.iterdir())
        if (number := iteration_number(folder.name)) is not None
    ]
    owner, live = _owner(store / LOCK)
    checkpoint, position, partial = _checkpoints(outline)
    return Status(
        outline, iterations, owner, live, checkpoint, position, partial, ended, find_alarms(store)
    )


def print_status(status: Status, console: Console) -> None:
    """Print a row per iteration, the last checkpoint, and the next step."""
    total = f" of {status.outline.iterations}" if status.outline.iterations else ""
    where = status.outline.remote or status.outline.store
    table = Table(title=f"{where}: {len(status.iterations)}{total} iterations begun")
    for title in ("iteration", "units", "pairs", "tokens/s/rank", "play s", "state"):
        table.add_column(title, justify="left" if title == "state" else "right")
    for one in status.iterations:
        rate = f"{one.tokens_per_second:.0f}" if one.tokens_per_second else "-"
        units = f"{one.units} of {one.num_units or '?'}"
        spent = f"{one.play_seconds:.1f}" if one.play_seconds else "-"
        table.add_row(f"{one.iteration}", units, f"{one.pairs}", rate, spent, _state(one))
    console.print(table)
    console.print(f"process:    {status.owner}", soft_wrap=True, markup=False)
    if status.outline.save_folder is not None:
        console.print(f"checkpoint: {status.checkpoint or 'none'}", soft_wrap=True, markup=False)
    for name in status.partial:
        text = f"            {name} is cut short; the next start sets it aside"
        console.print(text, soft_wrap=True, markup=False)
    for alarm in status.alarms:
        console.print(str(alarm), soft_wrap=True, markup=False, highlight=False)
    console.print(f"next:       {next_step(status)}", soft_wrap=True, markup=False)


def next_step(status: Status) -> str:
    """Describe what the same command would do next, or what the run is doing."""
    word = "it" if status.live else "the same command"
    epochs, total = status.outline.epochs, status.outline.iterations
    damaged = [one for one in status.iterations if one.problem]
    if damaged:
        return f"{damaged[0].problem}: {word} will say what to do"
    if status.ended and not status.live:
        return f"nothing: the run is finished ({status.ended})"
    if status.position is None or epochs is None:
        last = status.iterations[-1] if status.iterations else None
        if last is None:
            return f"{word} plays iteration 0"
        saved = status.outline.save_folder is None or status.checkpoint is not None
        if last.closed and total == last.iteration + 1 and saved:
            return "nothing: the run is finished"
        if last.closed:
            return f"iteration {last.iteration} is trained; {word} resumes from its checkpoint"
        if last.units < last.num_units:
            return f"{word} plays {last.num_units - last.units} units of iteration {last.iteration}"
        return f"{word} trains iteration {last.iteration} from the last checkpoint in it"
    epoch, batch = status.position
    iteration = epoch // epochs
    if total is not None and iteration >= total:
        return "nothing: the run is finished"
    found = next((one for one in status.iterations if one.iteration == iteration), None)
    if epoch % epochs == 0 and (found is None or found.units < found.num_units):
        done = f"{found.units} of {found.num_units} units are" if found else "no unit is"
        return f"{word} plays iteration {iteration} ({done} there{'' if found else ' yet'})"
    where = f"epoch {epoch}, batch {batch}" if batch >= 0 else f"epoch {epoch}"
    return f"{word} trains iteration {iteration} from {where}"


def _state(one: IterationStatus) -> str:
    if one.problem:
        return one.problem
    if one.closed:
        return "trained"
    return "played" if one.units == one.num_units else "in play"


def _read_iteration(folder: Path, number: int, closed: bool, with_files: bool) -> IterationStatus:
    """Read an iteration's folder; ``with_files`` if it also contains the units' shards."""
    reports, problem, num_units = [], "", 0
    try:
        manifest = (folder / MANIFEST).read_text(encoding="utf-8")
        num_units = int(json.loads(manifest)["num_units"])
    except FileNotFoundError:
        problem = f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        problem = f"{MANIFEST} is damaged"
    for unit in sorted(folder.glob(f"{UNITS}/*")):
        if unit_number(unit.name) is None:  # the merged index, or a unit that is being written
            continue
        try:
            report = json.loads((unit / REPORT).read_text(encoding="utf-8"))
            sizes = {name: file["bytes"] for name, file in report["files"].items()}
            reports.append(report)
        except FileNotFoundError:
            problem = problem or f"{unit.name} has no {REPORT}"
            continue
        except (ValueError, KeyError, TypeError, AttributeError):
            problem = problem or f"{unit.name} is damaged"
            continue
        for name, size in sizes.items() if with_files else ():
            if not (unit / name).exists() or (unit / name).stat().st_size != size:
                problem = problem or f"{unit.name}/{name} is damaged"
    tokens = sum(r.get("generated_tokens", 0) for r in reports)
    seconds = sum(r.get("generation_seconds", 0) for r in reports)
    return IterationStatus(
        iteration=number,
        units=len(reports),
        num_units=num_units,
        pairs=sum(r.get("pairs", 0) for r in reports),
        tokens_per_second=tokens / seconds if seconds else 0.0,
        closed=closed,
        play_seconds=union_seconds((r.get("began", 0), r.get("ended", 0)) for r in reports),
        problem=problem,
    )


def _owner(lock: Path) -> tuple[str, bool]:
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        age = max(0.0, time.time() - lock.stat().st_mtime)
        who = f"run {owner['run']!r}, process {owner['pid']} on {owner['host']}"
    except FileNotFoundError:
        return "none", False
    except (ValueError, KeyError, TypeError):
        return f"{lock} is unreadable", False
    if age < _LIVE_SECONDS:
        return f"{who}, last heartbeat {age:.0f} s ago", True
    return f"{who}, died or is cut off: no heartbeat for {age:.0f} s", False


def _checkpoints(outline: RunOutline) -> tuple[str | None, tuple[int, int] | None, list[str]]:
    if outline.save_folder is None:
        return None, None, []
    partial: list[str] = []
    whole: list[tuple[tuple[int, int], int, str]] = []
    for pattern in checkpoint_patterns(outline):
        for found in find_checkpoints(outline.save_folder, pattern):
            batch, _, _, epoch = found.counts
            if structure_problem(found.path):
                partial.append(found.path.name)
            else:
                whole.append(((epoch, batch), found.written_ns, found.path.name))
    if not whole:
        return None, None, partial
    position, _, name = max(whole)
    return name, position if position[0] >= 0 else None, partial
