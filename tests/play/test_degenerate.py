"""Degenerate pairs: a generated response that is the real one, by its ids or by its text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fixtures.units import units_of_run
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import LENGTH, STOP, Ids
from spin_composer.engines.base import NoGenerator, OnProgress, Response, ignore_progress
from spin_composer.play.degenerate import BY_IDS, BY_TEXT, duplicate_check_for, same_ids, same_texts
from spin_composer.play.player import Player, finish_play, make_units
from spin_composer.settings.spin import SpinSettings
from spin_composer.store.local import LocalStore
from tests.fixtures.tokenizers import chatml
from tests.play.test_player import plan_for, sums_of_tokens

WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<tool>",
    "▁The",
    "The",
    "▁cat",
    "▁a",
    ".",
    "▁.",
    "<0xE2>",
    "<0xE3>",
]


def metaspace() -> PreTrainedTokenizerFast:
    """Return a tokenizer that decodes as Llama 2's: the prefix of the first token is stripped."""
    level = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(level)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<tool>"], clean_up_tokenization_spaces=True,
    )  # fmt: skip


def ids(text: str) -> Ids:
    return np.array([WORDS.index(word) for word in text.split()], np.int32)


@pytest.mark.parametrize(
    ("real", "generated", "by_text"),
    [
        ("▁The ▁cat </s>", "▁The ▁cat </s>", True),
        ("▁The ▁cat </s>", "The ▁cat </s>", True),
        ("The ▁cat </s>", "▁The ▁cat", True),  # cut off by length
        ("The ▁cat </s>", "The ▁a </s>", False),
        ("The ▁cat ▁. </s>", "The ▁cat . </s>", False),  # no space is cleaned away
        ("<tool> The </s>", "The </s>", False),
        ("<tool> The </s>", "<tool> ▁The </s>", True),
        ("The ▁cat </s>", "The </s> ▁cat </s>", False),
        ("The <0xE2> </s>", "The <0xE3> </s>", False),  # halves of characters
        ("The <0xE2> </s>", "The <0xE2> </s>", True),
    ],
)
def test_texts_are_what_a_reader_sees(real: str, generated: str, by_text: bool) -> None:
    same = same_texts(metaspace(), WORDS.index("</s>"))
    assert same([ids(real)], [ids(generated)]) == [by_text]
    assert same_ids([ids(real)], [ids(generated)]) == [real == generated]


def test_each_pair_is_compared_by_itself_and_an_empty_unit_too() -> None:
    same = same_texts(metaspace(), WORDS.index("</s>"))
    a, b = ids("▁The </s>"), ids("▁a </s>")
    assert same([a, a, b], [ids("The </s>"), b, b]) == [True, False, True]
    assert same([], []) == []


def test_a_stop_token_that_is_not_special_is_no_text_either() -> None:
    tokenizer = chatml()
    stop = tokenizer.convert_tokens_to_ids("+")
    word = tokenizer("clips", add_special_tokens=False)["input_ids"]
    real, cut = np.array([*word, stop], np.int32), np.array(word, np.int32)
    assert same_texts(tokenizer, stop)([real], [cut]) == [True]


def test_play_drops_and_counts_both_and_an_old_iteration_goes_on_by_ids(tmp_path: Path) -> None:
    real = ["▁The ▁cat </s>", "▁a ▁cat </s>", "▁The ▁a </s>", "▁a ▁a </s>"]
    answers = ["The ▁cat </s>", "▁a ▁cat </s>", "▁The ▁cat", "▁a ▁a"]
    examples = ExampleDataset.from_examples(
        [Example(ids("<s> ▁cat"), ids(text), truncated=False) for text in real], stop_token_id=2
    )

    class Canned(NoGenerator):
        def generate(
            self,
            prompts: Sequence[Ids],
            seed: int,
            on_progress: OnProgress = ignore_progress,
        ) -> list[Response]:
            return [
                Response(ids(text), STOP if text.endswith("</s>") else LENGTH) for text in answers
            ]

    units = units_of_run(SpinSettings(unit_size=4), 0, 0, 4)

    def play(manifest_says: str) -> tuple[list[int], float]:
        store = LocalStore(tmp_path / manifest_says)
        store.open_iteration({"iteration": 0, "num_units": 1})
        same = duplicate_check_for(manifest_says, metaspace(), 2)
        player = Player(store, Canned(), sums_of_tokens, examples, 0, 2, is_duplicate=same)
        make_units(player, plan_for(store, 0, units))
        report = finish_play(store, 0, 1)
        kept = [row.index for row in store.read_unit(0, 0)]
        (unit,) = report.units
        assert unit.degenerate + len(kept) == unit.prompts == 4
        return kept, report.metrics()["spin/degenerate_fraction"]

    assert play(BY_TEXT) == ([2], 0.75)
    assert play(BY_IDS) == ([0, 2, 3], 0.25)
