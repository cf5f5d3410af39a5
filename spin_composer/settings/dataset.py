"""The ``dataset:`` block of a SPIN ``train_loader``: llm-foundry's finetuning keys and ours.

Ours are ``on_bad_row``, ``truncate_prompt``, ``max_prompt_len``, ``date_string``, ``tokenize``,
``stop_token``, ``generation_prompt``, ``special_tokens_in_text``, ``num_proc`` and ``cache_dir``.
A working SFT block is accepted as it is. Keys that SPIN gives no meaning to (it pads and shuffles
per iteration itself) are named once in the log; keys that would change which rows or tokens are
trained on, and that SPIN cannot honor, are errors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from spin_composer.errors import InputError, format_value
from spin_composer.settings.fields import (
    Count,
    Positive,
    PositiveInt,
    Requirement,
    requirement_message,
    suggest_key,
)
from spin_composer.settings.section import Config, fill, section, to_plain

log = logging.getLogger(__name__)

Tokenization = Literal["rendering", "turns"]
"""How a row is tokenized: as a whole, as the template renders it, or turn by turn."""
DEFAULT_TOKENIZATION: Tokenization = "rendering"
LEGACY_TOKENIZATION: Tokenization = "turns"
"""Used by stores that were played before ``tokenize`` was a setting."""

# Keys of llm-foundry's loader that only order, cache or pad.
_IGNORED_KEYS = {
    "allow_pad_trimming", "pad_to_longest", "shuffle", "shuffle_seed", "shuffle_algo",
    "shuffle_block_size", "num_canonical_nodes", "predownload", "partition_algo", "cache_limit",
    "sampling_method", "sampling_granularity", "batching_method", "token_encoding_type",
    "auto_packing_replication", "batch_size",
}  # fmt: skip
# Key -> (values that mean "off", what to do about any other value).
_UNSUPPORTED_KEYS: dict[str, tuple[tuple[object, ...], str]] = {
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


def _columns(given: str | dict[str, str]) -> str | dict[str, str]:
    if isinstance(given, dict) and set(given) != {"prompt", "response"}:
        raise ValueError(
            f"={format_value(given)} must name the columns of prompt and response. Write "
            "{prompt: column, response: column}."
        )
    return given


@section("train_loader.dataset", frozen=True)
class DatasetConfig:
    """A run's data, and how its rows become ids (``train_loader.dataset``)."""

    max_seq_len: Annotated[
        int,
        Field(ge=2),
        Requirement(
            remedy="Set it to the most tokens of prompt and response together that the model is "
            "trained on."
        ),
    ]
    """Most tokens of prompt and response together."""
    hf_name: str | None = None
    """A Hugging Face data set, a local file or folder, a builder (json) or a remote folder."""
    split: str | None = None
    """The split's name; for a stream its subfolder."""
    hf_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``datasets.load_dataset``; ``trust_remote_code`` is false if not set."""
    safe_load: bool = False
    """Read files of data formats only, never a loading script."""
    preprocessing_fn: Annotated[str | dict[str, str], AfterValidator(_columns)] | None = None
    """``module:function``, or ``{prompt: column, response: column}``."""
    remote: str | None = None
    """Where an MDS stream lies (a URI or folder)."""
    local: str | None = None
    """The MDS stream's local folder."""
    streams: dict[str, dict[str, Any]] | None = None
    """Several MDS streams by name; all rows of all are read, in this order."""
    download_retry: Count = 2
    """Further attempts at a shard's download."""
    download_timeout: Positive = 60
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
    """``error``: stop at the first bad row; ``skip``: leave it out, count and log."""
    truncate_prompt: Literal["none", "left"] = "none"
    """``left``: cut a too long prompt at its start; ``none``: such a row is bad."""
    max_prompt_len: PositiveInt | None = None
    """Most tokens of a prompt; max_seq_len - 1 if not set."""
    date_string: str | None = None
    """The date that chat templates which print one are given; the template's own if not set."""
    tokenize: Tokenization | None = None
    """``rendering`` (if not set): the whole row at once; ``turns``: each turn by itself, as in
    llm-foundry."""
    stop_token: Annotated[str, Field(min_length=1)] | None = None
    """The token that ends responses; if not set, the chat template's, or EOS (docs/data.md)."""
    generation_prompt: Literal["template", "response"] = "template"
    """``template``: a prompt ends with the generation prompt; ``response``: where the row parts."""
    special_tokens_in_text: Literal["error", "warn", "text"] = "warn"
    """Control tokens that prompts spell out: a bad row, counted, or encoded as plain text."""
    num_proc: PositiveInt | None = None
    """Processes of each node that tokenize; if not set, one per core, at most 16."""
    cache_dir: str | Literal[False] | None = None
    """Where tokenized rows are kept for restarts and other commands, until nobody has used them for
    30 days; ``false``: nowhere. If not set, ``$SPIN_COMPOSER_CACHE``, or ``spin_composer`` in the
    user's cache folder."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        given = [key for key in ("hf_name", "streams") if getattr(self, key) is not None]
        if self.remote is not None or self.local is not None:
            given.append("remote/local")
        if not given:
            raise ValueError(
                ": it names no data. Set hf_name (a file, folder or Hugging Face name), "
                "local and/or remote (MDS), or streams."
            )
        if len(given) > 1:
            raise ValueError(f": {' and '.join(given)} name different data. Keep one of them.")
        for key in ("hf_kwargs", "safe_load") if self.hf_name is None else ():
            if value := getattr(self, key):
                raise ValueError(
                    f".{key}={format_value(value)} has no meaning for an MDS stream. Remove it."
                )
        for name, stream in (self.streams or {}).items():
            _check_stream(name, stream)
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.prompt_limit > self.max_seq_len - 1:
            raise ValueError(
                f".max_prompt_len={self.max_prompt_len} must lie between 1 and max_seq_len - 1"
                f" = {self.max_seq_len - 1}. Lower it, or raise max_seq_len."
            )
        if self.truncate_prompt == "left" and self.max_prompt_len is None:
            raise ValueError(
                ".truncate_prompt='left' without max_prompt_len would leave a long prompt one "
                "token of response: set max_prompt_len so that prompt and response fit, e.g. half "
                "of max_seq_len."
            )
        return self

    @property
    def prompt_limit(self) -> int:
        """Most tokens of a prompt."""
        return self.max_prompt_len if self.max_prompt_len is not None else self.max_seq_len - 1

    @property
    def source(self) -> str:
        """Where the data comes from, for messages: files, a Hugging Face name, or MDS folders."""
        if self.hf_name is not None:
            files = self.hf_kwargs.get("data_files")
            return self.hf_name if files is None else f"{self.hf_name} {format_value(files, 200)}"
        streams = list((self.streams or {}).values()) or [
            {"local": self.local, "remote": self.remote}
        ]
        return ", ".join(str(stream.get("remote") or stream.get("local")) for stream in streams)


def read_config(dataset: Config, where: str = "train_loader.dataset") -> DatasetConfig:
    """Check the ``dataset:`` block and fill a ``DatasetConfig`` from it.

    Raises:
        InputError: A key is unknown, missing, of a wrong type, or asks for what SPIN cannot do.
    """
    given = {str(key): to_plain(value) for key, value in dataset.items()}
    known = {f.name for f in fields(DatasetConfig)}
    for key, (neutral_values, remedy) in _UNSUPPORTED_KEYS.items():
        value = given.get(key)
        if isinstance(value, str):
            value = value.lower()
        if value not in neutral_values:
            raise InputError(f"{where}.{key}={format_value(given[key])} cannot be used: {remedy}.")
    ignored = sorted(key for key in given if key in _IGNORED_KEYS and given[key] is not None)
    if ignored:
        log.info(
            "%s: %s have no effect here: SPIN reshuffles in each iteration and its batches "
            "carry no padding.", where, ", ".join(ignored),
        )  # fmt: skip
    not_ours = _IGNORED_KEYS | set(_UNSUPPORTED_KEYS) | {k for k in known if given.get(k) is None}
    config = fill(DatasetConfig, {key: given[key] for key in given if key not in not_ours}, where)
    _check_turns(config, where)
    return config


def check_loader_keys(given: Iterable[str], where: str = "train_loader") -> None:
    """Reject unknown keys of a loader named ``spin``.

    Raises:
        InputError: Names the key and the closest known one.
    """
    for key in given:
        if key not in LOADER_KEYS:
            raise InputError(f"{where}.{key} is not a setting. {suggest_key(key, LOADER_KEYS)}")


def _check_stream(name: str, stream: Config) -> None:
    if not (stream.get("local") or stream.get("remote")):
        raise ValueError(
            f".streams.{name}={format_value(stream)} names no data. Set its local or remote."
        )
    for key in _STREAM_WEIGHTS:
        if stream.get(key) is not None:
            raise ValueError(
                f".streams.{name}.{key}={format_value(stream[key])} cannot be used: SPIN reads "
                "every row of every stream once. Remove it, or write the mixture as a data set of "
                "its own."
            )


_SFT_BLOCK = "Give it the dataset block of an SFT YAML (hf_name or local/remote, max_seq_len, ...)."


def dataset_block(given: object, where: str, remedy: str = _SFT_BLOCK) -> Config:
    """Return the ``dataset`` block of a loader.

    Raises:
        InputError: If it is not a mapping; names the loader.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            requirement_message(f"{where}.dataset", given, "a mapping that names the data", remedy)
        )
    return given


def _check_turns(config: DatasetConfig, where: str) -> None:
    """Reject what ``turns`` does not support; not a validator, since old stores are read anyway."""
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
