"""Rows of MDS data sets, local or remote, by Streaming's streams and shard readers.

Every rank reads all rows once, in order, so StreamingDataset's shuffling and sharing is not needed
(and its shared memory would remain until the process ends). What Streaming does not check is
checked here: that each local shard exists and is intact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import BOUNDARIES_LOST, Location
from spin_composer.data.files import RawRow
from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    from streaming import Stream
    from streaming.base.format import Reader

_TOKENIZED = {"turns", "input_ids", "labels"}


def read_mds(config: DatasetConfig, alone: bool = False) -> Iterator[RawRow]:
    """Yield the rows of the MDS streams that the config names, stream by stream, in order.

    On several ranks this is a collective call: the local leaders download first. Not if this rank
    is ``alone``; the streams are local then.

    Raises:
        InputError: A stream is missing, damaged, holds pickled columns or tokens for text.
    """
    for stream in _streams(config):
        root = os.path.join(stream.local, stream.split).rstrip(os.sep)
        number = 0
        for shard in _prepared_shards(stream, root, alone):
            _check_shard(shard, root)
            for i in range(shard.samples):
                number += 1
                yield Location(root, number, "row"), shard[i]


def _streams(config: DatasetConfig) -> list[Stream]:
    """Create the Stream objects of the config, with defaults applied."""
    from streaming.base.stream import streams_registry

    if config.streams is not None:
        given = [dict(stream) for stream in config.streams.values()]
    else:
        given = [{"remote": config.remote, "local": config.local, **config.stream_config}]
    defaults = {
        "split": config.split,
        "download_retry": config.download_retry,
        "download_timeout": config.download_timeout,
        "validate_hash": config.validate_hash,
        "keep_zip": config.keep_zip,
    }
    if config.stream_name not in streams_registry:
        raise InputError(
            f"train_loader.dataset.stream_name={config.stream_name!r} is not registered. "
            f"Known: {', '.join(sorted(streams_registry.get_all()))}."
        )
    made = []
    for values in given:
        values = {key: value for key, value in values.items() if value is not None}
        if "local" not in values:
            from spin_composer.distributed import node_folder

            values["local"] = node_folder()
        try:
            stream = streams_registry.get(config.stream_name)(**values)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"train_loader.dataset: the stream {format_value(values)} cannot be opened "
                f"({error}). Correct its settings."
            ) from error
        stream.apply_default(defaults)
        made.append(stream)
    return made


def _prepared_shards(stream: Stream, root: str, alone: bool) -> list[Reader]:
    """Return the stream's shards, all of them on the local disk and decompressed."""
    from composer.utils import dist
    from streaming.base.world import World

    try:
        with nullcontext() if alone else dist.run_local_rank_zero_first():
            shards = stream.get_shards(World.detect(), allow_unsafe_types=False)
            for shard in shards:
                missing = [raw.basename for raw, _ in shard.file_pairs
                           if not os.path.isfile(os.path.join(root, raw.basename))]  # fmt: skip
                if missing and stream.remote is None and shard.compression is None:
                    raise InputError(
                        f"{root}: the shard {missing[0]} of its index.json is missing. "
                        "Copy it there, or write the data set again."
                    )
                stream.prepare_shard(shard)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{stream.remote or root}: not a readable MDS data set "
            f"({format_value(str(error), 200)}). Check remote, local and split; pickled columns "
            "are refused."
        ) from error
    if not shards:
        raise InputError(f"{root}: its index.json lists no shards. Write the data set again.")
    for column in _columns(shards[0]):
        if column in _TOKENIZED:
            raise InputError(
                f"{root}: column={column!r}: the rows are {BOUNDARIES_LOST}. Give them as text."
            )
    return shards


def _columns(shard: Reader) -> list[str]:
    return list(getattr(shard, "column_names", []))


def _check_shard(shard: Reader, root: str) -> None:
    """Compare the size and, if there is one, the hash of a shard's file with index.json."""
    from streaming.base.hashing import get_hash, get_hashes

    for raw, _ in shard.file_pairs:
        path = os.path.join(root, raw.basename)
        size = os.path.getsize(path)
        if size != raw.bytes:
            raise InputError(
                f"{path}: {size} bytes where index.json says {raw.bytes}. Copy the shard again."
            )
        known = [name for name in raw.hashes if name in get_hashes()]
        if known:
            with open(path, "rb") as file:
                if get_hash(known[0], file.read()) != raw.hashes[known[0]]:
                    raise InputError(
                        f"{path}: its {known[0]} hash is not index.json's: the shard is damaged. "
                        "Copy the shard again."
                    )
