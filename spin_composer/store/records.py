"""The small files of a store in an object store, brought here for ``spin-composer status``."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.object_lock import BEAT_NAME, FILE_NAME
from spin_composer.store.unit import REPORT

_TRANSFERS = 16
_DONE = re.compile(r"(iter-\d+)/done/(unit-\d+)-([0-9a-f]{8})\.(json|damaged)")


def bring_records(remote: ObjectFolder, folder: Path) -> None:
    """Write manifests, units' reports, books and lock to ``folder``, laid out as a store's.

    The lock gets the time of its last beat, so that its age can be told as a local one's.
    """
    names = remote.names()
    wanted = {x: folder / x for x in names if re.fullmatch(r"iter-\d+/manifest\.json", x)}
    wanted |= {x: folder / x for x in names if x in ("iterations.json", FILE_NAME)}
    done = [match for match in map(_DONE.fullmatch, names) if match]
    damaged = {match.group(1, 2, 3) for match in done if match[4] == "damaged"}
    for match in done:
        if match.group(1, 2, 3) not in damaged:
            wanted[match[0]] = folder / match[1] / "units" / match[2] / REPORT

    def bring(name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.download(name, path)

    with ThreadPoolExecutor(_TRANSFERS, "records") as pool:
        list(pool.map(lambda item: bring(*item), wanted.items()))
    lock = folder / FILE_NAME
    if lock.exists() and not lock.stat().st_size:
        lock.unlink()  # given back
    elif lock.exists():
        beat = json.loads(remote.read_text(BEAT_NAME) or '{"time": 0}')
        os.utime(lock, (beat["time"], beat["time"]))
