"""llm-foundry's callback that exports Hugging Face folders, recognized without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from composer.core import Event, State
from composer.loggers import Logger, RemoteUploaderDownloader
from composer.utils import format_name_with_dist_and_time
from transformers import PretrainedConfig

from spin_composer.foundry.compat import patch_foundry
from spin_composer.store.durable import apply_umask

_ITERATION = "{iteration}"


class FoundryCheckpointer(Protocol):
    """llm-foundry's ``HuggingFaceCheckpointer``, and the name that SPIN stores in it."""

    check_interval: Callable[[State, Event], bool]
    huggingface_folder_name_fstr: str
    remote_ud: RemoteUploaderDownloader | None
    save_additional_contents: Callable[[State, Logger, str], None]
    save_dir_format_str: str
    spin_folder_name: str

    def transform_config(self, original_config: PretrainedConfig) -> PretrainedConfig:
        """Return the config that is written, a copy."""
        ...


class FoundryExporter:
    """Adapts a ``HuggingFaceCheckpointer`` to the interface of exporters.

    See :class:`spin_composer.export.exporters.Exporter`.
    """

    merges_adapters = False

    def __init__(self, callback: FoundryCheckpointer) -> None:
        self._callback = callback

    @property
    def check_interval(self) -> Callable[[State, Event], bool]:
        """Tells whether an export is due; may be set."""
        return self._callback.check_interval

    @check_interval.setter
    def check_interval(self, interval: Callable[[State, Event], bool]) -> None:
        self._callback.check_interval = interval

    @property
    def folder(self) -> str:
        """The folder of all exports, local or in the object store, as Composer's format string."""
        return self._callback.save_dir_format_str

    @property
    def local_folder(self) -> str | None:
        """The folder, as Composer's format string, of exports that stay on a disk."""
        return None if self._callback.remote_ud is not None else self._callback.save_dir_format_str

    @property
    def uploader(self) -> RemoteUploaderDownloader | None:
        """What uploads folders to an object store; None if they stay on a disk."""
        return self._callback.remote_ud

    def place(self, state: State, iteration: int) -> str:
        """Return the folder, or its name in the object store, of an export that is written now."""
        name = self._callback.huggingface_folder_name_fstr.replace(_ITERATION, str(iteration))
        place = str(Path(self._callback.save_dir_format_str) / name)
        return format_name_with_dist_and_time(place, state.run_name, state.timestamp)

    def exported_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the config that is written, a copy."""
        return self._callback.transform_config(config)


def _checkpointers(state: State) -> list[FoundryCheckpointer]:
    module = sys.modules.get("llmfoundry.callbacks.hf_checkpointer")
    if module is None:  # no callback can be one whose class was never imported
        return []
    patch_foundry()
    checkpointers = [c for c in state.callbacks if isinstance(c, module.HuggingFaceCheckpointer)]
    return cast("list[FoundryCheckpointer]", checkpointers)


def foundry_exporters(state: State) -> list[FoundryExporter]:
    """Return llm-foundry's callbacks that export Hugging Face folders."""
    return [FoundryExporter(callback) for callback in _checkpointers(state)]


def export_for_all_users(state: State) -> None:
    """Have llm-foundry's next exports readable by whom the umask lets; call it once."""
    for callback in _checkpointers(state):
        given = callback.save_additional_contents  # called when the weights are written

        def save_additional_contents(
            state: State,
            logger: Logger,
            save_dir: str,
            given: Callable[[State, Logger, str], None] = given,
        ) -> None:
            given(state, logger, save_dir)
            apply_umask(Path(save_dir))

        callback.save_additional_contents = save_additional_contents


def set_export_names(state: State) -> None:
    """Insert the current iteration into the names of llm-foundry's next exports.

    Composer's format strings do not support ``{iteration}``, and at an iteration's end, when the
    folder is written, its clock already shows the next one. Call it at an iteration's start, and
    when a run is resumed within one.
    """
    for callback in _checkpointers(state):
        given = getattr(callback, "spin_folder_name", callback.huggingface_folder_name_fstr)
        callback.spin_folder_name = given
        name = given.replace(_ITERATION, str(int(state.timestamp.iteration)))
        callback.huggingface_folder_name_fstr = name
