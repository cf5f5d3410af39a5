"""The held-out rows that every model of a run is judged on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.load import load_examples
from spin_composer.errors import InputError
from spin_composer.pretrained.limits import ModelLimits
from spin_composer.settings.dataset import read_config
from spin_composer.settings.judge import JUDGE_SECTION, JudgeSettings
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedRows:
    """The rows whose prompts are answered, a row for each response."""

    examples: ExampleDataset
    indices: list[int]
    """[n], rows of the examples; one that is answered several times stands there as often."""
    fingerprint: str
    """Hash of the rows' ids."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> Example:
        return self.examples[self.indices[row]]


def read_held_out(
    dataset: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[ExampleDataset, str]:
    """Read and tokenize held-out rows like training rows; a collective.

    Args:
        dataset: Their ``dataset`` block.
        tokenizer: The model's.

    Returns:
        The rows, and where they come from, for people.

    Raises:
        InputError: The block, a file or a row cannot work.
    """
    where = f"{JUDGE_SECTION}.dataset"
    try:
        config = read_config(dataset, where)
        return load_examples(config, tokenizer), config.source
    except InputError as error:  # messages about rows name train_loader
        raise InputError(str(error).replace("train_loader.dataset", where)) from error


def choose_rows(
    examples: ExampleDataset, settings: JudgeSettings, max_new_tokens: int, limits: ModelLimits
) -> JudgedRows:
    """Return the rows to judge on, drawn by the settings' seed.

    A row whose response was cut has no whole real response to compare with, and one whose prompt
    leaves no room for ``max_new_tokens`` cannot be answered: both are left out.

    Args:
        examples: The held-out set.
        settings: Have the number of rows, and the seed.
        max_new_tokens: Longest response.
        limits: The model's.

    Raises:
        InputError: Fewer rows, or fewer prompts, are left than the classifier's folds need.
    """
    room = np.inf if limits.positions is None else limits.positions - max_new_tokens
    usable = [
        row
        for row in range(len(examples))
        if examples.lengths[row, 0] <= room and not examples[row].truncated
    ]
    if len(usable) < 2 * settings.folds:
        raise InputError(
            f"{len(usable)} of the {len(examples)} held-out rows can be judged on (the others' "
            f"responses are cut, or their prompts leave no room for {max_new_tokens} tokens), and "
            f"{JUDGE_SECTION}.folds={settings.folds} needs {2 * settings.folds}. Give more rows, "
            "or lower max_new_tokens."
        )
    if len(usable) < len(examples):
        log.info(
            "%d held-out rows are not judged on: they are too long.", len(examples) - len(usable)
        )
    drawn = sorted(np.random.default_rng(settings.seed).permutation(len(usable))[: settings.rows])
    prompts = {examples[usable[i]].prompt.tobytes() for i in drawn}
    if len(prompts) < 2 * settings.folds:  # said before anything is sampled
        raise InputError(
            f"the {len(drawn)} held-out rows that are judged on have {len(prompts)} different "
            f"prompts, and {JUDGE_SECTION}.folds={settings.folds} needs {2 * settings.folds}: a "
            "prompt's responses are in one fold. Give rows of more prompts, or lower folds."
        )
    indices = [usable[i] for i in drawn for _ in range(settings.samples_per_prompt)]
    return JudgedRows(examples, indices, _fingerprint(examples, indices))


def _fingerprint(examples: ExampleDataset, indices: list[int]) -> str:
    digest = xxhash.xxh64()
    for index in indices:
        for ids in (examples[index].prompt, examples[index].response):
            digest.update(np.asarray([len(ids)], "<i8").tobytes())
            digest.update(np.ascontiguousarray(ids, "<i4").tobytes())
    return digest.hexdigest()
