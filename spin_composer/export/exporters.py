"""The callbacks of a run that export Hugging Face folders: SPIN's own and llm-foundry's alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from composer.core import Event, State
from composer.loggers import RemoteUploaderDownloader
from transformers import PretrainedConfig

from spin_composer.export.callback import HuggingFaceExporter
from spin_composer.export.card import RunFacts
from spin_composer.foundry.exporter import foundry_exporters


class Exporter(Protocol):
    """What SPIN asks of a callback that exports Hugging Face folders."""

    @property
    def check_interval(self) -> Callable[[State, Event], bool]:
        """Tells whether an export is due; SPIN sets one that also is at the run's end."""
        ...

    @check_interval.setter
    def check_interval(self, interval: Callable[[State, Event], bool]) -> None: ...

    @property
    def merges_adapters(self) -> bool:
        """Whether a folder holds whole weights, and not a PEFT model's adapters alone."""
        ...

    @property
    def folder(self) -> str:
        """The folder of all exports, local or in the object store, as Composer's format string."""
        ...

    @property
    def local_folder(self) -> str | None:
        """The folder, as Composer's format string, of exports that stay on a disk."""
        ...

    @property
    def uploader(self) -> RemoteUploaderDownloader | None:
        """What uploads folders to an object store; None if they stay on a disk."""
        ...

    def place(self, state: State, iteration: int) -> str:
        """Return the folder, or its name in the object store, of an export that is written now."""
        ...

    def exported_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the config that is written, a copy."""
        ...


def exporters(state: State) -> list[Exporter]:
    """Return the callbacks that export Hugging Face folders."""
    own = [c for c in state.callbacks if isinstance(c, HuggingFaceExporter)]
    return [*own, *foundry_exporters(state)]


def describe_exports(state: State, facts: RunFacts) -> None:
    """Give SPIN's own exporters what they say of the run in their model cards."""
    for callback in state.callbacks:
        if isinstance(callback, HuggingFaceExporter):
            callback.facts = facts


def local_export_folders(state: State) -> list[str]:
    """Return the folders, as Composer's format strings, of exports that stay on a disk."""
    return [one.local_folder for one in exporters(state) if one.local_folder is not None]


def export_is_due(state: State, event: Event) -> bool:
    """Return whether an export is written at an event."""
    return any(one.check_interval(state, event) for one in exporters(state))
