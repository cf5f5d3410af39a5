"""Where a run's store is, and where its locks are, by its settings."""

from __future__ import annotations

from pathlib import Path

from spin_composer.settings.spin import SpinSettings
from spin_composer.store.local import Store
from spin_composer.store.lock import LockFile, LockPlace
from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.object_lock import LockObject
from spin_composer.store.remote import MirroredStore


def open_store(settings: SpinSettings, run_name: str) -> Store:
    """Return the store of a run: on a file system that ranks share, or in an object store."""
    root = Path(settings.store.format(run_name=run_name))
    if settings.remote_store is None:
        return Store(root)
    return MirroredStore(root, ObjectFolder(settings.remote_store.format(run_name=run_name)))


def lock_places(store: Store) -> list[LockPlace]:
    """Return where a run takes the locks of its store."""
    places: list[LockPlace] = [LockFile(store.root)]
    if isinstance(store, MirroredStore):
        places.append(LockObject(store.remote))
    return places
