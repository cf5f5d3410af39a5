"""Mark the best of a run's exports: ``best``, a link beside them, or ``best.json``."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from spin_composer.errors import EnvironmentFailure
from spin_composer.export.exporters import Exporter
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import temporary_name
from spin_composer.store.object_folder import with_retries

log = logging.getLogger(__name__)

LINK = "best"
FILE = "best.json"
"""Where there are no links: names the folder, null if no export is better than the start."""


def best_below(folder: str, places: Sequence[Sequence[str]], helped: Sequence[bool]) -> str | None:
    """Return the last export in a folder of an iteration that helped, by its name there.

    Args:
        folder: The folder of an exporter's exports, or its name in the object store.
        places: Of each iteration the exports of all exporters.
        helped: Whether each iteration did.
    """
    root = PurePosixPath(folder)
    for places_of_one, did in reversed(list(zip(places, helped, strict=True))):
        for place in map(PurePosixPath, places_of_one if did else ()):
            if root in place.parents:
                return str(place.relative_to(root))
    return None


def mark_best(exporter: Exporter, folder: str, best: str | None) -> None:
    """Mark the best export; a mark of before is replaced. Call it on rank 0.

    Args:
        exporter: Which writes the exports.
        folder: The folder of the exports, or its name in the object store.
        best: The best export's folder, as a path in it; None if none is better than the start.
    """
    text = json.dumps({"best": best}) + "\n"
    if exporter.uploader is not None:
        with tempfile.TemporaryDirectory(prefix="spin-best-") as scratch:
            path = Path(scratch) / FILE
            path.write_text(text, encoding="utf-8")
            name = str(PurePosixPath(folder, FILE))
            put = partial(exporter.uploader.remote_backend.upload_object, name, path)
            try:
                with_retries(folder, f"written ({FILE})", put)
            except EnvironmentFailure as error:  # the next iteration marks it again
                log.warning("%s does not name the best export: %s", name, error.__cause__)
        return
    root = Path(folder)
    if best is not None and not (root / best).exists():
        log.warning("%s is not marked as the best: it was not exported.", root / best)
        return
    if root.is_dir():
        _link(root, best, text)


def _link(root: Path, best: str | None, text: str) -> None:
    link = root / LINK
    if best is None:
        if link.is_symlink():
            link.unlink()
        if (root / FILE).exists():  # of before, where there are no links
            write_atomically(root / FILE, text)
        return
    aside = root / temporary_name(LINK)
    try:
        os.symlink(best, aside)
        os.replace(aside, link)
    except OSError as error:  # a file system without links, or a folder of that name
        aside.unlink(missing_ok=True)
        log.warning("%s cannot be a link (%s): %s names the best.", link, error, root / FILE)
        write_atomically(root / FILE, text)
