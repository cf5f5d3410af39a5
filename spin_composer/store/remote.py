"""A self-play store in an object store, of which each node keeps a copy.

``store.layout`` documents the names of its objects.

Object stores cannot rename, so a unit exists once its object in ``done/`` exists. Each attempt has
its own name, so that two processes that make the same unit (the run and a ``spin-composer play``
job) cannot mix their files. Which attempt is trained on is decided once, for all nodes.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spin_composer.data.pairs import Pair
from spin_composer.errors import StoreError
from spin_composer.store.base import REGENERATE_UNIT
from spin_composer.store.durable import dump_hashed, json_object, load_hashed, write_atomically
from spin_composer.store.layout import (
    COMPLETE,
    MANIFEST,
    REPORT,
    SET_ASIDE,
    UNITS,
    Marker,
    marker_named,
    markers,
    unit_name,
)
from spin_composer.store.local import LocalStore, move_into_place, set_aside
from spin_composer.store.lock import LockBackend
from spin_composer.store.manifest import Manifest, normalize_manifest, require_equal_manifests
from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.object_lock import LockObject
from spin_composer.store.records import download_records
from spin_composer.store.space import require_space
from spin_composer.store.unit import (
    UnitReport,
    fsync_folder,
    staging_folder,
    unit_files,
    unit_problem,
)

log = logging.getLogger(__name__)

_TRANSFERS = 8
_DOWNLOAD_ATTEMPTS = 3
_DELETE = "Delete that folder, or set algorithms.spin.remote_store to another one."


class RemoteStore(LocalStore):
    """A store in an object store. Methods may be called on any rank of any node.

    Args:
        root: This node's own folder.
        remote: The folder in the object store, the same on all nodes.
    """

    shared = False

    def __init__(self, root: str | Path, remote: ObjectFolder):
        super().__init__(root)
        self.remote = remote

    @classmethod
    def open(cls, root: Path, url: str | None) -> RemoteStore:
        """See :class:`Store`.

        Raises:
            EnvironmentFailure: If the object store's client cannot be made.
        """
        assert url is not None
        return cls(root, ObjectFolder(url))

    def lock_backends(self) -> list[LockBackend]:
        """See :class:`Store`; another run could use the same local folder, or the same URL."""
        return [*super().lock_backends(), LockObject(self.remote)]

    # --- manifest ---------------------------------------------------------------------------

    def check_open(self, manifest: Manifest, complete: Collection[int] | None = None) -> None:
        """See :class:`Store`; the object store's manifest is authoritative."""
        iteration = manifest["iteration"]
        found = self.find_manifest(iteration)
        if found is not None:
            require_equal_manifests(found, normalize_manifest(manifest), self._url(iteration))
        elif self.complete_units(iteration) if complete is None else complete:
            raise StoreError(
                f"{self._url(iteration)} has units but no {MANIFEST}, so nothing says what they "
                f"are. {_DELETE}"
            )
        else:
            super().check_open(manifest)

    def open_iteration(self, manifest: Manifest, replace: bool = False) -> None:
        """See :class:`Store`; the object store's manifest and the node's agree."""
        wanted = normalize_manifest(manifest)
        iteration = wanted["iteration"]
        self.check_open(wanted)
        found = self.find_manifest(iteration)
        if found is not None:
            self.prepare_node(iteration)
        super().open_iteration(manifest, replace)
        if found is None:
            name = f"{self._name(iteration)}/{MANIFEST}"
            self.remote.upload(self.folder(iteration) / MANIFEST, name)
            # If two jobs open it at once, the one that wrote first reads the other's manifest.
            require_equal_manifests(
                self.find_manifest(iteration) or {}, wanted, self._url(iteration)
            )

    def is_unused(self, iteration: int) -> bool:
        """Return False: other nodes may have made units that are not visible here."""
        del iteration
        return False

    def prepare_node(self, iteration: int) -> None:
        """See :class:`Store`; a folder with another play is set aside."""
        found = self.find_manifest(iteration)
        if found is None:
            raise StoreError(
                f"{self._url(iteration)}/{MANIFEST} is missing, but its units are being made. "
                "Run the same command again."
            )
        folder = self.folder(iteration)
        try:
            if json_object((folder / MANIFEST).read_text(encoding="utf-8")) == found:
                return
        except (FileNotFoundError, ValueError):
            pass
        if folder.exists():  # its units may be of another play
            aside = set_aside(folder, folder.with_name(f"{folder.name}.{SET_ASIDE}"))
            log.warning(f"{folder} does not belong to this run and is set aside as {aside}.")
        (folder / UNITS).mkdir(parents=True)
        write_atomically(folder / MANIFEST, json.dumps(found, indent=1))

    def manifest(self, iteration: int) -> Manifest:
        """See :class:`Store`; it is downloaded to this node if necessary."""
        path = self.folder(iteration) / MANIFEST
        if not path.exists() and (found := self.find_manifest(iteration)) is not None:
            (path.parent / UNITS).mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found, indent=1))
        return super().manifest(iteration)

    def find_manifest(self, iteration: int) -> Manifest | None:
        """See :class:`Store`; reads the object store's manifest."""
        text = self.remote.read_text(f"{self._name(iteration)}/{MANIFEST}")
        try:
            return None if text is None else json_object(text)
        except ValueError as error:
            raise StoreError(
                f"{self._url(iteration)}/{MANIFEST} is damaged ({error}). {_DELETE}"
            ) from None

    # --- units ------------------------------------------------------------------------------

    def complete_units(self, iteration: int) -> set[int]:
        """See :class:`Store`; lists the complete units of the object store."""
        return set(self._attempts(iteration))

    def recover_unit(self, iteration: int, unit: int) -> bool:
        """See :class:`Store`; uploads a unit that is complete on this node only."""
        if unit in self._attempts(iteration, unit):
            return True
        folder = self.unit_folder(iteration, unit)
        if not folder.exists():
            return False
        if self._is_damaged_here(iteration, unit):
            return False  # it is made again
        self._upload(iteration, unit)
        return True

    def commit_unit(
        self, iteration: int, unit: int, pairs: Sequence[Pair], report: UnitReport
    ) -> None:
        """See :class:`Store`; the unit is written locally, then uploaded, its marker last."""
        super().commit_unit(iteration, unit, pairs, report)
        self._upload(iteration, unit)

    def unit_bytes(
        self, iteration: int, units: Collection[int], remedy: str = REGENERATE_UNIT
    ) -> int:
        """See :class:`Store`; sizes of units that are not on this node come from the markers."""
        here = {unit: LocalStore.unit_bytes(self, iteration, [unit]) for unit in units}
        absent = [unit for unit, size in here.items() if not size]
        attempts = self._attempts(iteration) if absent else {}
        names = [
            Marker(iteration, unit, attempts[unit][0]).name for unit in absent if unit in attempts
        ]
        with ThreadPoolExecutor(_TRANSFERS, "sizes") as pool:
            texts = pool.map(self.remote.read_text, names)
            sizes = [
                self._attempt_bytes(*marker, remedy) for marker in zip(names, texts, strict=True)
            ]
        return sum(here.values()) + sum(sizes)

    def damage(self, iteration: int, unit: int, thorough: bool) -> str | None:
        """See :class:`Store`; a unit of which only this node's copy is damaged is intact."""
        here = self.unit_folder(iteration, unit).exists()
        whole = here and not self._is_damaged_here(iteration, unit)
        attempts = self._attempts(iteration, unit).get(unit) if thorough else None
        return (
            None if attempts is None else self._fetch_attempt(iteration, unit, attempts[0], whole)
        )

    def set_unit_aside(self, iteration: int, unit: int) -> Path:
        """See :class:`Store`; writes a marker that the attempt is damaged, and returns its name."""
        attempt = self._attempts(iteration, unit)[unit][0]
        name = Marker(iteration, unit, attempt, damaged=True).name
        self.remote.write_text(name, "set aside by algorithms.spin.repair\n")
        return Path(name)

    # --- what is trained on -----------------------------------------------------------------

    def select_attempts(self, iteration: int, num_units: int, remedy: str) -> list[str]:
        """See :class:`Store`; an earlier decision is kept."""
        # A job without the run's lock may have opened it with another opponent at the same time.
        found = self.find_manifest(iteration)
        if found is None:
            name = f"{self._url(iteration)}/{MANIFEST}"
            raise StoreError(f"{name} is missing. {remedy.format(folder=self._url(iteration))}")
        require_equal_manifests(found, self.manifest(iteration), self._url(iteration))
        made = self._attempts(iteration)
        name = f"{self._name(iteration)}/{COMPLETE}"
        text, selected = self.remote.read_text(name), []
        if text is not None:
            try:
                selected = load_hashed(text)["units"]
            except (ValueError, KeyError, TypeError):
                # The run may have trained on another attempt than would be selected now.
                raise StoreError(
                    f"{self.remote.url}/{name} is damaged, so nothing says which attempt at each "
                    f"unit is trained on. {remedy.format(folder=f'{self.remote.url}/{name}')}"
                ) from None
            if len(selected) >= num_units and all(
                attempt in made.get(unit, ()) for unit, attempt in enumerate(selected)
            ):
                return selected[:num_units]
        for unit in range(num_units):
            if unit not in made:
                folder = f"{self._url(iteration)}/{UNITS}/{unit_name(unit)}"
                raise StoreError(f"{folder} is missing. {remedy.format(folder=folder)}")
        kept = dict(enumerate(selected))  # of the first units, if others were made of them since
        chosen = [kept[u] if kept.get(u) in made[u] else made[u][0] for u in range(num_units)]
        self.remote.write_text(name, dump_hashed({"units": chosen}))
        return chosen

    def fetch(
        self,
        iteration: int,
        num_units: int,
        selected: Sequence[str],
        remedy: str = REGENERATE_UNIT,
        verified: Collection[int] = (),
    ) -> None:
        """See :class:`Store`; each unit is verified after the download, or if it is local.

        A different attempt than the local one may be selected for a unit in ``verified``.
        """
        del num_units
        (self.folder(iteration) / UNITS).mkdir(parents=True, exist_ok=True)
        names = [Marker(iteration, unit, attempt).name for unit, attempt in enumerate(selected)]

        def fetch_unit(unit: int) -> None:
            if problem := self._fetch_attempt(iteration, unit, selected[unit], verified=False):
                where = f"{self.remote.url}/{names[unit]}"
                raise StoreError(f"{problem}. {remedy.format(folder=where)}")

        with ThreadPoolExecutor(_TRANSFERS, "fetch") as pool:
            texts = list(pool.map(self.remote.read_text, names))
            absent = [
                unit
                for unit, text in enumerate(texts)
                if not self._has_attempt(iteration, unit, text, unit in verified)
            ]
            sizes = [self._attempt_bytes(names[unit], texts[unit], remedy) for unit in absent]
            what = f"the units of iteration {iteration} that this node lacks are"
            require_space(self.root, sum(sizes), what)
            list(pool.map(fetch_unit, absent))

    def publish(self, name: str) -> None:
        """See :class:`Store`."""
        if (self.root / name).exists():
            self.remote.upload(self.root / name, name)

    def read_published(self, name: str) -> str | None:
        """See :class:`Store`."""
        return self.remote.read_text(name)

    def fetch_records(self, target: Path) -> Path:
        """See :class:`Store`."""
        download_records(self.remote, target)
        return target

    def _attempts(self, iteration: int, unit: int | None = None) -> dict[int, list[str]]:
        """Return the usable attempts at each unit, the preferred one first."""
        names = self.remote.names(markers(iteration, unit))
        found = dict.fromkeys(marker for marker in map(marker_named, names) if marker)
        usable: dict[int, list[str]] = {}
        for marker in found:
            if not marker.damaged and marker._replace(damaged=True) not in found:
                usable.setdefault(marker.unit, []).append(marker.attempt)
        return usable

    def _is_damaged_here(self, iteration: int, unit: int) -> bool:
        """Return whether this node's copy of a unit is damaged; if so, set it aside."""
        if problem := self.problem(iteration, unit):
            aside = super().set_unit_aside(iteration, unit)
            log.warning(f"{problem}: this node's copy is set aside as {aside}.")
        return problem is not None

    def _upload(self, iteration: int, unit: int) -> None:
        made = Marker(iteration, unit, uuid.uuid4().hex[:8])
        folder = self.unit_folder(iteration, unit)
        for path in sorted(folder.iterdir()):
            if path.name != REPORT:
                self.remote.upload(path, f"{made.folder}/{path.name}")
        self.remote.upload(folder / REPORT, made.name)

    def _has_attempt(self, iteration: int, unit: int, marker: str | None, verified: bool) -> bool:
        """Return whether this node has the attempt with that marker, complete and intact.

        Files that are ``verified`` are not hashed again.
        """
        path = self.unit_folder(iteration, unit) / REPORT
        there = path.exists() and path.read_text(errors="replace") == marker
        return there and (verified or self.problem(iteration, unit) is None)

    def _fetch_attempt(self, iteration: int, unit: int, attempt: str, verified: bool) -> str | None:
        """Download an attempt, verify it, and move it into place.

        Returns:
            What is wrong with the attempt, or None.
        """
        marker = Marker(iteration, unit, attempt).name
        target = self.unit_folder(iteration, unit)
        problem: str | None = None
        for _ in range(_DOWNLOAD_ATTEMPTS):
            with staging_folder(target) as aside:
                try:
                    problem = self._download(iteration, unit, attempt, marker, aside)
                except FileNotFoundError as error:
                    problem = " ".join(str(error).split())
                if problem is None:
                    text = (aside / REPORT).read_text(encoding="utf-8")
                    if self._has_attempt(iteration, unit, text, verified):
                        return None
                    if target.exists():  # another attempt, or a damaged copy
                        set_aside(target, self.folder(iteration) / SET_ASIDE / target.name)
                    move_into_place(aside, target)
                    return None
        return _incomplete_error(f"{self.remote.url}/{marker}", problem)

    def _download(
        self, iteration: int, unit: int, attempt: str, marker: str, aside: Path
    ) -> str | None:
        """Download an attempt to ``aside``; return what is wrong with it, or None."""
        text = self.remote.read_text(marker)
        try:
            names = list(unit_files(text or ""))
        except ValueError:
            return "its marker is damaged"
        aside.mkdir(parents=True)
        folder = Marker(iteration, unit, attempt).folder
        for name in names:
            self.remote.download(f"{folder}/{name}", aside / name)
        (aside / REPORT).write_text(text or "", encoding="utf-8")
        problem = unit_problem(aside)
        fsync_folder(aside)
        return None if problem is None else problem.replace(f"{aside}/", "")

    def _attempt_bytes(self, name: str, marker: str | None, remedy: str) -> int:
        """Return the total bytes of a unit's files, from its marker.

        Raises:
            StoreError: If the marker is missing or damaged.
        """
        where = f"{self.remote.url}/{name}"
        try:
            return sum(int(file["bytes"]) for file in unit_files(marker or "").values())
        except (ValueError, KeyError, TypeError):
            problem = f"its marker is {'missing' if marker is None else 'damaged'}"
            raise StoreError(
                f"{_incomplete_error(where, problem)}. {remedy.format(folder=where)}"
            ) from None

    def _name(self, iteration: int) -> str:
        return self.folder(iteration).name

    def _url(self, iteration: int) -> str:
        return f"{self.remote.url}/{self._name(iteration)}"


def _incomplete_error(where: str, problem: str | None) -> str:
    return f"the unit of {where} is incomplete ({problem})"
