"""The Hugging Face folders that a run exports: named by iteration, and one of the run's end."""

from __future__ import annotations

from typing import Any

from composer.core import Event, State
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer

_ITERATION = "{iteration}"


def exporters(state: State) -> list[HuggingFaceCheckpointer]:
    """Return the callbacks that export Hugging Face folders."""
    return [c for c in state.callbacks if isinstance(c, HuggingFaceCheckpointer)]


def local_export_folders(state: State) -> list[str]:
    """Return the folders, as Composer's format strings, of exports that stay on a disk."""
    return [c.save_dir_format_str for c in exporters(state) if c.remote_ud is None]


def export_is_due(state: State, event: Event) -> bool:
    """Tell whether an export is written at an event."""
    return any(callback.check_interval(state, event) for callback in exporters(state))


def name_exports(state: State) -> None:
    """Put the iteration that is in training into the names of the exports to come.

    Composer's format strings know no ``{iteration}``, and at an iteration's end, when the folder is
    written, its clock already shows the next one. Call it at an iteration's start, and where a run
    goes on in its midst.
    """
    for callback in exporters(state):
        given: Any = getattr(callback, "spin_folder_name", callback.huggingface_folder_name_fstr)
        callback.spin_folder_name = given  # pyright: ignore[reportAttributeAccessIssue]
        name = str(given).replace(_ITERATION, str(int(state.timestamp.iteration)))
        callback.huggingface_folder_name_fstr = name
