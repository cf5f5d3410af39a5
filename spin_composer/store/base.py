"""The interface of self-play stores; ``open_store`` chooses a run's implementation.

A store holds iterations; an iteration has a manifest, written first, and units of pairs. Units are
atomic: complete or absent. Methods are local to a process; callers coordinate the ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from spin_composer.data.pairs import Pair
from spin_composer.store.lock import LockBackend
from spin_composer.store.manifest import Manifest
from spin_composer.store.unit import UnitReport

REGENERATE_UNIT = (
    "Delete {folder} or set algorithms.spin.repair=true; the same command makes it again at the "
    "iteration's start."
)
"""The remedy for a damaged unit; ``{folder}`` is replaced by the unit's folder."""

RESUME_AT_START = "resume from the checkpoint at the iteration's start."
"""The remedy for a store that does not match the checkpoint."""


class Store(ABC):
    """Pairs and opponent log-probs of a run, iteration by iteration.

    Args:
        root: The folder on this machine with the store, or with this node's copy of it.
    """

    shared: ClassVar[bool]
    """All ranks see the same ``root``; otherwise each node has its own copy."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    @classmethod
    @abstractmethod
    def open(cls, root: Path, url: str | None) -> Store:
        """Return the store in a folder of this machine, or the one behind a URL.

        Args:
            root: The folder.
            url: ``algorithms.spin.remote_store``; None without one.
        """

    @abstractmethod
    def folder(self, iteration: int) -> Path:
        """Return the folder of an iteration."""

    @abstractmethod
    def unit_folder(self, iteration: int, unit: int) -> Path:
        """Return the folder of a unit, which exists once the unit is complete."""

    @abstractmethod
    def lock_backends(self) -> list[LockBackend]:
        """Return the locks that a run must acquire."""

    # --- manifest ---------------------------------------------------------------------------

    @abstractmethod
    def find_manifest(self, iteration: int) -> Manifest | None:
        """Return an iteration's manifest, or None if it has not been started.

        Raises:
            StoreError: If it is not readable.
        """

    @abstractmethod
    def manifest(self, iteration: int) -> Manifest:
        """Return an iteration's manifest.

        Raises:
            StoreError: If there is none, or it is not readable.
        """

    @abstractmethod
    def check_manifest(self, wanted: Manifest) -> None:
        """Check that an iteration's manifest equals the expected one.

        Raises:
            StoreError: If there is none, or it differs; the differing fields are named.
        """

    @abstractmethod
    def check_open(self, manifest: Manifest, complete: Collection[int] | None = None) -> None:
        """Check, without writing, that an iteration can be opened with a manifest.

        Args:
            manifest: The iteration's manifest.
            complete: Result of :meth:`complete_units`; None: it is listed if needed.

        Raises:
            StoreError: If the folder has another run's iteration (the differing fields are named),
                or units without a manifest.
        """

    @abstractmethod
    def open_iteration(self, manifest: Manifest, replace: bool = False) -> None:
        """Write an iteration's manifest, or check that the existing one is equal.

        Args:
            manifest: The iteration's manifest.
            replace: Replace a different one that was not used (its run failed before it made a
                unit). For the holder of the store's lock only.

        Raises:
            StoreError: See :meth:`check_open`.
        """

    @abstractmethod
    def is_unused(self, iteration: int) -> bool:
        """Return whether no unit was made, or is being written, with an iteration's manifest."""

    @abstractmethod
    def prepare_node(self, iteration: int) -> None:
        """Prepare this node's copy of an open iteration for units made on this node.

        Raises:
            StoreError: If the iteration is not open.
        """

    @abstractmethod
    def set_unreadable_aside(self, iteration: int) -> None:
        """Give an iteration's folder another name unless it is empty or has a readable manifest."""

    @abstractmethod
    def remove_leftovers(self, iteration: int) -> None:
        """Remove temporary files of killed writers; those of the last hour may be in use."""

    # --- units ------------------------------------------------------------------------------

    @abstractmethod
    def complete_units(self, iteration: int) -> set[int]:
        """Return the complete units of an iteration, by a single listing."""

    @abstractmethod
    def recover_unit(self, iteration: int, unit: int) -> bool:
        """Finish what a killed process left undone; return whether the unit is complete."""

    @abstractmethod
    def commit_unit(
        self, iteration: int, unit: int, pairs: Sequence[Pair], report: UnitReport
    ) -> None:
        """Store a unit atomically; one that another process has committed is kept."""

    @abstractmethod
    def report(self, iteration: int, unit: int) -> UnitReport:
        """Return the report of a complete unit."""

    @abstractmethod
    def read_unit(self, iteration: int, unit: int) -> Iterator[Pair]:
        """Yield the pairs of a complete unit, in order."""

    @abstractmethod
    def unit_bytes(
        self, iteration: int, units: Collection[int], remedy: str = REGENERATE_UNIT
    ) -> int:
        """Return the total bytes of complete units' files; absent units count 0.

        Raises:
            StoreError: If the size of a unit is unknown; the message ends with ``remedy``.
        """

    @abstractmethod
    def damage(self, iteration: int, unit: int, thorough: bool) -> str | None:
        """Return what is wrong with an existing unit, or None.

        Args:
            iteration: The unit's iteration.
            unit: Index of the unit.
            thorough: Also check files that are not on this machine.
        """

    @abstractmethod
    def set_unit_aside(self, iteration: int, unit: int) -> Path:
        """Rename a damaged unit, so that it counts as missing; return the new name."""

    # --- training data ----------------------------------------------------------------------

    @abstractmethod
    def select_attempts(self, iteration: int, num_units: int, remedy: str) -> list[str]:
        """Decide, for all nodes, which attempt at each unit is trained on; call it on one rank.

        Returns:
            The argument ``selected`` of :meth:`fetch`.

        Raises:
            StoreError: If a unit is missing; the message ends with ``remedy``.
        """

    @abstractmethod
    def fetch(
        self,
        iteration: int,
        num_units: int,
        selected: Sequence[str],
        remedy: str = REGENERATE_UNIT,
        verified: Collection[int] = (),
    ) -> None:
        """Make every unit available in this node's folder, and verify its bytes.

        Args:
            iteration: The units' iteration.
            num_units: Number of its units.
            selected: Result of :meth:`select_attempts`.
            remedy: What to do about a damaged unit; ``{folder}`` is replaced by the unit's folder.
            verified: Units whose local files this process has verified already.

        Raises:
            StoreError: Names the first missing or damaged unit and the remedy.
            EnvironmentFailure: If this node's disk cannot hold them.
        """

    @abstractmethod
    def merge(self, iteration: int, num_units: int) -> int:
        """Merge the units' indices, in order, for StreamingDataset; return the number of pairs."""

    # --- reports ----------------------------------------------------------------------------

    def publish(self, name: str) -> None:
        """Make a report file visible to other machines, by its name in the store."""
        del name

    def read_published(self, name: str) -> str | None:
        """Return the text of a report file; None if there is none."""
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    def fetch_records(self, target: Path) -> Path:
        """Return a folder with manifests, reports, history, steps and lock, laid out as a store.

        Args:
            target: An empty folder to download them to, if they are not on this machine.
        """
        del target
        return self.root
