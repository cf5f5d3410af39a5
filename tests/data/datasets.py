"""The commands ``data check`` and ``data convert`` on a source, as tests call them."""

from __future__ import annotations

from typing import Any

from spin_composer.data.check import CheckReport, inspect_config
from spin_composer.data.convert import ConvertReport, convert_config
from spin_composer.data.sources import source_keys
from spin_composer.settings.dataset import DatasetConfig, read_config


def block(source: str, **keys: Any) -> DatasetConfig:
    """Return the dataset block of a source."""
    return read_config({**source_keys(source, "train"), "max_seq_len": 2048, **keys})


def check_dataset(source: str, tokenizer: str, **keys: Any) -> CheckReport:
    """Check a source with a tokenizer; ``keys`` are the block's."""
    return inspect_config(block(source, **keys), tokenizer, title=source)


def convert_dataset(
    source: str, destination: str, compression: str | None = None, **keys: Any
) -> ConvertReport:
    """Write a source as MDS; ``keys`` are the block's."""
    return convert_config(block(source, **keys), destination, source, compression=compression)
