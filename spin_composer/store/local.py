"""The self-play store in a folder: pairs and opponent log-probs, as verified MDS units.

``store.layout`` documents its files and folders.

Units are atomic: they are written to a temporary folder, fsynced and renamed. Every unit is
verified, by size and xxh64, before it is trained on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from spin_composer.data.pairs import Pair
from spin_composer.errors import StoreError
from spin_composer.store.base import REGENERATE_UNIT, RESUME_AT_START, Store
from spin_composer.store.durable import create_atomically, fsync, json_object, write_atomically
from spin_composer.store.layout import (
    INDEX,
    MANIFEST,
    REPORT,
    SET_ASIDE,
    UNITS,
    is_temporary,
    iteration_name,
    unit_name,
    unit_number,
)
from spin_composer.store.lock import LockBackend, LockFile
from spin_composer.store.manifest import (
    Manifest,
    differing_fields,
    normalize_manifest,
    require_equal_manifests,
)
from spin_composer.store.unit import (
    UnitReport,
    read_pairs,
    read_report,
    staging_folder,
    unit_problem,
    write_unit,
)

log = logging.getLogger(__name__)

_LEFTOVER_SECONDS = 3600.0
"""A temporary file or folder that has not changed for so long is a killed writer's."""


class LocalStore(Store):
    """The store of one run in a folder that all ranks share; see :class:`Store`."""

    shared = True

    @classmethod
    def open(cls, root: Path, url: str | None) -> LocalStore:
        """See :class:`Store`."""
        del url  # there is none
        return cls(root)

    def folder(self, iteration: int) -> Path:
        """Return the folder of an iteration."""
        return self.root / iteration_name(iteration)

    def unit_folder(self, iteration: int, unit: int) -> Path:
        """Return the folder of a unit, which exists once the unit is complete."""
        return self.folder(iteration) / UNITS / unit_name(unit)

    def lock_backends(self) -> list[LockBackend]:
        """See :class:`Store`."""
        return [LockFile(self.root)]

    # --- manifest ---------------------------------------------------------------------------

    def check_open(self, manifest: Manifest, complete: Collection[int] | None = None) -> None:
        """See :class:`Store`; units that are being written count too."""
        del complete
        folder = self.folder(manifest["iteration"])
        found = self._manifest_here(manifest["iteration"])
        if found is not None:
            if not self.is_unused(manifest["iteration"]):
                require_equal_manifests(found, normalize_manifest(manifest), str(folder))
        elif (folder / UNITS).exists() and any((folder / UNITS).iterdir()):
            raise StoreError(
                f"{folder} has units but no {MANIFEST}, so nothing says what they are. "
                f"Delete {folder}, or set algorithms.spin.repair=true to have it set aside and "
                "played again."
            )

    def open_iteration(self, manifest: Manifest, replace: bool = False) -> None:
        """See :class:`Store`."""
        manifest = normalize_manifest(manifest)
        iteration = manifest["iteration"]
        self.check_open(manifest)
        folder = self.folder(iteration)
        (folder / UNITS).mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest, indent=1)
        if not create_atomically(folder / MANIFEST, text):
            unused = replace and self.is_unused(iteration)
            if unused and differing_fields(self.manifest(iteration), manifest):
                write_atomically(folder / MANIFEST, text)
            self.check_manifest(manifest)  # another job may have written it first

    def is_unused(self, iteration: int) -> bool:
        """See :class:`Store`."""
        return not any((self.folder(iteration) / UNITS).glob("*"))

    def find_manifest(self, iteration: int) -> Manifest | None:
        """See :class:`Store`."""
        return self._manifest_here(iteration)

    def prepare_node(self, iteration: int) -> None:
        """See :class:`Store`; all nodes share the folder."""
        del iteration

    def _manifest_here(self, iteration: int) -> Manifest | None:
        there = (self.folder(iteration) / MANIFEST).exists()
        return LocalStore.manifest(self, iteration) if there else None

    def manifest(self, iteration: int) -> Manifest:
        """See :class:`Store`."""
        path = self.folder(iteration) / MANIFEST
        try:
            return json_object(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing, but iteration {iteration} is being trained. Restore the "
                f"self-play store, or {RESUME_AT_START}"
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged ({error}). Delete {path.parent}, or set "
                "algorithms.spin.repair=true."
            ) from None

    def check_manifest(self, wanted: Manifest) -> None:
        """See :class:`Store`."""
        iteration = wanted["iteration"]
        require_equal_manifests(self.manifest(iteration), wanted, str(self.folder(iteration)))

    def set_unreadable_aside(self, iteration: int) -> None:
        """See :class:`Store`."""
        folder = self.folder(iteration)
        units = folder / UNITS
        if not ((folder / MANIFEST).exists() or (units.exists() and any(units.iterdir()))):
            return
        try:
            json_object((folder / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            aside = set_aside(folder, folder.with_name(f"{folder.name}.{SET_ASIDE}"))
            log.warning(f"{folder} has no readable manifest ({error}) and is set aside as {aside}.")

    def remove_leftovers(self, iteration: int) -> None:
        """See :class:`Store`."""
        folder = self.folder(iteration)
        now = time.time()
        for place in (self.root, folder, folder / UNITS):
            for path in list(place.iterdir()) if place.exists() else []:
                if is_temporary(path.name):
                    with suppress(FileNotFoundError):  # a job beside this run has just renamed it
                        if now - path.stat().st_mtime > _LEFTOVER_SECONDS:
                            _remove(path)

    # --- units ------------------------------------------------------------------------------

    def complete_units(self, iteration: int) -> set[int]:
        """See :class:`Store`."""
        reports = (self.folder(iteration) / UNITS).glob(f"*/{REPORT}")
        units = (unit_number(path.parent.name) for path in reports)
        return {unit for unit in units if unit is not None}

    def recover_unit(self, iteration: int, unit: int) -> bool:
        """See :class:`Store`; a unit in place is complete."""
        return (self.unit_folder(iteration, unit) / REPORT).exists()

    def commit_unit(
        self, iteration: int, unit: int, pairs: Sequence[Pair], report: UnitReport
    ) -> None:
        """See :class:`Store`; it is written to a temporary folder, fsynced and renamed."""
        target = self.unit_folder(iteration, unit)
        with staging_folder(target) as aside:
            write_unit(aside, pairs, report)
            move_into_place(aside, target)

    def report(self, iteration: int, unit: int) -> UnitReport:
        """See :class:`Store`."""
        return read_report(self.unit_folder(iteration, unit))

    def unit_bytes(
        self, iteration: int, units: Collection[int], remedy: str = REGENERATE_UNIT
    ) -> int:
        """See :class:`Store`."""
        del remedy
        folders = [self.unit_folder(iteration, unit) for unit in units]
        return sum(path.stat().st_size for folder in folders for path in folder.glob("*"))

    def problem(self, iteration: int, unit: int) -> str | None:
        """Return what is missing or damaged in a unit, or None."""
        return unit_problem(self.unit_folder(iteration, unit))

    def damage(self, iteration: int, unit: int, thorough: bool) -> str | None:
        """See :class:`Store`."""
        del thorough  # all files are local
        there = self.unit_folder(iteration, unit).exists()
        return self.problem(iteration, unit) if there else None

    def set_unit_aside(self, iteration: int, unit: int) -> Path:
        """See :class:`Store`."""
        folder = self.unit_folder(iteration, unit)
        return set_aside(folder, self.folder(iteration) / SET_ASIDE / folder.name)

    def read_unit(self, iteration: int, unit: int) -> Iterator[Pair]:
        """See :class:`Store`."""
        yield from read_pairs(self.unit_folder(iteration, unit))

    # --- training data ----------------------------------------------------------------------

    def select_attempts(self, iteration: int, num_units: int, remedy: str) -> list[str]:
        """See :class:`Store`; there is one attempt per unit."""
        del iteration, num_units, remedy
        return []

    def fetch(
        self,
        iteration: int,
        num_units: int,
        selected: Sequence[str] = (),
        remedy: str = REGENERATE_UNIT,
        verified: Collection[int] = (),
    ) -> None:
        """See :class:`Store`; all files are local, and are verified."""
        del selected
        for unit in sorted(set(range(num_units)) - set(verified)):
            if problem := self.problem(iteration, unit):
                folder = self.unit_folder(iteration, unit)
                raise StoreError(f"{problem}. {remedy.format(folder=folder)}")

    def merge(self, iteration: int, num_units: int) -> int:
        """See :class:`Store`."""
        from streaming.base.util import merge_index

        units = self.folder(iteration) / UNITS
        indices = [self.unit_folder(iteration, u) / INDEX for u in range(num_units)]
        indices = [str(path) for path in indices if path.exists()]
        if not indices:
            return 0
        with staging_folder(units / INDEX) as aside:
            aside.mkdir()
            merge_index(indices, str(aside))
            merged = (aside / INDEX).read_text(encoding="utf-8")
        write_atomically(units / INDEX, merged)
        return sum(shard["samples"] for shard in json.loads(merged)["shards"])


def move_into_place(aside: Path, target: Path) -> None:
    """Rename a unit's folder to its final name, unless another process has committed it."""
    if (target / REPORT).exists():
        return
    try:
        os.rename(aside, target)
    except OSError:  # also if it was committed just now: rename replaces only an empty folder
        if not (target / REPORT).exists():
            raise
    fsync(target.parent)


def set_aside(path: Path, name: Path) -> Path:
    """Rename a file or folder to ``name`` with the first free number; return the new path."""
    number = 1
    while (aside := name.with_name(f"{name.name}-{number}")).exists():
        number += 1
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, aside)
    return aside


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
