"""The table of samples that each iteration logs: prompts with real and generated responses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Sample:
    """A row of the table: a prompt with its real and its generated response, as texts."""

    iteration: int
    index: int
    """The row of the data set."""
    prompt: str
    real: str
    generated: str
    finish: str
    """Why the generated response ended: ``stop``, ``length`` or ``stop string``."""


COLUMNS = [field.name for field in fields(Sample)]


def as_rows(samples: Iterable[Sample]) -> list[list[int | str]]:
    """Return the table's cells by row, in the order of :data:`COLUMNS`."""
    return [list(astuple(sample)) for sample in samples]


def as_jsonl(samples: Iterable[Sample]) -> str:
    """Return the table as a text of one JSON object per line."""
    return "".join(f"{json.dumps(vars(sample))}\n" for sample in samples)
