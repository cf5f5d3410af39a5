"""Checks of the training rows against the model, and a short batch for the head's check."""

from __future__ import annotations

import numpy as np
from composer.core import State
from composer.utils import dist
from torch.utils.data import DataLoader

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.loader import examples_of
from spin_composer.data.pairs import Ids, Pair, PairBatch, collate_pairs
from spin_composer.data.row_limits import check_first_batch_is_whole, check_rows
from spin_composer.errors import InputError
from spin_composer.model.lm import SpinLM
from spin_composer.pretrained.limits import model_limits
from spin_composer.settings.spin import SpinSettings

_SHORT_TOKENS = 16
"""Tokens of the prompt and of the response in the short batch: what a model does with its logits it
does with each token's."""


def check_rows_fit(settings: SpinSettings, loader: DataLoader[Example], model: SpinLM) -> None:
    """Reject rows that exceed the model's positions, or too few rows for a batch.

    Args:
        settings: The algorithm's settings.
        loader: The SFT loader.
        model: The SpinLM.

    Raises:
        InputError: Names the numbers.
    """
    examples, limits = examples_of(loader), model_limits(model.config)
    check_rows(examples, limits, settings.generation.max_new_tokens)
    batch = (loader.batch_size or 1) * dist.get_world_size()
    check_first_batch_is_whole(
        examples, settings.samples_per_iteration, batch, settings.responses_per_prompt
    )


def check_microbatches(settings: SpinSettings, state: State, device_batch_size: int) -> None:
    """Refuse microbatches that are given both as tokens and as a number of pairs.

    Raises:
        InputError: Names both settings.
    """
    tokens, pairs = settings.device_train_microbatch_tokens, state.device_train_microbatch_size
    if tokens is None or state.auto_microbatching or pairs is None or pairs >= device_batch_size:
        return
    raise InputError(
        f"algorithms.spin.device_train_microbatch_tokens={tokens} and device_train_microbatch_size="
        f"{pairs} both say what a microbatch is. Set the latter to the device's whole batch "
        f"({device_batch_size}), or to auto on a GPU."
    )


def short_pair_batch(examples: ExampleDataset) -> PairBatch:
    """Return a short pair batch of the first example, both sides real, for the head's check."""
    first = examples[0]
    response = first.response[:_SHORT_TOKENS]
    return collate_pairs([Pair(first.prompt[-_SHORT_TOKENS:], response, response)])


def longest_sequence(examples: ExampleDataset, max_new_tokens: int) -> int:
    """Return the tokens of the longest sequence that a run can make: of its rows or of play."""
    real = int(examples.lengths.sum(axis=1).max())
    return max(real, examples.max_prompt_tokens + max_new_tokens)


def sample_tokens(examples: ExampleDataset, at_least: int) -> Ids:
    """Return the ids of the first rows, one after another, ``at_least`` many if there are."""
    ids: list[Ids] = []
    for index in range(len(examples)):
        ids += [examples[index].prompt, examples[index].response]
        if sum(map(len, ids)) >= at_least:
            break
    return np.concatenate(ids)
