"""The table of samples that each iteration logs: what the opponent answered."""

from __future__ import annotations

import json
from typing import Any

from composer.loggers import ConsoleLogger, Logger, TensorboardLogger

from spin_composer.data.pairs import LENGTH, STOP, STRING, Pair
from spin_composer.store.base import Store
from spin_composer.store.durable import write_atomically

COLUMNS = ["iteration", "index", "prompt", "real", "generated", "finish"]
_FINISH = {STOP: "stop", LENGTH: "length", STRING: "stop string"}


def sample_pairs(store: Store, iteration: int, num_units: int, count: int) -> list[Pair]:
    """Return the first ``count`` pairs played in an iteration."""
    pairs: list[Pair] = []
    for unit in range(num_units):
        for pair in store.read_unit(iteration, unit):
            if len(pairs) == count:
                return pairs
            pairs.append(pair)
    return pairs


def log_samples(
    logger: Logger,
    tokenizer: Any,
    store: Store,
    iteration: int,
    num_units: int,
    count: int,
    step: int,
) -> None:
    """Write the table to the iteration's ``samples.jsonl`` and to the loggers that take tables.

    Call it on rank 0. W&B, MLflow and file loggers take tables; TensorBoard gets a text. ``step``
    is the run's batch: logged without one, a table makes W&B refuse all else of that batch.
    """
    table = []
    for pair in sample_pairs(store, iteration, num_units, count):
        texts = [tokenizer.decode(ids) for ids in (pair.prompt, pair.real, pair.generated)]
        table.append([iteration, pair.index, *texts, _FINISH[pair.finish]])
    lines = [json.dumps(dict(zip(COLUMNS, line, strict=True))) for line in table]
    path = store.folder(iteration) / "samples.jsonl"
    write_atomically(path, "".join(f"{x}\n" for x in lines))
    store.publish(f"{path.parent.name}/{path.name}")
    if not table:
        return
    for destination in logger.destinations:
        if not isinstance(destination, ConsoleLogger):  # it would print the table at every line
            destination.log_table(COLUMNS, table, name="spin/samples", step=step)
        if isinstance(destination, TensorboardLogger) and destination.writer is not None:
            text = "\n\n".join(f"    {line}" for line in lines)
            destination.writer.add_text("spin/samples", text, step)
