"""The outline of a run from its YAML or its store: its folders and its length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spin_composer.errors import InputError
from spin_composer.report.history import GIVE_THE_STORE
from spin_composer.report.processes import read_processes
from spin_composer.save_folder import name_pattern
from spin_composer.settings.section import Config
from spin_composer.settings.spin import SpinSettings, count_iterations
from spin_composer.store.layout import (
    HISTORY,
    JUDGE,
    JUDGE_FOLDER,
    LOCK,
    RUN,
    STEPS,
    iteration_number,
)

_NAMES = ("ep{epoch}-ba{batch}-rank{rank}.pt", "ep{epoch}-ba{batch}")
"""Default names of checkpoints, full and sharded."""
_OF_A_STORE = frozenset({LOCK, HISTORY, STEPS, RUN, JUDGE, JUDGE_FOLDER})
"""What a store has beside the folders of its iterations."""


@dataclass(frozen=True)
class RunOutline:
    """A run's folders and length, as far as its YAML or store tells them."""

    store: Path
    remote: str | None = None
    """URL of the store, if it is in an object store."""
    save_folder: Path | None = None
    epochs: int | None = None
    """Epochs per iteration."""
    iterations: int | None = None
    names: tuple[str, ...] = _NAMES
    run_name: str = ""


def read_outline(run: Path | str, overrides: Sequence[str] = ()) -> RunOutline:
    """Return the outline of a run from its YAML, its store's folder, or its store's URL.

    Args:
        run: One of these.
        overrides: ``key=value``, of a YAML.

    Raises:
        InputError: If it is none of these, or overrides are given without a YAML. An empty folder
            is a store: of a run that has not begun.
    """
    is_yaml = Path(run).suffix in (".yaml", ".yml")
    if overrides and not is_yaml:
        raise InputError(f"{overrides[0]}: {run} is no YAML. Settings change a YAML's only.")
    if "://" in str(run):
        return RunOutline(Path(), remote=str(run))
    run = Path(run)
    if run.is_dir():
        store = run / "self-play"
        if store.is_dir() and not any(run.glob("iter-*")):
            raise InputError(f"{run} is a run's folder, not its store. Give {store}.")
        if not _is_store(run):
            raise InputError(
                f"{run} is not a run's store: it has files, but none of a store. {GIVE_THE_STORE}"
            )
        return RunOutline(run)
    if not is_yaml:
        raise InputError(f"{run} is neither a folder nor a YAML. Give the run's store or its YAML.")
    from spin_composer.settings.yaml import read_yaml, to_mapping, validate

    config = to_mapping(read_yaml(run, overrides))
    return outline_of(config, validate(config), str(run))


def _is_store(folder: Path) -> bool:
    """Return whether a folder may be a store: it has something of one, or nothing.

    Names that begin with a dot are nothing: as a store begins, of files that are being written.
    """
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return not names or any(n in _OF_A_STORE or iteration_number(n) is not None for n in names)


def outline_of(config: Config, settings: SpinSettings, where: str) -> RunOutline:
    """Return the outline of a run from its config; ``where`` names the config in messages.

    Raises:
        InputError: If the store's name contains {run_name} and it is not set.
    """
    name = str(config.get("run_name") or "")
    if not name and "{run_name}" in settings.store:
        raise InputError(f"{where} has no run_name, so its store has no name. Give the store.")
    folder = str(config.get("save_folder") or "")
    epochs = settings.epochs_per_iteration
    given = config.get("save_filename")
    return RunOutline(
        store=Path(settings.store.format(run_name=name)),
        remote=settings.remote_store and settings.remote_store.format(run_name=name),
        save_folder=(
            Path(folder.replace("{run_name}", name)) if folder and "://" not in folder else None
        ),
        epochs=epochs,
        iterations=count_iterations(config.get("max_duration"), epochs),
        names=(str(given),) if given else _NAMES,
        run_name=name,
    )


def checkpoint_patterns(outline: RunOutline) -> list[re.Pattern[str]]:
    """Return patterns of the names of a run's checkpoints."""
    return [name_pattern(name, outline.run_name) for name in outline.names]


def completed(outline: RunOutline, store: Path) -> RunOutline:
    """Return an outline, with what it lacks taken from the record of the run's newest process.

    Args:
        outline: Of a YAML, which knows it all, or of a store.
        store: Folder with the store's small files.

    Raises:
        StoreError: If the record is needed and damaged.
    """
    processes = read_processes(store) if outline.epochs is None else ()
    if not processes:
        return outline
    process = processes[-1]
    folder = Path(process.folder) / process.save_folder
    is_here = bool(process.save_folder) and "://" not in process.save_folder and folder.is_dir()
    names = (process.save_filename, *outline.names) if process.save_filename else outline.names
    return replace(
        outline,
        save_folder=folder if is_here else None,
        epochs=process.epochs_per_iteration,
        iterations=process.facts.iterations,
        names=tuple(dict.fromkeys(names)),
        run_name=process.run_name,
    )
