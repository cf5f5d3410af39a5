"""The self-play store as its users know it; which one a run has is decided by ``open_store``.

A store holds iterations; an iteration has a manifest, written first, and units of pairs. A unit
exists wholly or not at all. Methods are local to a process: ranks agree outside of them.
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
"""What to do about a damaged unit; ``{folder}`` becomes the unit's."""

RESUME_AT_START = "resume from the checkpoint at the iteration's start."
"""What to do where a store does not fit the checkpoint."""


class Store(ABC):
    """Pairs and opponent log-probs of a run, iteration by iteration.

    Args:
        root: The folder on this machine that holds the store, or this node's copy of it.
    """

    shared: ClassVar[bool]
    """All ranks see the same ``root``; else each node has a copy of its own."""

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
        """Return where a run takes the locks of this store."""

    # --- manifest ---------------------------------------------------------------------------

    @abstractmethod
    def find_manifest(self, iteration: int) -> Manifest | None:
        """Return an iteration's manifest, or None if it has not begun.

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
        """Check that an iteration's manifest says what it is expected to say.

        Raises:
            StoreError: If there is none, or it differs; the differing fields are named.
        """

    @abstractmethod
    def check_open(self, manifest: Manifest, complete: Collection[int] | None = None) -> None:
        """Check that an iteration can be opened with a manifest; write nothing.

        Args:
            manifest: The iteration's.
            complete: Of :meth:`complete_units`; None: it is looked up, where it is needed.

        Raises:
            StoreError: If the folder holds another run's iteration (the differing fields are
                named), or units of which nothing says what they are.
        """

    @abstractmethod
    def open_iteration(self, manifest: Manifest, replace: bool = False) -> None:
        """Write an iteration's manifest, or check that the one that is there is the same.

        Args:
            manifest: The iteration's.
            replace: Replace another one by which nothing was played: that of a run which failed
                before it had made a unit. For the holder of the store's lock only.

        Raises:
            StoreError: See :meth:`check_open`.
        """

    @abstractmethod
    def is_unused(self, iteration: int) -> bool:
        """Tell whether nothing was played, or is being written, by an iteration's manifest."""

    @abstractmethod
    def prepare_node(self, iteration: int) -> None:
        """Make this node's copy of an open iteration ready for units that are made here.

        Raises:
            StoreError: If the iteration is not open.
        """

    # --- units ------------------------------------------------------------------------------

    @abstractmethod
    def complete_units(self, iteration: int) -> set[int]:
        """Return the units of an iteration that are complete, by one listing."""

    @abstractmethod
    def recover_unit(self, iteration: int, unit: int) -> bool:
        """Tell whether a unit is complete, after finishing what a killed process left to do."""

    @abstractmethod
    def commit_unit(
        self, iteration: int, unit: int, pairs: Sequence[Pair], report: UnitReport
    ) -> None:
        """Put a unit in place, whole; one that another process committed meanwhile stays."""

    @abstractmethod
    def report(self, iteration: int, unit: int) -> UnitReport:
        """Return the report of a complete unit."""

    @abstractmethod
    def read_unit(self, iteration: int, unit: int) -> Iterator[Pair]:
        """Yield the pairs of a complete unit, in the order they were written."""

    @abstractmethod
    def unit_bytes(
        self, iteration: int, units: Collection[int], remedy: str = REGENERATE_UNIT
    ) -> int:
        """Return the bytes of complete units' files together; one that is not there has none.

        Raises:
            StoreError: If a unit does not say them; ``remedy`` says what to do.
        """

    @abstractmethod
    def damage(self, iteration: int, unit: int, thorough: bool) -> str | None:
        """Return what is wrong with a unit that is there, or None.

        Args:
            iteration: Whose unit.
            unit: Which one.
            thorough: Also look at what is not on this machine.
        """

    @abstractmethod
    def set_unit_aside(self, iteration: int, unit: int) -> Path:
        """Give a damaged unit another name, so that it is missing; return that."""

    # --- what is trained on -----------------------------------------------------------------

    @abstractmethod
    def select_attempts(self, iteration: int, num_units: int, remedy: str) -> list[str]:
        """Settle, once for all nodes, which files of each unit are trained on.

        Call it on one rank; :meth:`fetch` takes what it returns.

        Raises:
            StoreError: If a unit is missing; ``remedy`` says what to do.
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
        """Have every unit in this node's folder, byte for byte what was committed.

        Args:
            iteration: Whose units.
            num_units: How many it has.
            selected: Of :meth:`select_attempts`.
            remedy: What to do about a damaged unit; ``{folder}`` is replaced by the unit's.
            verified: Units whose files here this process has verified already.

        Raises:
            StoreError: Names the first missing or damaged unit and the remedy.
            EnvironmentFailure: If this node's disk cannot hold them.
        """

    @abstractmethod
    def merge(self, iteration: int, num_units: int) -> int:
        """Merge the units' indices, in order, for StreamingDataset; return the number of pairs."""

    # --- what people read -------------------------------------------------------------------

    def publish(self, name: str) -> None:
        """Let other machines see a file that people read, by its name in the store."""
        del name

    def read_published(self, name: str) -> str | None:
        """Return the text of a file that people read; None if there is none."""
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    def fetch_records(self, aside: Path) -> Path:
        """Return a folder with manifests, units' reports, books and lock, laid out as a store's.

        Args:
            aside: An empty folder to bring them to, if they are not on this machine.
        """
        del aside
        return self.root
