"""A unit of the store on disk: one MDS shard set of pairs, and ``unit.json``.

``unit.json`` holds the unit's report and every file's size and xxh64. Streaming does not verify
local files, so units are verified here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from typing_extensions import NotRequired

from spin_composer.data.pairs import STOP, Ids, Pair
from spin_composer.pair_kinds import PairKind
from spin_composer.store.durable import (
    dump_hashed,
    fsync,
    hash_file,
    load_hashed,
    write_atomically,
)
from spin_composer.store.layout import INDEX, REPORT, temporary_name

_GAP = "server_gap"
"""The key of a report's ``logprob_gap`` in ``unit.json``."""
_COLUMNS = {
    "index": "int64",
    "prompt": "ndarray:int32",
    "real": "ndarray:int32",
    "generated": "ndarray:int32",
    "finish": "int64",
    "opponent_real": "float64",
    "opponent_generated": "float64",
}
_KIND_COLUMNS = {"kind": "int64", "finish_better": "int64"}
"""Columns of a unit with other pairs than ``NEWEST`` ones, which format version 2 does not have."""


class FileFacts(TypedDict):
    """Size and hash of a unit's file, as recorded in ``unit.json``."""

    bytes: int
    xxh64: str


class StoredPair(TypedDict):
    """A pair as an MDS sample: the columns of a unit."""

    index: int
    prompt: Ids
    real: Ids
    generated: Ids
    finish: int
    opponent_real: float
    opponent_generated: float
    kind: NotRequired[int]
    finish_better: NotRequired[int]


@dataclass(frozen=True)
class UnitReport:
    """The content and cost of a unit, stored in ``unit.json``."""

    kind: str
    """``play``: generated and scored; ``replay``: earlier iterations' pairs, rescored; ``between``:
    joined of responses of both, whose scores they have."""
    prompts: int
    """Prompts answered, or pairs rescored; 0 of a unit that is joined."""
    pairs: int
    """Pairs stored: prompts less the degenerate ones."""
    degenerate: int
    """Generated responses that equal the real one, by ids or by text; dropped."""
    truncated: int
    """Generated responses cut off by max_new_tokens."""
    generated_tokens: int
    """Tokens generated, including those of degenerate responses."""
    generation_seconds: float
    scoring_seconds: float
    noise: float
    """Mean |difference| per token, in nats, between two scorings of the same rows in different
    batches."""
    began: float = 0.0
    ended: float = 0.0
    """Start and end of its creation, in seconds since the epoch; 0 in older stores."""
    logprob_gap: float | None = None
    """Mean difference between the engine's log-probs and ours, in nats per token; None if the
    engine returns none."""


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``folder``; whatever remains there is removed on exit."""
    aside = folder.with_name(temporary_name(folder.name))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_unit(folder: Path, pairs: Sequence[Pair], report: UnitReport) -> None:
    """Write a unit's files to a new folder and fsync them."""
    if pairs:
        _write_mds(folder, pairs)
    else:  # MDS has no empty datasets: a unit without pairs has only its unit.json
        folder.mkdir(parents=True)
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh64": hash_file(path)}
        for path in sorted(folder.iterdir())
    }
    content = asdict(report)
    content[_GAP] = content.pop("logprob_gap")
    write_atomically(folder / REPORT, dump_hashed({**content, "files": files}))
    fsync_folder(folder)


def fsync_folder(folder: Path) -> None:
    """Flush a folder and its files to the disk."""
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)


def unit_files(text: str) -> dict[str, FileFacts]:
    """Return the sizes and hashes of a unit's files by name, from its ``unit.json``.

    Raises:
        ValueError: If it is damaged.
    """
    return load_hashed(text)["files"]


def read_report(folder: Path) -> UnitReport:
    """Return the report of a complete unit."""
    found = load_hashed((folder / REPORT).read_text(encoding="utf-8"))
    found.pop("files")
    gap = found.pop(_GAP, None)
    return UnitReport(**found, logprob_gap=gap)


def unit_problem(folder: Path) -> str | None:
    """Return what is missing or damaged in a unit, or None."""
    if not folder.exists():
        return f"{folder} is missing"
    try:
        files = unit_files((folder / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{folder / REPORT} is missing"
    except ValueError:
        return f"{folder / REPORT} is damaged"
    for name, wanted in files.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else -1
        if size < 0:
            return f"{path} is missing"
        if size != wanted["bytes"] or hash_file(path) != wanted["xxh64"]:
            return f"{path} is damaged ({size} bytes)"
    return None


def read_pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of a complete unit, in order."""
    from streaming.base.format import reader_from_json

    if not (folder / INDEX).exists():
        return
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for shard in index["shards"]:
        reader = reader_from_json(str(folder), None, shard)
        for i in range(reader.samples):
            yield pair_from_sample(reader[i])


def pair_from_sample(sample: StoredPair) -> Pair:
    """Convert an MDS sample of a unit to a pair; without a kind it is ``NEWEST``."""
    return Pair(
        sample["prompt"],
        sample["real"],
        sample["generated"],
        float(sample["opponent_real"]),
        float(sample["opponent_generated"]),
        int(sample["index"]),
        int(sample["finish"]),
        PairKind(int(sample.get("kind", PairKind.NEWEST))),
        int(sample.get("finish_better", STOP)),
    )


def _write_mds(folder: Path, pairs: Sequence[Pair]) -> None:
    from streaming import MDSWriter

    with_kinds = any(pair.kind is not PairKind.NEWEST for pair in pairs)
    columns = _COLUMNS | _KIND_COLUMNS if with_kinds else _COLUMNS
    with MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"]) as writer:
        for pair in pairs:
            sample: dict[str, object] = {
                "index": pair.index,
                "prompt": np.asarray(pair.prompt, np.int32),
                "real": np.asarray(pair.real, np.int32),
                "generated": np.asarray(pair.generated, np.int32),
                "finish": pair.finish,
                "opponent_real": float(pair.opponent_real),
                "opponent_generated": float(pair.opponent_generated),
            }
            if with_kinds:
                sample |= {"kind": int(pair.kind), "finish_better": pair.finish_better}
            writer.write(sample)
