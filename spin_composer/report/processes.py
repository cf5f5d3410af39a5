"""The processes of a run: what each was started with, and on what machine.

They are in the file ``run.json`` of the run's store. ``hooks.process_log`` adds one whenever the
run is started or resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spin_composer.errors import StoreError
from spin_composer.settings.fields import count_epochs
from spin_composer.store.layout import RUN

_PROCESSES = "processes"


@dataclass(frozen=True)
class Process:
    """A process of a run, as rank 0 saw it when it began to train."""

    run_name: str
    began: float
    """In seconds since the epoch (1970)."""
    iteration: int
    """Where it began, after loading a checkpoint."""
    epoch: int
    batch: int
    command: Sequence[str]
    """The command's words, secrets left out."""
    folder: str
    """The working directory, which relative names are of."""
    machine: Mapping[str, str | int]
    """Host, devices, ranks and so on, by title."""
    versions: Mapping[str, str]
    """Of Python and the packages that matter, by name."""
    settings: Mapping[str, Any]
    """``algorithms.spin``, defaults included."""
    training: Mapping[str, Any]
    """Settings of the Trainer's that SPIN does not own: see :class:`Training`."""
    save_folder: str = ""
    """Of checkpoints, a folder or a URL; empty if none are saved."""
    save_filename: str = ""
    """Composer's format of their names."""
    exports: Sequence[str] = ()
    """Folders of exports."""

    @property
    def facts(self) -> Training:
        """The settings of the Trainer."""
        names = {field.name for field in fields(Training)}
        return Training(**{name: x for name, x in self.training.items() if name in names})

    @property
    def epochs_per_iteration(self) -> int:
        """Epochs of training per iteration."""
        return count_epochs(self.settings["iteration_length"])


@dataclass(frozen=True)
class Training:
    """Settings of training that are not in ``algorithms.spin``."""

    iterations: int
    global_batch_size: int
    """Pairs of an optimizer step, over all ranks."""
    optimizer: str
    """Its class."""
    learning_rate: float
    """The optimizer's, which an iteration's own may replace."""
    weight_decay: float
    t_warmup: str
    decay: str
    precision: str
    seed: int
    schedule_length: str | None = None
    """Epochs that it decays over, where they are not the iteration's."""


def as_json(processes: Sequence[Process]) -> str:
    """Return the file's text."""
    return json.dumps({_PROCESSES: [asdict(one) for one in processes]}, indent=1) + "\n"


def parse_processes(text: str, where: object) -> list[Process]:
    """Return the processes of a file, the first one first; what a newer version adds is left out.

    Args:
        text: The file's text.
        where: Its name, for messages.

    Raises:
        StoreError: If it is damaged.
    """
    known = {field.name for field in fields(Process)}
    try:
        found = [
            Process(**{name: value for name, value in one.items() if name in known})
            for one in json.loads(text)[_PROCESSES]
        ]
        for one in found:
            _ = one.facts, one.epochs_per_iteration
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{where} is damaged ({error!r}). Remove it; no training needs it, and the next start "
            "of the run writes one."
        ) from None
    return found


def read_processes(store: Path) -> list[Process]:
    """Return the processes of the run whose store is a folder; none if an older version wrote it.

    Raises:
        StoreError: If the file is damaged.
    """
    path = store / RUN
    if not path.exists():
        return []
    return parse_processes(path.read_text(encoding="utf-8", errors="replace"), path)
