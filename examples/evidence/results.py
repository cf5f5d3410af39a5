"""The results' file: a line of JSON for each arm and seed, added when it is measured."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.evidence.worlds import Setting


@dataclass(frozen=True)
class Result:
    """What one arm came to with one seed."""

    world: str
    arm: str
    seed: int
    fingerprint: str
    """Of the world's settings: results of others do not stand in one file."""
    measures: dict[str, float]
    validation_nll: list[float]
    """After each iteration."""
    steps: int
    tokens: int
    seconds: float
    """Of training and measuring; where an arm is a part of another's training, of that one."""
    more: dict[str, Any]
    start: str = ""
    """Digest of the start's weights and of the rows (:func:`digest_of`); empty: not noted."""

    @property
    def key(self) -> tuple[str, int]:
        """What a file has one result of."""
        return self.arm, self.seed


def digest_of(setting: Setting) -> str:
    """Return a digest of a setting's weights and rows: results of a seed are of one of them.

    Args:
        setting: As it was made; other machines and versions make slightly other starts of a seed.
    """
    found = hashlib.sha256()
    weights = sorted(setting.start.glob("*.safetensors"))
    for path in (*weights, setting.train, setting.validation, setting.test):
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]


def read_results(path: Path) -> list[Result]:
    """Return the results of a file, none if there is none.

    A last line without its end is what a kill left behind, and does not count.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [Result(**json.loads(line)) for line in whole.splitlines() if line]


def append_result(path: Path, result: Result) -> None:
    """Add a line, which is on the disk when this returns; half a line before it is taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.dumps(asdict(one)) for one in [*read_results(path), result]]
    aside = path.with_name(f"{path.name}.partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in kept))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def of_arm(results: Sequence[Result], arm: str) -> list[Result]:
    """Return an arm's results by seed."""
    return sorted((one for one in results if one.arm == arm), key=lambda one: one.seed)
