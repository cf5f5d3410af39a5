"""The self-play store: pairs and opponent log-probs of every iteration, as verified MDS units.

    <root>/iter-000/manifest.json        what was played, with whom, and how; written first
    <root>/iter-000/units/unit-00000/    one MDS shard set, and unit.json: counts and file hashes
    <root>/iter-000/units/index.json     the units merged, once all of them are there
    <root>/iter-000/samples.jsonl        a table of samples for people

A unit exists wholly or not at all: it is written aside, fsynced and renamed. Streaming does not
verify local files, so every unit is verified here, by size and xxh64, before it is trained on.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spin_composer.data.pairs import Pair
from spin_composer.errors import StoreError
from spin_composer.self_play.durable import (
    fsync,
    hash_file,
    json_object,
    seal,
    unseal,
    write_atomically,
)

FORMAT_VERSION = 1
STOP, LENGTH, STRING = 0, 1, 2
"""Finish reasons: the stop token, max_new_tokens, a stop string. Only the first ends with the
stop token; none is added to the others."""

DELETE_IT = (
    "Delete {folder} or set spin.repair=true; the same command makes it again at the iteration's "
    "start."
)
_COLUMNS = {
    "index": "int64",
    "prompt": "ndarray:int32",
    "real": "ndarray:int32",
    "generated": "ndarray:int32",
    "finish": "int64",
    "opponent_real": "float64",
    "opponent_generated": "float64",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One stored pair: the example's index in the data set, the pair, and how it ended."""

    index: int
    pair: Pair
    finish: int


@dataclass(frozen=True)
class UnitReport:
    """What a unit holds, and what making it took (``unit.json`` beside its file hashes)."""

    kind: str
    """``play``: generated and scored; ``replay``: an earlier iteration's pairs, rescored."""
    prompts: int
    """Prompts answered, or pairs rescored."""
    pairs: int
    """Pairs stored: prompts less the degenerate ones."""
    degenerate: int
    """Generated responses that equal the real one: no gradient, dropped."""
    truncated: int
    """Generated responses cut off by max_new_tokens."""
    generated_tokens: int
    """Tokens generated, degenerate ones included."""
    generation_seconds: float
    scoring_seconds: float
    noise: float
    """Mean |difference| per token, in nats, of two scorings of the same rows in different
    batches."""


