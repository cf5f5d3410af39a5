"""What is written at a run's end, tried at its start: tokenizer, config, metadata, export.

A tokenizer that cannot be saved, or a generation config that transformers refuses to write, would
end the run at its first checkpoint: after a whole iteration. Everything is written to a scratch
folder and read back.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import init_empty_weights
from composer.models import HuggingFaceModel
from composer.models.huggingface import maybe_get_underlying_model
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from peft import PeftModel

_PROBES = (
    "The cat sat on the mat.",
    " two  spaces,\na new line\n\n\tand 12345 digits",
    "def f(x):\n    return {'a': x ** 2}  # \u00e9\u4e2d\U0001f642",
)
_PROBE_CHAT = (
    [{"role": "user", "content": _PROBES[0]}, {"role": "assistant", "content": _PROBES[1]}],
    [{"role": "user", "content": _PROBES[2]}],
)


def dry_run_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Save tokenizer and config as checkpoints and exports do, and read both back.

    Args:
        tokenizer: The run's.
        config: The model's Hugging Face config.

    Raises:
        InputError: If they cannot be saved or read, or the tokenizer read back is another one.
    """
    stand_in = SimpleNamespace(config=config, tokenizer=tokenizer, using_peft=False, model=None)
    dry_run_metadata(cast(Any, stand_in))
    with tempfile.TemporaryDirectory(prefix="spin-rehearsal-") as scratch:
        folder = Path(scratch)
        with _saving(tokenizer, "an export", "the tokenizer's files"):
            tokenizer.save_pretrained(folder)
            config.save_pretrained(folder)
            again = _read(tokenizer, folder)
        _compare(tokenizer, again, "an export's")


def dry_run_metadata(model: HuggingFaceModel) -> None:
    """Make a checkpoint's metadata of model and tokenizer, and read the tokenizer back from it.

    Raises:
        InputError: If Composer cannot make it, or what it reads back is another tokenizer.
    """
    tokenizer: Any = model.tokenizer
    with _saving(tokenizer, "the first checkpoint", "the metadata of model and tokenizer"):
        metadata = HuggingFaceModel.get_metadata(model)
    if tokenizer is None or _is_own(tokenizer) or not tokenizer.is_fast:
        return  # Composer reads what AutoTokenizer makes of the files: a fast one, by its name
    with tempfile.TemporaryDirectory(prefix="spin-rehearsal-") as scratch:
        with _saving(tokenizer, "a checkpoint", "the tokenizer, read back from the metadata,"):
            again: Any = HuggingFaceModel.load_huggingface_tokenizer_from_saved_state(
                metadata, _is_remote(tokenizer), scratch
            )
        _compare(tokenizer, again, "a checkpoint's")


def dry_run_generation_config(config: GenerationConfig | None, name: str) -> None:
    """Write a model's generation config as an export does.

    Raises:
        InputError: If transformers refuses to.
    """
    if config is None:
        return
    with tempfile.TemporaryDirectory(prefix="spin-rehearsal-") as scratch:
        try:
            copy.deepcopy(config).save_pretrained(scratch)
        except Exception as error:
            said = " ".join(str(error).split())
            said = said.partition("Thrown during validation: ")[2] or said
            raise InputError(
                f"{name}: its generation_config.json cannot be saved, so the first export would "
                f"fail: {said[:400]} Correct it in a copy of the model (do_sample: true, or no "
                "sampling settings)."
            ) from error


def dry_run_export(
    model: PreTrainedModel | PeftModel,
    transform_config: Callable[[PretrainedConfig], PretrainedConfig],
) -> None:
    """Export a twin of a model whose tensors have one element, as the real one will be.

    Args:
        model: The Hugging Face model, not wrapped by FSDP yet; a PEFT model's base is tried.
        transform_config: The exporter's own change of the config.

    Raises:
        InputError: If it cannot be saved, or its config cannot be read back.
    """
    inner: Any = maybe_get_underlying_model(model)
    name = type(inner).__name__
    dry_run_generation_config(getattr(inner, "generation_config", None), name)
    tiny: dict[int, torch.Tensor] = {}  # what is tied stays tied
    with tempfile.TemporaryDirectory(prefix="spin-rehearsal-") as scratch:
        try:
            with init_empty_weights(include_buffers=False):
                twin = type(inner)(transform_config(inner.config))
            if twin.generation_config is not None and inner.generation_config is not None:
                twin.generation_config.update(**inner.generation_config.to_dict())
            if not hasattr(model, "peft_config"):
                state = {
                    key: tiny.setdefault(id(tensor), torch.zeros(1))
                    for key, tensor in inner.state_dict(keep_vars=True).items()
                }
                twin.save_pretrained(scratch, state_dict=state)
                if inner.config.model_type != "mpt" and not _is_remote(inner.config):
                    AutoConfig.from_pretrained(scratch)
        except Exception as error:
            raise InputError(
                f"model: a {name} cannot be exported, so the first export would fail "
                f"({type(error).__name__}: {' '.join(str(error).split())[:400]}). Correct the "
                "model's config."
            ) from error


