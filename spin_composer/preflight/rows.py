"""Whether the rows fit the model that is trained on them, and a batch of one of them."""

from __future__ import annotations

from composer.utils import dist
from torch.utils.data import DataLoader

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.loader import examples_of
from spin_composer.data.pairs import Pair, PairBatch, collate_pairs
from spin_composer.data.row_limits import check_first_batch_is_whole, check_rows
from spin_composer.model.lm import SpinLM
from spin_composer.pretrained.limits import model_limits
from spin_composer.settings.spin import SpinSettings

_SHORT_TOKENS = 64
"""Of a prompt, and of a response."""


def check_rows_fit(settings: SpinSettings, loader: DataLoader[Example], model: SpinLM) -> None:
    """Refuse rows that the model has no positions for, or that fill no batch.

    Args:
        settings: The game's.
        loader: The SFT loader.
        model: The SpinLM.

    Raises:
        InputError: Names the numbers.
    """
    examples, limits = examples_of(loader), model_limits(model.config)
    check_rows(examples, limits, settings.generation.max_new_tokens)
    batch = (loader.batch_size or 1) * dist.get_world_size()
    check_first_batch_is_whole(examples, settings.samples_per_iteration, batch)


def short_pair_batch(examples: ExampleDataset) -> PairBatch:
    """Return a short pair batch of the first example, both sides real, to check the head with."""
    first = examples[0]
    response = first.response[:_SHORT_TOKENS]
    return collate_pairs([Pair(first.prompt[-_SHORT_TOKENS:], response, response)])
