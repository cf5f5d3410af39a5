"""What is kept of a judged model in the run's folder: its rows, so that none is sampled twice.

    <run>/judge/start.json             the start model's, of the callback
    <run>/judge/iter-000.json          those of the policy that iteration 0 trained
    <run>/judge/<way>/iter-000.json    the command's, by the way of judging
    <run>/judge.json                   the measures, the best iteration, and why

A file is of one model and one way of judging, which its ``key`` names: of another it is sampled
again. The command writes none of the callback's files: a run cannot sample earlier models again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from spin_composer.judge.held_out import JudgedRows
from spin_composer.judge.sampling import JudgedRow
from spin_composer.settings.generation import GenerationSettings
from spin_composer.store.durable import dump_hashed, load_hashed, write_atomically
from spin_composer.store.layout import JUDGE_FOLDER

log = logging.getLogger(__name__)

START = "start"
"""The name of the start model."""
_FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """A judged model."""

    key: Mapping[str, Any]
    """What its rows depend on."""
    rows: Sequence[JudgedRow]
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Size and time of change of the files that it was loaded from, if it was."""
    export: str = ""
    """The folder, or the object store's name, of its export; empty if there is none."""
    places: Sequence[str] = ()
    """The same of each of a run's exporters."""

    def as_text(self) -> str:
        """Return the file's text."""
        rows = [asdict(row) for row in self.rows]
        exported = {"export": self.export, "places": list(self.places)}
        return dump_hashed({"key": self.key, "files": self.files, **exported, "rows": rows})

    @classmethod
    def of_text(cls, text: str) -> Kept:
        """Parse a file's text.

        Raises:
            ValueError: It is damaged, or of another version.
        """
        found = load_hashed(text)
        try:
            rows = [JudgedRow(**row) for row in found["rows"]]
            places = found.get("places", [found["export"]])  # older versions knew of one
            return cls(found["key"], rows, found["files"], found["export"], places)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not of this version ({error})") from None


def make_key(
    weights: str, rows: JudgedRows, sampling: GenerationSettings, seed: int
) -> dict[str, Any]:
    """Return what the rows of a model depend on.

    Args:
        weights: The model's fingerprint.
        rows: The held-out rows.
        sampling: How it answers.
        seed: Of the sampling.
    """
    return {"weights": weights, **way_of_judging(rows, sampling, seed)}


def way_of_judging(rows: JudgedRows, sampling: GenerationSettings, seed: int) -> dict[str, Any]:
    """Return what the rows of every model depend on."""
    # Absent without any: so it is in files of versions that judged without them.
    strings = {"stop_strings": sampling.stop_strings} if sampling.stop_strings else {}
    return {
        "format": _FORMAT,
        "held_out": rows.fingerprint,
        "stop_token_id": rows.examples.stop_token_id,
        "max_new_tokens": sampling.max_new_tokens,
        "batch_size": sampling.batch_size,
        "seed": seed,
        **strings,
    }


def kept_name(name: str, way: Mapping[str, Any] | None = None) -> str:
    """Return the file of a model, below the run's folder.

    Args:
        name: The model's.
        way: For the command's files, the way of judging; None for the callback's.
    """
    if way is None:
        return f"{JUDGE_FOLDER}/{name}.json"
    digest = xxhash.xxh64(json.dumps(way, sort_keys=True).encode()).hexdigest()
    return f"{JUDGE_FOLDER}/{digest}/{name}.json"


def read_kept(text: str | None, where: object) -> Kept | None:
    """Return what is kept, None if there is nothing, or what there is cannot be read.

    Args:
        text: The file's text; None if there is none.
        where: Its name, for the log.
    """
    if text is None:
        return None
    try:
        return Kept.of_text(text)
    except ValueError as error:
        log.warning("%s is left out: %s.", where, error)
        return None


def write_kept(path: Path, kept: Kept) -> None:
    """Write a model's rows atomically to its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, kept.as_text())


def find_kept(path: Path) -> Kept | None:
    """Return what a model's file has; None if there is none."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    return read_kept(text, path)
