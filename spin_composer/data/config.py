"""The ``dataset:`` block of a SPIN ``train_loader``: llm-foundry's finetuning keys and ours.

Ours are ``on_bad_row``, ``truncate_prompt``, ``max_prompt_len``, ``date_string``, ``tokenize``,
``generation_prompt`` and ``special_tokens_in_text``. A working SFT block is accepted as it is. Keys
that SPIN gives no meaning to (it pads and shuffles per iteration itself) are named once in the
log; keys that would change which rows or tokens are trained on, and that SPIN cannot honour, are
errors.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from spin_composer.errors import InputError, shown

log = logging.getLogger(__name__)

# Keys of llm-foundry's loader that only order, cache or pad.
_WITHOUT_MEANING = {
    "allow_pad_trimming", "pad_to_longest", "shuffle", "shuffle_seed", "shuffle_algo",
    "shuffle_block_size", "num_canonical_nodes", "predownload", "partition_algo", "cache_limit",
    "sampling_method", "sampling_granularity", "batching_method", "token_encoding_type",
    "auto_packing_replication", "batch_size",
}  # fmt: skip
# Key -> (values that mean "off", what to do about any other value).
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "packing_ratio": (
        (None, 1, 1.0), "SPIN does not pack rows: remove it (its batches carry no padding anyway)"
    ),
    "max_leftover_bins_to_keep": ((None,), "SPIN does not pack rows: remove it"),
    "target_responses": (
        (None, "last"), "SPIN plays the last response only: set it to last, or split the "
        "conversations into one row per response"
    ),
    "target_prompts": ((None, "none"), "SPIN never trains on prompts: set it to none"),
    "decoder_only_format": (
        (None, True), "SPIN trains decoder-only models: set it to true, and use such a model"
    ),
    "epoch_size": (
        (None,), "SPIN reads every row: remove it, and set the algorithm's number of samples per "
        "iteration instead"
    ),
    "replication": ((None, 1), "SPIN has no sequence parallelism: remove it"),
    "seq_parallel_replication": ((None, 1), "SPIN has no sequence parallelism: remove it"),
    "allow_unsafe_types": (
        (None, False), "pickled columns can run code when read: write the data with str or json "
        "columns (spin-composer data convert)"
    ),
}  # fmt: skip
LOADER_KEYS = (
    "name", "dataset", "num_workers", "drop_last", "pin_memory", "prefetch_factor",
    "persistent_workers", "timeout",
)  # fmt: skip
"""Keys of the ``train_loader`` block itself."""
_STREAM_WEIGHTS = ("proportion", "repeat", "choose")


@dataclass(frozen=True)
class DatasetConfig:
    """What the ``dataset:`` block says, checked."""

    max_seq_len: int
    """Most tokens of prompt and response together."""
    hf_name: str | None = None
    """A Hugging Face data set, a local file or folder, a builder (json) or a remote folder."""
    split: str | None = None
    """The split's name; for a stream its subfolder."""
    hf_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of datasets.load_dataset (trust_remote_code is false unless set here)."""
    safe_load: bool = False
    """Read files of data formats only, never a loading script."""
    preprocessing_fn: str | dict[str, str] | None = None
    """module:function, or {prompt: column, response: column}."""
    remote: str | None = None
    """Where an MDS stream lies (a URI or folder)."""
    local: str | None = None
    """The MDS stream's local folder."""
    streams: dict[str, dict[str, Any]] | None = None
    """Several MDS streams by name; all rows of all are read, in this order."""
    download_retry: int = 2
    """Further attempts at a shard's download."""
    download_timeout: float = 60
    """Seconds for a shard's download."""
    validate_hash: str | None = None
    """Hash that downloads are checked with; on the disk every hash of index.json is checked."""
    keep_zip: bool = False
    """Keep compressed shards."""
    stream_name: str = "stream"
    """Registered class of streaming.Stream."""
    stream_config: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that class."""
    on_bad_row: Literal["error", "skip"] = "error"
    """error: stop at the first bad row; skip: leave it out, count and log."""
    truncate_prompt: Literal["none", "left"] = "none"
    """left: cut a too long prompt at its start; none: such a row is bad."""
    max_prompt_len: int | None = None
    """Most tokens of a prompt; max_seq_len - 1 if not set."""
    date_string: str | None = None
    """The date that chat templates which print one are given; the template's own if not set."""
    tokenize: Literal["rendering", "turns"] | None = None
    """rendering (if not set): the whole row at once; turns: each turn by itself, llm-foundry's."""
    generation_prompt: Literal["template", "response"] = "template"
    """template: the prompt ends with the generation prompt; response: where the row parts."""
    special_tokens_in_text: Literal["error", "warn", "text"] = "warn"
    """Control tokens that prompts spell out: a bad row, counted, or encoded as plain text."""

    @property
    def prompt_limit(self) -> int:
        """Most tokens of a prompt."""
        return self.max_prompt_len if self.max_prompt_len is not None else self.max_seq_len - 1

    @property
    def source(self) -> str:
        """What the block names: files, a Hugging Face name, or MDS folders."""
        if self.hf_name is not None:
            files = self.hf_kwargs.get("data_files")
            return self.hf_name if files is None else f"{self.hf_name} {shown(files, 200)}"
        streams = list((self.streams or {}).values()) or [
            {"local": self.local, "remote": self.remote}
        ]
        return ", ".join(str(stream.get("remote") or stream.get("local")) for stream in streams)


