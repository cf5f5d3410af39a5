"""Open a run's store, by the scheme of its URL in :data:`STORES`."""

from __future__ import annotations

from pathlib import Path

from spin_composer.settings.engines import import_class
from spin_composer.settings.fields import check
from spin_composer.settings.spin import LOCAL, STORES, SpinSettings, url_schemes
from spin_composer.store.base import Store


def open_store(settings: SpinSettings, run_name: str) -> Store:
    """Return the store of a run: on a shared file system, or at a URL.

    Args:
        settings: Have the folder, and the URL if there is one.
        run_name: Replaces ``{run_name}``.

    Raises:
        EnvironmentFailure: If the store's client cannot be made.
    """
    root = Path(settings.store.format(run_name=run_name))
    url = settings.remote_store and settings.remote_store.format(run_name=run_name)
    return store_at(root, url)


def store_at(root: Path, url: str | None) -> Store:
    """Return the store in a local folder, or at a URL.

    Args:
        root: The folder; for a store at a URL, this machine's copy of it.
        url: The URL, or None.

    Raises:
        InputError: If no store has the URL's scheme.
        EnvironmentFailure: If the store's client cannot be made.
    """
    scheme = url.partition("://")[0] if url else LOCAL
    known = url_schemes()
    wanted = f"one of {', '.join(f'{name}://' for name in known)}"
    check(url is None or scheme in known, "the object store's URL", url, wanted)
    store: type[Store] = import_class(STORES[scheme])
    return store.open(root, url)
