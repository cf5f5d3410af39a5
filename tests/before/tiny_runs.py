"""Two tiny runs: what they leave on the disk and what they log."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from composer.loggers import InMemoryLogger

_OF_TIME = ("seconds", "per_second", "time_share")
"""Parts of the names of figures that are others at each run."""
_OF_TIME_IN_UNITS = (
    "generation_seconds", "scoring_seconds", "began", "ended", "files", "xxh64",
)  # fmt: skip
"""What of a unit's report is a time, or a hash of one."""


class KeptLogger(InMemoryLogger):
    """Keeps what a run logs, where the recorder finds it after the run."""

    latest: KeptLogger

    def __init__(self) -> None:
        super().__init__()
        KeptLogger.latest = self


def record_run(
    target: Path,
    changes: dict[str, Any],
    train: Callable[[str], list[str]],
    cli: Callable[[str], list[str]],
) -> None:
    """Train in the working directory; write ``target``.json and, of the weights, ``target``.npz."""
    from llmfoundry.registry import loggers
    from safetensors.numpy import load_file

    if "kept" not in loggers:
        loggers.register("kept", func=KeptLogger)
    said = train(inputs.write_yaml(Path("run.yaml"), {**changes, "loggers": {"kept": {}}}))
    if said != ["exit code 0"]:
        raise RuntimeError(f"the run of {target.name} ended with {said}")
    (exported,) = Path("checkpoints/huggingface/iter1").glob("*model.safetensors")
    weights = load_file(exported)
    found = {
        "said": {
            "report self-play": [
                _without_times(line, [-2]) for line in cli("report self-play --no-html")
            ],
            "status run.yaml": [_without_times(line, [4, 5]) for line in cli("status run.yaml")],
        },
        "files": {name: list(files(Path(name))) for name in ("self-play", "checkpoints")},
        **store(Path("self-play")),
        "weights": {
            name: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            for name, value in sorted(weights.items())
        },
        **logged(KeptLogger.latest),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    target.with_suffix(".json").write_text(_short(text) + "\n", encoding="utf-8")
    np.savez_compressed(target.with_suffix(".npz"), **weights)


def _short(text: str) -> str:
    """Put lists of numbers on one line."""
    return re.sub(
        r"\[\s+((?:-?[\d.e+-]+|NaN|null),?\s+)+\]", lambda m: " ".join(m[0].split()), text
    )


def _without_times(line: str, cells: list[int]) -> str:
    """Replace the numbers in the cells of a table's row that are times or speeds."""
    row = line.split("│")
    if len(row) > 6:
        for cell in cells:
            row[cell] = re.sub(r"[\d.,]+", "<time>", row[cell])
    return " ".join("│".join(row).split())


def files(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, links with what they point to."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            yield f"{name} -> {path.readlink()}"
        elif path.is_file():
            yield name


def store(folder: Path) -> dict[str, Any]:
    """Return what a self-play store holds: hashes of its shards, and its other files as data."""
    found: dict[str, Any] = {
        "shards": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("shard.*.mds"))
        },
        "indices": {}, "manifests": {}, "units": {}, "samples": {}, "pairs": {},
    }  # fmt: skip
    for path in sorted(folder.rglob("*.json*")):
        name, text = str(path.relative_to(folder)), path.read_text(encoding="utf-8")
        if path.name == "index.json":
            found["indices"][name] = json.loads(text)
            if path.parent.name == "units":
                found["pairs"][str(path.parents[1].relative_to(folder))] = list(pairs(path.parent))
        elif path.name == "manifest.json":
            found["manifests"][name] = json.loads(text)
        elif path.name == "samples.jsonl":
            found["samples"][name] = [
                {k: x for k, x in json.loads(line).items() if not k.endswith("_tokens")}
                for line in text.splitlines()
            ]
        elif path.name == "unit.json":
            unit = json.loads(text)
            kept = {k: v for k, v in unit.items() if k not in _OF_TIME_IN_UNITS}
            found["units"][name] = kept | {"names": sorted(unit)}
        elif path.name == "iterations.json":
            found["books"] = books(json.loads(text))
    return found


def pairs(units: Path) -> Iterator[dict[str, Any]]:
    """Yield the pairs of merged units as Streaming reads them."""
    from streaming.base.format import reader_from_json

    for shard in json.loads((units / "index.json").read_text())["shards"]:
        reader = reader_from_json(str(units), None, shard)
        for i in range(reader.samples):
            sample = reader[i]
            yield {name: np.asarray(value).tolist() for name, value in sample.items()}


def books(found: dict[str, Any]) -> dict[str, Any]:
    """Return a run's books with the names of all figures, and the values of those not of time."""
    return {
        **found,
        "baseline": _of_figures(found["baseline"]),
        "iterations": [_of_figures(record) for record in found["iterations"]],
    }


def _of_figures(record: dict[str, float]) -> dict[str, Any]:
    return {name: None if of_time(name) else value for name, value in record.items()}


def of_time(name: str) -> bool:
    """Tell whether a figure is another one at each run."""
    return any(part in name for part in _OF_TIME)


def logged(logger: InMemoryLogger) -> dict[str, Any]:
    """Return names of all that was logged; batches and values of the figures not of time."""
    figures: dict[str, list[Any]] = {}
    for name, entries in sorted(logger.data.items()):
        figures[name] = []
        for stamp, value in entries:
            at = [int(stamp.iteration), int(stamp.batch)]
            try:
                figures[name].append(at if of_time(name) else [*at, float(value)])
            except (TypeError, ValueError):  # a text or a table
                figures[name].append(at)
    return {"metrics": figures, "tables": dict(sorted(logger.tables.items()))}
