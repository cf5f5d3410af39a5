"""Names of the files and folders of a self-play store; nothing here touches a disk.

    <store>/run.lock                                   the run's lock (object stores: also run.beat)
    <store>/iterations.json                            the run's history
    <store>/steps.jsonl                                a line of figures per optimizer step
    <store>/run.json                                   settings, machine, versions of each process
    <store>/judge.json, judge/<model>.json             each iteration's measures, and their rows
    <store>/judge/<way>/<model>.json                   rows that `spin-composer judge` sampled
    <store>/iter-000/manifest.json                     what the iteration's play depends on
    <store>/iter-000/units/unit-00000/                 one MDS shard set, and unit.json
    <store>/iter-000/units/index.json                  the merged index, once all units are there
    <store>/iter-000/samples.jsonl                     a table of samples for humans
    <store>/iter-000/set-aside/unit-00000-<n>/         a damaged unit that was made again

An object store has the same files except for units, which cannot be renamed into place:

    <url>/iter-000/units/unit-00000-<attempt>/<file>   the files of one attempt at a unit
    <url>/iter-000/done/unit-00000-<attempt>.json      its unit.json, uploaded last
    <url>/iter-000/done/unit-00000-<attempt>.damaged   marks an attempt as damaged
    <url>/iter-000/complete.json                       which attempt at each unit is trained on
"""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

LOCK = "run.lock"
HEARTBEAT_SECONDS = 5.0
"""Interval at which a run touches its lock, and at most at which ranks send heartbeats in play."""
HEARTBEAT = "run.beat"
HISTORY = "iterations.json"
STEPS = "steps.jsonl"
RUN = "run.json"
MANIFEST = "manifest.json"
UNITS = "units"
REPORT = "unit.json"
INDEX = "index.json"
"""Streaming's name of an index: of a unit's shards, and of all units merged."""
SAMPLES = "samples.jsonl"
JUDGE = "judge.json"
JUDGE_FOLDER = "judge"
SET_ASIDE = "set-aside"
DONE = "done"
COMPLETE = "complete.json"

MANIFESTS, ALL_SAMPLES = f"iter-*/{MANIFEST}", f"iter-*/{SAMPLES}"
"""Patterns of the manifests and of the samples of all iterations, below the store."""

_ITERATION = re.compile(r"iter-(\d+)")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
_UNIT = re.compile(r"unit-(\d+)")
_MARKER = re.compile(rf"iter-(\d+)/{DONE}/unit-(\d+)-([0-9a-f]{{8}})\.(json|damaged)")


def iteration_name(iteration: int) -> str:
    """Return the name of an iteration's folder."""
    return f"iter-{iteration:03d}"


def iteration_number(name: str) -> int | None:
    """Return the iteration of a folder's name; None if it is not an iteration's folder."""
    found = _ITERATION.fullmatch(name)
    return int(found[1]) if found else None


def unit_name(unit: int) -> str:
    """Return the name of a unit's folder."""
    return f"unit-{unit:05d}"


def unit_number(name: str) -> int | None:
    """Return the unit of a folder's name; None if it is not a unit's folder."""
    found = _UNIT.fullmatch(name)
    return int(found[1]) if found else None


def temporary_name(name: str) -> str:
    """Return a unique temporary name for a file or folder that will be renamed to ``name``."""
    return f".{name}.{uuid.uuid4().hex[:8]}"


def is_temporary(name: str) -> bool:
    """Return whether a name was made by :func:`temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None


class Marker(NamedTuple):
    """The object that marks one attempt at a unit as complete or as damaged."""

    iteration: int
    unit: int
    attempt: str
    """Eight hexadecimal digits."""
    damaged: bool = False

    @property
    def name(self) -> str:
        """The object's name, below the store."""
        ending = "damaged" if self.damaged else "json"
        return f"{markers(self.iteration, self.unit)}{self.attempt}.{ending}"

    @property
    def folder(self) -> str:
        """The folder of the attempt's files, below the store."""
        return f"{iteration_name(self.iteration)}/{UNITS}/{unit_name(self.unit)}-{self.attempt}"


def markers(iteration: int, unit: int | None = None) -> str:
    """Return the common prefix of the markers of an iteration, or of a unit."""
    only = "" if unit is None else f"{unit_name(unit)}-"
    return f"{iteration_name(iteration)}/{DONE}/{only}"


def marker_named(name: str) -> Marker | None:
    """Parse an object's name as a marker; None if it is not one."""
    found = _MARKER.fullmatch(name)
    if found is None:
        return None
    return Marker(int(found[1]), int(found[2]), found[3], found[4] == "damaged")
