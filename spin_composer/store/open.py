"""Which store a run has: found by the scheme of its URL among :data:`STORES`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from spin_composer.settings.spin import LOCAL, STORES, SpinSettings
from spin_composer.store.base import Store


def open_store(settings: SpinSettings, run_name: str) -> Store:
    """Return the store of a run: on a file system that ranks share, or behind a URL.

    Args:
        settings: Name the folder, and the URL if there is one.
        run_name: In place of ``{run_name}``.

    Raises:
        EnvironmentFailure: If the store's client cannot be made.
    """
    root = Path(settings.store.format(run_name=run_name))
    url = settings.remote_store and settings.remote_store.format(run_name=run_name)
    scheme = url.partition("://")[0] if url else LOCAL
    module, _, name = STORES[scheme].partition(":")
    store: type[Store] = getattr(import_module(module), name)
    return store.open(root, url)
