"""The self-play store: pairs and opponent log-probs of every iteration, as verified MDS units.

    <root>/iter-000/manifest.json        what was played, with whom, and how; written first
    <root>/iter-000/units/unit-00000/    one MDS shard set, and unit.json: counts and file hashes
    <root>/iter-000/units/index.json     the units merged, once all of them are there
    <root>/iter-000/samples.jsonl        a table of samples for people

A unit exists wholly or not at all: it is written aside, fsynced and renamed. Every unit is
verified, by size and xxh64, before it is trained on.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spin_composer.errors import StoreError
from spin_composer.store.durable import create_atomically, fsync, json_object, write_atomically
from spin_composer.store.manifest import differing, plain_manifest, require_same
from spin_composer.store.unit import (
    REPORT,
    Row,
    UnitReport,
    aside_of,
    read_report,
    read_rows,
    unit_problem,
    write_unit,
)

DELETE_IT = (
    "Delete {folder} or set algorithms.spin.repair=true; the same command makes it again at the "
    "iteration's start."
)


class Store:
    """The store of one run. Every method is local; ranks share it through the file system."""

    shared = True
    """All ranks see the same folder. (A MirroredStore's is each node's own.)"""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def folder(self, iteration: int) -> Path:
        """Return the folder of an iteration."""
        return self.root / f"iter-{iteration:03d}"

    def unit_folder(self, iteration: int, unit: int) -> Path:
        """Return the folder of a unit, which exists once the unit is complete."""
        return self.folder(iteration) / "units" / f"unit-{unit:05d}"

    # --- manifest ---------------------------------------------------------------------------

    def check_open(self, manifest: Mapping[str, Any]) -> None:
        """Check that an iteration can be opened with a manifest; write nothing.

        Raises:
            StoreError: If the folder holds another run's iteration (the differing fields are
                named), or units of which nothing says what they are.
        """
        folder = self.folder(manifest["iteration"])
        found = self._manifest_here(manifest["iteration"])
        if found is not None:
            if not self.is_unused(manifest["iteration"]):
                require_same(found, plain_manifest(manifest), str(folder))
        elif (folder / "units").exists() and any((folder / "units").iterdir()):
            raise StoreError(
                f"{folder} has units but no manifest.json, so nothing says what they are. "
                f"Delete {folder}, or set algorithms.spin.repair=true to have it set aside and "
                "played again."
            )

    def open_iteration(self, manifest: Mapping[str, Any], replace: bool = False) -> None:
        """Write an iteration's manifest, or check that the one on disk is the same.

        Args:
            manifest: The iteration's.
            replace: Replace another one by which nothing was played: that of a run which failed
                before it had made a unit. For the holder of the store's lock only.

        Raises:
            StoreError: See :meth:`check_open`.
        """
        manifest = plain_manifest(manifest)
        iteration = manifest["iteration"]
        self.check_open(manifest)
        folder = self.folder(iteration)
        (folder / "units").mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest, indent=1)
        if not create_atomically(folder / "manifest.json", text):
            unused = replace and self.is_unused(iteration)
            if unused and differing(self.manifest(iteration), manifest):
                write_atomically(folder / "manifest.json", text)
            self.check_manifest(manifest)  # another job may have been quicker

    def is_unused(self, iteration: int) -> bool:
        """Tell whether nothing was played, or is being written, by an iteration's manifest."""
        return not any((self.folder(iteration) / "units").glob("*"))

    def find_manifest(self, iteration: int) -> dict[str, Any] | None:
        """Return an iteration's manifest, or None if it has not begun.

        Raises:
            StoreError: If it is not readable.
        """
        return self._manifest_here(iteration)

    def _manifest_here(self, iteration: int) -> dict[str, Any] | None:
        there = (self.folder(iteration) / "manifest.json").exists()
        return Store.manifest(self, iteration) if there else None

    def manifest(self, iteration: int) -> dict[str, Any]:
        """Return an iteration's manifest.

        Raises:
            StoreError: If there is none, or it is not readable.
        """
        path = self.folder(iteration) / "manifest.json"
        try:
            return json_object(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing, but iteration {iteration} is being trained. Restore the "
                "self-play store, or resume from the checkpoint at the iteration's start."
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged ({error}). Delete {path.parent}, or set "
                "algorithms.spin.repair=true."
            ) from None

    def check_manifest(self, wanted: Mapping[str, Any]) -> None:
        """Check that an iteration's manifest says what it is expected to say.

        Raises:
            StoreError: If there is none, or it differs; the differing fields are named.
        """
        iteration = wanted["iteration"]
        require_same(self.manifest(iteration), wanted, str(self.folder(iteration)))

    # --- units ------------------------------------------------------------------------------

    def has_unit(self, iteration: int, unit: int) -> bool:
        """Tell whether a unit is complete."""
        return (self.unit_folder(iteration, unit) / REPORT).exists()

    def take_up_unit(self, iteration: int, unit: int) -> bool:
        """Tell whether a unit is complete, after finishing what a killed process left to do."""
        return self.has_unit(iteration, unit)

    def missing_units(self, iteration: int, num_units: int) -> list[int]:
        """Return the units of an iteration that are not complete."""
        return [u for u in range(num_units) if not self.has_unit(iteration, u)]

    def commit_unit(
        self, iteration: int, unit: int, rows: Sequence[Row], report: UnitReport
    ) -> None:
        """Write a unit aside and put it in place whole.

        A unit that another process committed meanwhile stays: both hold the same rows.
        """
        target = self.unit_folder(iteration, unit)
        with aside_of(target) as aside:
            write_unit(aside, rows, report)
            place(aside, target)

    def report(self, iteration: int, unit: int) -> UnitReport:
        """Return the report of a complete unit."""
        return read_report(self.unit_folder(iteration, unit))

    def unit_bytes(self, iteration: int, unit: int) -> int:
        """Return the bytes of a complete unit's files; 0 if it is not there."""
        return sum(path.stat().st_size for path in self.unit_folder(iteration, unit).glob("*"))

    def problem(self, iteration: int, unit: int) -> str | None:
        """Return what is missing of a unit or differs from what was committed, or None."""
        return unit_problem(self.unit_folder(iteration, unit))

    def damage(self, iteration: int, unit: int, thorough: bool) -> str | None:
        """Return what is wrong with a unit that is there, or None.

        Args:
            iteration: Whose unit.
            unit: Which one.
            thorough: Also look at what is not on this machine.
        """
        del thorough  # all is
        there = self.unit_folder(iteration, unit).exists()
        return self.problem(iteration, unit) if there else None

    def set_unit_aside(self, iteration: int, unit: int) -> Path:
        """Give a damaged unit another name, so that it is missing; return that."""
        folder = self.unit_folder(iteration, unit)
        return set_aside(folder, self.folder(iteration) / "set-aside" / folder.name)

    def verify(self, iteration: int, num_units: int, remedy: str = DELETE_IT) -> None:
        """Check that every unit is there and byte for byte what was committed.

        Args:
            iteration: Whose units.
            num_units: How many it has.
            remedy: What to do; ``{folder}`` is replaced by the unit's.

        Raises:
            StoreError: Names the first missing or damaged unit and the remedy.
        """
        for unit in range(num_units):
            if problem := self.problem(iteration, unit):
                folder = self.unit_folder(iteration, unit)
                raise StoreError(f"{problem}. {remedy.format(folder=folder)}")

    def read_unit(self, iteration: int, unit: int) -> Iterator[Row]:
        """Yield the rows of a complete unit, in the order they were written."""
        yield from read_rows(self.unit_folder(iteration, unit))

    def merge(self, iteration: int, num_units: int) -> int:
        """Merge the units' indices, in order, for StreamingDataset; return the number of pairs."""
        from streaming.base.util import merge_index

        units = self.folder(iteration) / "units"
        indices = [self.unit_folder(iteration, u) / "index.json" for u in range(num_units)]
        indices = [str(path) for path in indices if path.exists()]
        if not indices:
            return 0
        aside = units / f".index.{uuid.uuid4().hex[:8]}"
        aside.mkdir()
        try:
            merge_index(indices, str(aside))
            merged = (aside / "index.json").read_text(encoding="utf-8")
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        write_atomically(units / "index.json", merged)
        return sum(shard["samples"] for shard in json.loads(merged)["shards"])

    # --- what other machines see ------------------------------------------------------------

    def publish(self, name: str) -> None:
        """Let other machines see a file that people read, by its name in the store."""


def place(aside: Path, target: Path) -> None:
    """Rename a unit's folder into its place, unless another process has put one there."""
    if (target / REPORT).exists():
        return
    try:
        os.rename(aside, target)
    except OSError:  # also if one came just now: a folder that is not empty is not replaced
        if not (target / REPORT).exists():
            raise
    fsync(target.parent)


def set_aside(path: Path, name: Path) -> Path:
    """Rename a file or folder to ``name`` with the first number that is free; return that."""
    number = 1
    while (aside := name.with_name(f"{name.name}-{number}")).exists():
        number += 1
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, aside)
    return aside