class Store:
    """The store of one run. Every method is local; ranks share it through the file system."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def folder(self, iteration: int) -> Path:
        """Return the folder of an iteration."""
        return self.root / f"iter-{iteration:03d}"

    def unit_folder(self, iteration: int, unit: int) -> Path:
        """Return the folder of a unit, which exists once the unit is complete."""
        return self.folder(iteration) / "units" / f"unit-{unit:05d}"

    # --- manifest ---------------------------------------------------------------------------

    def open_iteration(self, manifest: Mapping[str, Any]) -> None:
        """Write an iteration's manifest, or check that the one on disk is the same.

        Raises:
            StoreError: If the folder holds another run's iteration; the differing fields are
                named.
        """
        manifest = json.loads(json.dumps({"format_version": FORMAT_VERSION, **manifest}))
        folder = self.folder(manifest["iteration"])
        if (folder / "manifest.json").exists():
            self.check_manifest(manifest)
            return
        if (folder / "units").exists() and any((folder / "units").iterdir()):
            raise StoreError(
                f"{folder} has units but no manifest.json, so nothing says what they are. "
                f"Delete {folder}, or set spin.repair=true to have it set aside and played again."
            )
        (folder / "units").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))

    def manifest(self, iteration: int) -> dict[str, Any]:
        """Return an iteration's manifest.

        Raises:
            StoreError: If there is none, or it is not readable.
        """
        path = self.folder(iteration) / "manifest.json"
        try:
            return json_object(path.read_text())
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing, but iteration {iteration} is being trained. Restore the "
                "self-play store, or resume from the checkpoint at the iteration's start."
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged ({error}). Delete {path.parent}, or set spin.repair=true."
            ) from None

    def check_manifest(self, wanted: Mapping[str, Any]) -> None:
        """Check that an iteration's manifest says what it is expected to say.

        Raises:
            StoreError: If there is none, or it differs; the differing fields are named.
        """
        found = self.manifest(wanted["iteration"])
        fields = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        if fields:
            named = ", ".join(
                f"{k} (store {found.get(k)!r}, run {wanted.get(k)!r})" for k in sorted(fields)
            )
            raise StoreError(
                f"{self.folder(wanted['iteration'])} was played by another run; it differs in "
                f"{named}. Delete it to play again, or set spin.store to another folder."
            )

    # --- units ------------------------------------------------------------------------------

    def has_unit(self, iteration: int, unit: int) -> bool:
        """Tell whether a unit is complete."""
        return (self.unit_folder(iteration, unit) / "unit.json").exists()

    def missing_units(self, iteration: int, num_units: int) -> list[int]:
        """Return the units of an iteration that are not complete."""
        return [u for u in range(num_units) if not self.has_unit(iteration, u)]

    def commit_unit(
        self, iteration: int, unit: int, rows: Sequence[Row], report: UnitReport
    ) -> None:
        """Write a unit aside and put it in place whole.

        A unit that another process committed meanwhile stays: both hold the same rows.
        """
        target = self.unit_folder(iteration, unit)
        aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
        try:
            if rows:
                _write_mds(aside, rows)
            else:  # MDS knows no empty dataset: an all-degenerate unit is its unit.json alone
                aside.mkdir(parents=True)
            files = {
                path.name: {"bytes": path.stat().st_size, "xxh64": hash_file(path)}
                for path in sorted(aside.iterdir())
            }
            write_atomically(aside / "unit.json", seal({**asdict(report), "files": files}))
            for path in aside.iterdir():
                fsync(path)
            fsync(aside)
            if not self.has_unit(iteration, unit):
                os.rename(aside, target)
                fsync(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def report(self, iteration: int, unit: int) -> UnitReport:
        """Return the report of a complete unit."""
        found = unseal((self.unit_folder(iteration, unit) / "unit.json").read_text())
        found.pop("files")
        return UnitReport(**found)

    def problem(self, iteration: int, unit: int) -> str | None:
        """Return what is missing of a unit or differs from what was committed, or None."""
        folder = self.unit_folder(iteration, unit)
        if not folder.exists():
            return f"{folder} is missing"
        try:
            files = unseal((folder / "unit.json").read_text())["files"]
        except FileNotFoundError:
            return f"{folder / 'unit.json'} is missing"
        except ValueError:
            return f"{folder / 'unit.json'} is damaged"
        for name, wanted in files.items():
            path = folder / name
            size = path.stat().st_size if path.exists() else -1
            if size < 0:
                return f"{path} is missing"
            if size != wanted["bytes"] or hash_file(path) != wanted["xxh64"]:
                return f"{path} is damaged ({size} bytes)"
        return None

    def verify(self, iteration: int, num_units: int, remedy: str = DELETE_IT) -> None:
        """Check that every unit is there and byte for byte what was committed.

        Args:
            iteration: Whose units.
            num_units: How many it has.
            remedy: What to do; ``{folder}`` is replaced by the unit's.

        Raises:
            StoreError: Names the first missing or damaged unit and the remedy.
        """
        for unit in range(num_units):
            if problem := self.problem(iteration, unit):
                folder = self.unit_folder(iteration, unit)
                raise StoreError(f"{problem}. {remedy.format(folder=folder)}")

    def read_unit(self, iteration: int, unit: int) -> Iterator[Row]:
        """Yield the rows of a complete unit, in the order they were written."""
        from streaming.base.format import reader_from_json

        folder = self.unit_folder(iteration, unit)
        if not (folder / "index.json").exists():
            return
        index = json.loads((folder / "index.json").read_text())
        for shard in index["shards"]:
            reader = reader_from_json(str(folder), None, shard)
            for i in range(reader.samples):
                yield row_of_sample(reader[i])

    def merge(self, iteration: int, num_units: int) -> int:
        """Merge the units' indices, in order, for StreamingDataset; return the number of pairs."""
        from streaming.base.util import merge_index

        units = self.folder(iteration) / "units"
        indices = [units / f"unit-{u:05d}" / "index.json" for u in range(num_units)]
        indices = [str(path) for path in indices if path.exists()]
        if not indices:
            return 0
        aside = units / f".index.{uuid.uuid4().hex[:8]}"
        aside.mkdir()
        try:
            merge_index(indices, str(aside))
            merged = (aside / "index.json").read_text()
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        write_atomically(units / "index.json", merged)
        return sum(shard["samples"] for shard in json.loads(merged)["shards"])


def row_of_sample(sample: Mapping[str, Any]) -> Row:
    """Return the row that an MDS sample of a unit holds."""
    pair = Pair(
        sample["prompt"],
        sample["real"],
        sample["generated"],
        float(sample["opponent_real"]),
        float(sample["opponent_generated"]),
    )
    return Row(int(sample["index"]), pair, int(sample["finish"]))


def _write_mds(folder: Path, rows: Sequence[Row]) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns=_COLUMNS, hashes=["xxh64"]) as writer:
        for row in rows:
            writer.write(
                {
                    "index": row.index,
                    "prompt": np.asarray(row.pair.prompt, np.int32),
                    "real": np.asarray(row.pair.real, np.int32),
                    "generated": np.asarray(row.pair.generated, np.int32),
                    "finish": row.finish,
                    "opponent_real": float(row.pair.opponent_real),
                    "opponent_generated": float(row.pair.opponent_generated),
                }
            )