def read_config(dataset: Mapping[str, Any], where: str = "train_loader.dataset") -> DatasetConfig:
    """Check the ``dataset:`` block and fill a ``DatasetConfig`` from it.

    Raises:
        InputError: A key is unknown, missing, of a wrong type, or asks for what SPIN cannot do.
    """
    given = {str(key): _plain(value) for key, value in dataset.items()}
    known = {f.name for f in fields(DatasetConfig)}
    for key in given:
        if key not in known | _WITHOUT_MEANING | set(_REFUSED):
            near = difflib.get_close_matches(key, known | _WITHOUT_MEANING | set(_REFUSED), n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known))}."
            raise InputError(f"{where}.{key}={shown(given[key])}: no such key. {hint}")
    for key, (harmless, remedy) in _REFUSED.items():
        value = given.get(key)
        if isinstance(value, str):
            value = value.lower()
        if value not in harmless:
            raise InputError(f"{where}.{key}={shown(given[key])} cannot be used: {remedy}.")
    idle = sorted(key for key in given if key in _WITHOUT_MEANING and given[key] is not None)
    if idle:
        log.info(
            "%s: %s have no effect here: SPIN shuffles anew in each iteration and its batches "
            "carry no padding.", where, ", ".join(idle),
        )  # fmt: skip
    values = {key: given[key] for key in known if given.get(key) is not None}
    _check_types(values, where)
    if "max_seq_len" not in values:
        raise InputError(
            f"{where}.max_seq_len is not set. Set it to the most tokens of prompt and response "
            "together that the model is trained on."
        )
    _check_source(values, where)
    config = DatasetConfig(**values)
    _check_lengths(config, where)
    _check_turns(config, where)
    return config


def check_loader_keys(given: Iterable[str], where: str = "train_loader") -> None:
    """Refuse keys that the block of a loader ``spin`` does not have.

    Raises:
        InputError: Names the key and the nearest known one.
    """
    for key in given:
        if key not in LOADER_KEYS:
            near = difflib.get_close_matches(key, LOADER_KEYS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(LOADER_KEYS)}."
            raise InputError(f"{where}.{key}: no such key. {hint}")


