"""What the files of a run's store say of it: what reports are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_composer.errors import StoreError
from spin_composer.report.history import RunHistory, find_history, no_history
from spin_composer.report.outline import RunOutline
from spin_composer.report.processes import Process, read_processes
from spin_composer.report.samples import Sample, read_samples
from spin_composer.report.status import Status, read_status
from spin_composer.report.steps import StepRow, read_steps
from spin_composer.store.layout import HISTORY, JUDGE


@dataclass(frozen=True)
class RunFiles:
    """A run, as far as it has come."""

    where: str
    """Its store, for people."""
    history: RunHistory
    steps: Sequence[StepRow]
    """None of a run of an older version."""
    samples: Sequence[Sample]
    processes: Sequence[Process]
    """None of a run of an older version."""
    status: Status
    judged: Sequence[Mapping[str, Any]] = ()
    """The models of a judge's result, the start first."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is going to change: the run is finished, and its process has ended."""
        total = self.status.outline.iterations
        trained = total is not None and len(self.history.iterations) >= total
        return (trained or bool(self.history.ended)) and not self.status.live


def read_run(outline: RunOutline, records: Path | None = None) -> RunFiles:
    """Read a run's files.

    Args:
        outline: The run's folders and length; what it lacks is taken from the run's own record.
        records: Folder with the store's small files, if they were downloaded.

    Raises:
        StoreError: If the run has not trained a step yet, or one of the files is damaged.
    """
    store = records or outline.store
    where = outline.remote.rstrip("/") if outline.remote else str(outline.store)
    history, steps = find_history(store / HISTORY), read_steps(store)
    if history is None and not steps:
        missing = f"{where}/{HISTORY}" if store.is_dir() else where
        raise no_history(missing)
    return RunFiles(
        where=where,
        history=history or RunHistory({}, []),
        steps=steps,
        samples=read_samples(store),
        processes=read_processes(store),
        status=read_status(outline, records),
        judged=_read_judged(store / JUDGE),
    )


def _read_judged(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.exists():
        return ()
    try:
        models = json.loads(path.read_text(encoding="utf-8", errors="replace"))["models"]
        return [{"name": str(one["name"]), "measures": dict(one["measures"])} for one in models]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged ({error!r}). Remove it; `spin-composer judge` writes it anew."
        ) from None
