"""Write an iteration's table of samples to ``samples.jsonl`` and to the loggers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from composer.loggers import ConsoleLogger, Logger, TensorboardLogger
from transformers import PreTrainedTokenizerBase

from spin_composer.data.pairs import FINISH_NAMES, Pair
from spin_composer.report.samples import COLUMNS, Sample, as_jsonl, as_rows
from spin_composer.store.base import Store
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import SAMPLES

_NAME = "spin/samples"


def log_samples(
    logger: Logger,
    tokenizer: PreTrainedTokenizerBase,
    store: Store,
    iteration: int,
    num_units: int,
    count: int,
    step: int,
) -> None:
    """Write an iteration's first pairs as texts, to its folder and to the loggers.

    Call it on rank 0.

    Args:
        logger: The run's.
        tokenizer: The policy's.
        store: Has the complete units of the iteration.
        iteration: Index of the iteration.
        num_units: Number of its units.
        count: Most rows of the table.
        step: The run's batch: W&B would reject other metrics of the batch after a table without it.
    """
    pairs = chain.from_iterable(store.read_unit(iteration, unit) for unit in range(num_units))
    samples = [_sample(pair, iteration, tokenizer) for pair in islice(pairs, count)]
    path = store.folder(iteration) / SAMPLES
    write_atomically(path, as_jsonl(samples))
    store.publish(f"{path.parent.name}/{path.name}")
    if samples:
        _log_table(logger, samples, step)


def _sample(pair: Pair, iteration: int, tokenizer: PreTrainedTokenizerBase) -> Sample:
    prompt, real, generated = (
        str(tokenizer.decode(ids)) for ids in (pair.prompt, pair.real, pair.generated)
    )
    return Sample(iteration, pair.index, prompt, real, generated, FINISH_NAMES[pair.finish])


def _log_table(logger: Logger, samples: Sequence[Sample], step: int) -> None:
    """W&B, MLflow and file loggers take tables; TensorBoard gets a text."""
    for destination in logger.destinations:
        if not isinstance(destination, ConsoleLogger):  # it would print the table at every line
            destination.log_table(COLUMNS, as_rows(samples), name=_NAME, step=step)
        if isinstance(destination, TensorboardLogger) and destination.writer is not None:
            lines = as_jsonl(samples).splitlines()
            text = "\n\n".join(f"    {line}" for line in lines)
            destination.writer.add_text(_NAME, text, step)