def _plain(value: Any) -> Any:
    """Turn OmegaConf containers into dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return [_plain(item) for item in value]


_TYPES: dict[str, type | tuple[type, ...]] = {
    "max_seq_len": int, "max_prompt_len": int, "hf_name": str, "split": str, "hf_kwargs": dict,
    "safe_load": bool, "preprocessing_fn": (str, dict), "remote": str, "local": str,
    "streams": dict, "download_retry": int, "download_timeout": (int, float),
    "validate_hash": str, "keep_zip": bool, "stream_name": str, "stream_config": dict,
    "on_bad_row": str, "truncate_prompt": str, "date_string": str, "tokenize": str,
    "generation_prompt": str, "special_tokens_in_text": str,
}  # fmt: skip
_TYPE_NAMES = {
    int: "an integer", float: "a number", str: "a text", bool: "true or false",
    dict: "a mapping of keys to values",
}  # fmt: skip
_CHOICES = {
    "on_bad_row": ("error", "skip"), "truncate_prompt": ("none", "left"),
    "tokenize": ("rendering", "turns"), "generation_prompt": ("template", "response"),
    "special_tokens_in_text": ("error", "warn", "text"),
}  # fmt: skip


def _check_types(values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        expected = _TYPES[key]
        wrong_bool = isinstance(value, bool) and expected is not bool
        if wrong_bool or not isinstance(value, expected):
            kinds = expected if isinstance(expected, tuple) else (expected,)
            names = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
            raise InputError(
                f"{where}.{key}={shown(value)} is of type {type(value).__name__}. Give {names}."
            )
        if key in _CHOICES and value not in _CHOICES[key]:
            raise InputError(
                f"{where}.{key}={shown(value)} is not known. Set {' or '.join(_CHOICES[key])}."
            )
    mapping = values.get("preprocessing_fn")
    if isinstance(mapping, dict) and set(mapping) != {"prompt", "response"}:
        raise InputError(
            f"{where}.preprocessing_fn={shown(mapping)} must name the columns of prompt and "
            "response. Write {prompt: column, response: column}."
        )


def _check_source(values: dict[str, Any], where: str) -> None:
    given = [key for key in ("hf_name", "streams") if key in values]
    if "remote" in values or "local" in values:
        given.append("remote/local")
    if not given:
        raise InputError(
            f"{where}: it names no data. Set hf_name (a file, folder or Hugging Face name), "
            "local and/or remote (MDS), or streams."
        )
    if len(given) > 1:
        raise InputError(f"{where}: {' and '.join(given)} name different data. Keep one of them.")
    idle = [key for key in ("hf_kwargs", "safe_load") if values.get(key)]
    if idle and "hf_name" not in values:
        raise InputError(
            f"{where}.{idle[0]}={shown(values[idle[0]])} has no meaning for an MDS stream. "
            "Remove it."
        )
    for name, stream in (values.get("streams") or {}).items():
        if not isinstance(stream, dict) or not (stream.get("local") or stream.get("remote")):
            raise InputError(
                f"{where}.streams.{name}={shown(stream)} names no data. Set its local or remote."
            )
        for key in _STREAM_WEIGHTS:
            if stream.get(key) is not None:
                raise InputError(
                    f"{where}.streams.{name}.{key}={shown(stream[key])} cannot be used: SPIN reads "
                    "every row of every stream once. Remove it, or write the mixture as a data set "
                    "of its own."
                )


def _check_turns(config: DatasetConfig, where: str) -> None:
    given = {
        "generation_prompt": (config.generation_prompt, "response"),
        "special_tokens_in_text": (config.special_tokens_in_text, "text"),
    }
    for key, (value, refused) in given.items():
        if config.tokenize == "turns" and value == refused:
            raise InputError(
                f"{where}.{key}={value!r} needs tokenize: rendering: llm-foundry's turns cannot do "
                "it. Remove one of them."
            )


def _check_lengths(config: DatasetConfig, where: str) -> None:
    if config.max_seq_len < 2:
        raise InputError(
            f"{where}.max_seq_len={config.max_seq_len} leaves no room for a prompt and a response. "
            "Set it to at least 2."
        )
    if not 1 <= config.prompt_limit <= config.max_seq_len - 1:
        raise InputError(
            f"{where}.max_prompt_len={config.max_prompt_len} must lie between 1 and max_seq_len - 1"
            f" = {config.max_seq_len - 1}. Lower it, or raise max_seq_len."
        )
    if config.truncate_prompt == "left" and config.max_prompt_len is None:
        raise InputError(
            f"{where}.truncate_prompt='left' without max_prompt_len would leave a long prompt one "
            "token of response: set max_prompt_len so that prompt and response fit, e.g. half of "
            "max_seq_len."
        )
