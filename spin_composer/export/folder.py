"""A Hugging Face folder: there whole or not at all, and what is written into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig

from spin_composer.errors import InputError
from spin_composer.fsdp import plain_name
from spin_composer.model.tying import match_config_to_state
from spin_composer.model.unwrap import inner_model, plain_class
from spin_composer.store.durable import apply_umask, fsync
from spin_composer.store.layout import is_temporary, temporary_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FILES_OF_EXPORTS = ("config.json", "adapter_config.json")
"""One of these is in every export: of a whole model, of adapters."""
_FOLDERS_OF_EXPORTS = {"additional_chat_templates"}
"""What transformers writes of a tokenizer that has several chat templates."""


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write to, which then takes the place of ``folder``.

    What a process that was killed left of an earlier try is removed.

    Raises:
        InputError: Of :func:`check_replaceable`.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        if is_temporary(left.name):
            shutil.rmtree(left)
    aside = folder.with_name(temporary_name(folder.name))
    try:
        aside.mkdir()
        yield aside
        apply_umask(aside)
        for path in aside.iterdir():
            fsync(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(aside, folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Check that nothing would be lost but an export, where one is written.

    Raises:
        InputError: Something else stands at ``folder``: it is neither empty nor an export.
    """
    if not folder.exists():
        return
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        folders = {path.name for path in folder.iterdir() if path.is_dir()} - _FOLDERS_OF_EXPORTS
        if not names or (names.intersection(FILES_OF_EXPORTS) and not folders):
            return
    raise InputError(
        f"{folder} is not replaced by an export: it exists, and is not the folder of a model "
        "alone. Move it away, or give the exporter another save_folder or "
        "huggingface_folder_name."
    )


def save_model(
    model: PreTrainedModel | PeftModel,
    state: dict[str, Tensor],
    config: PretrainedConfig,
    generation_config: GenerationConfig | None,
    folder: Path,
) -> None:
    """Write weights and configs of a model, whose adapters are merged.

    Args:
        model: Whose class is saved; it is left as it is.
        state: Its :func:`~spin_composer.export.state.plain_state`; emptied of what was written.
        config: A copy of the model's; tied embeddings, vocabulary and dtype become those of
            ``state``.
        generation_config: What is written beside it; None: transformers' default.
        folder: Where to.

    Raises:
        RuntimeError: If ``state`` is not of such a model.
    """
    cls = plain_class(inner_model(model))
    with torch.device("meta"):
        # A twin without weights: save_pretrained would change the config of the model itself.
        twin = cls(config)
        if match_config_to_state(config, twin, state):
            twin = cls(config)
    wanted = set(twin.state_dict())
    if state.keys() != wanted:
        wrong = sorted(state.keys() ^ wanted)
        raise RuntimeError(f"a {cls.__name__} cannot be exported: it has, or lacks, {wrong[:3]}.")
    # The twin's config gets the dtype of its own parameters.
    dtype = next(t.dtype for t in state.values() if t.is_floating_point())
    twin.to(dtype)  # pyright: ignore[reportArgumentType]  (transformers' decorator hides self)
    if generation_config is not None:
        twin.generation_config = generation_config
    twin.save_pretrained(folder, state_dict=state)


def save_adapters(model: PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write a PEFT model's adapters and their config.

    PEFT looks up what to write by the names of modules, and leaves out what has another name: it is
    shown them without the wrappers of FSDP1 and of activation checkpointing, as in ``state``. Of
    the config that Composer was given, Composer has made the type a plain text, with which PEFT
    0.16 does not save.

    Args:
        model: The PEFT model itself, without a wrapper around it.
        state: Its :func:`~spin_composer.export.state.adapter_state`.
        folder: Where to.

    Raises:
        RuntimeError: If PEFT has left out some of the adapters.
    """
    from peft import PeftType

    kinds = [(config, config.peft_type) for config in model.peft_config.values()]

    def named_modules(*args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        for path, module in nn.Module.named_modules(model, *args, **kwargs):
            yield plain_name(f"{path}.").removesuffix("."), module

    model.__dict__["named_modules"] = named_modules
    try:
        for config, kind in kinds:
            config.peft_type = PeftType(kind)
        model.save_pretrained(str(folder), state_dict=state)
    finally:
        del model.__dict__["named_modules"]
        for config, kind in kinds:
            config.peft_type = kind
    written = 0
    for path in folder.rglob("adapter_model.safetensors"):
        with safe_open(path, "pt") as file:
            written += sum("lora_" in name for name in file.keys())  # noqa: SIM118  (no mapping)
    wanted = sum("lora_" in name for name in state)
    if written != wanted:
        raise RuntimeError(f"PEFT wrote {written} of the {wanted} tensors of adapters to {folder}.")