def _read(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Read a saved tokenizer as one of the same kind."""
    if _is_own(tokenizer):
        return type(tokenizer).from_pretrained(folder)
    return AutoTokenizer.from_pretrained(
        folder, use_fast=tokenizer.is_fast, trust_remote_code=_is_remote(tokenizer)
    )


def _is_own(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer's class is the user's own, which AutoTokenizer does not find."""
    return type(tokenizer).__module__.partition(".")[0] not in (
        "transformers",
        "transformers_modules",
    )


def _is_remote(thing: object) -> bool:
    """Return whether a class came with the model, whose code the run has thus chosen to trust."""
    return type(thing).__module__.startswith("transformers_modules.")


@contextmanager
def _saving(tokenizer: PreTrainedTokenizerBase | None, when: str, what: str) -> Iterator[None]:
    """Name what failed, when it would have failed, and the remedy."""
    try:
        yield
    except Exception as error:
        files = [
            str(value)
            for key, value in getattr(tokenizer, "init_kwargs", {}).items()
            if key.endswith("_file") and isinstance(value, str)
        ]
        said = " ".join(str(error).split())[:300]
        name = getattr(tokenizer, "name_or_path", "")
        raise InputError(
            f"tokenizer {format_value(name, 200)}: {what} cannot be saved or read, so {when} would "
            f"fail ({type(error).__name__}: {said}). {_remedy(name, files, said)}"
        ) from error


def _remedy(name: str, files: Sequence[str], said: str) -> str:
    broken = Path(name or ".") / "tokenizer.model"
    if "tokenizer.model" in said or broken.exists() or "tokenizer.model" in " ".join(files):
        return (
            "If tokenizer.json holds the tokenizer, remove the file tokenizer.model beside it: "
            "sentencepiece, which Composer reads it with, must be able to."
        )
    return (
        "Save the tokenizer to a folder, correct its files there, and give tokenizer.name=<folder>."
    )


def _compare(
    tokenizer: PreTrainedTokenizerBase, again: PreTrainedTokenizerBase, whose: str
) -> None:
    """Reject a tokenizer that was read back as another one."""
    name = format_value(getattr(tokenizer, "name_or_path", ""), 200)
    remedy = (
        "Save it to a folder by its save_pretrained and give tokenizer.name=<folder> (without the "
        "kwargs that are lost): the run is then trained on what its exports hold."
    )
    if tokenizer.chat_template != again.chat_template:
        raise InputError(
            f"tokenizer {name}: its chat template is not in {whose} files: read back, it is "
            f"{format_value(again.chat_template)}. {remedy}"
        )
    texts = [*_PROBES, *_rendered(tokenizer)]
    for text in texts:
        before, after = (
            cast("list[int]", t(text, verbose=False)["input_ids"]) for t in (tokenizer, again)
        )
        if before != after:
            raise InputError(
                f"tokenizer {name}: {whose} tokenizer, read back, makes other ids of "
                f"{format_value(text)}: {_pieces(again, after)}, not {_pieces(tokenizer, before)}. "
                f"{remedy}"
            )


def _rendered(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the probe conversations that the chat template renders."""
    texts = []
    for chat in _PROBE_CHAT if tokenizer.chat_template else ():
        try:
            texts.append(tokenizer.apply_chat_template(chat, tokenize=False))
        except Exception as error:  # a template with roles of its own; the rows are checked with it
            logging.getLogger(__name__).debug("the chat template renders no probe: %s", error)
    return texts


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    pieces = tokenizer.convert_ids_to_tokens(ids[:12])  # pyright: ignore
    return format_value(pieces, 200)
