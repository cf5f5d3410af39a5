"""Download the small files of a store in an object store, for ``status`` and ``report``."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spin_composer.store.layout import (
    HEARTBEAT,
    HISTORY,
    JUDGE,
    LOCK,
    MANIFEST,
    REPORT,
    RUN,
    SAMPLES,
    STEPS,
    UNITS,
    iteration_name,
    iteration_number,
    marker_named,
    unit_name,
)
from spin_composer.store.object_folder import ObjectFolder

_TRANSFERS = 16
_OF_THE_RUN = (HISTORY, STEPS, RUN, JUDGE, LOCK)


def download_records(remote: ObjectFolder, folder: Path) -> None:
    """Download manifests, reports and records to ``folder``, laid out as a store.

    The lock file gets the time of its last heartbeat, like a local one.
    """
    names = remote.names()
    wanted = {x: folder / x for x in names if x in _OF_THE_RUN or _is_of_an_iteration(x)}
    done = dict.fromkeys(marker for marker in map(marker_named, names) if marker)
    for marker in done:
        if not marker.damaged and marker._replace(damaged=True) not in done:
            iteration = folder / iteration_name(marker.iteration)
            wanted[marker.name] = iteration / UNITS / unit_name(marker.unit) / REPORT

    def download(name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.download(name, path)

    with ThreadPoolExecutor(_TRANSFERS, "records") as pool:
        list(pool.map(lambda item: download(*item), wanted.items()))
    lock = folder / LOCK
    if lock.exists() and not lock.stat().st_size:
        lock.unlink()  # released
    elif lock.exists():
        beat = json.loads(remote.read_text(HEARTBEAT) or '{"time": 0}')
        os.utime(lock, (beat["time"], beat["time"]))


def _is_of_an_iteration(name: str) -> bool:
    iteration, _, file = name.partition("/")
    return file in (MANIFEST, SAMPLES) and iteration_number(iteration) is not None
