"""What is kept of a judged model in the run's folder: its rows, so that none is sampled twice.

    <run>/judge/start.json       the start model's
    <run>/judge/iter-000.json    those of the policy that iteration 0 trained
    <run>/judge.json             the measures, the best iteration, and why

A file is of one model and one way of judging, which its ``key`` names: of another it is sampled
again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    """The folder, or the object store's name, of its export."""

    def as_text(self) -> str:
        """Return the file's text."""
        rows = [asdict(row) for row in self.rows]
        return dump_hashed(
            {"key": self.key, "files": self.files, "export": self.export, "rows": rows}
        )

    @classmethod
    def of_text(cls, text: str) -> Kept:
        """Parse a file's text.

        Raises:
            ValueError: It is damaged, or of another version.
        """
        found = load_hashed(text)
        try:
            rows = [JudgedRow(**row) for row in found["rows"]]
            return cls(found["key"], rows, found["files"], found["export"])
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
    return {
        "format": _FORMAT,
        "held_out": rows.fingerprint,
        "stop_token_id": rows.examples.stop_token_id,
        "max_new_tokens": sampling.max_new_tokens,
        "batch_size": sampling.batch_size,
        "seed": seed,
    }


def kept_name(name: str) -> str:
    """Return the file of a model by the model's name, below the run's folder."""
    return f"{JUDGE_FOLDER}/{name}.json"


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


def write_kept(run: Path, name: str, kept: Kept) -> None:
    """Write a model's rows atomically to the run's folder."""
    path = run / kept_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, kept.as_text())


def find_kept(run: Path, name: str) -> Kept | None:
    """Return what the run's folder has of a model."""
    path = run / kept_name(name)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    return read_kept(text, path)
