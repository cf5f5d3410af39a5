"""``data check`` says where the two ways of tokenizing give other ids."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.examples import Example
from spin_composer.data.rendering_vs_turns import diff_tokenizations


def example(tokenizer, prompt: str, response: str, whole: bool) -> Example:
    """Tokenize the response with the prompt, or by itself as llm-foundry does."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if whole:
        ids = tokenizer(prompt + response, add_special_tokens=False)["input_ids"][len(before) :]
    else:
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return Example(np.array(before, np.int32), np.array(ids, np.int32), False)


def test_rows_that_differ_are_counted_and_the_first_is_shown(llama, gpt2):
    texts = [("Answer the question\n", "The relation"), ("Answer:\n", "in one sentence")]
    bad = BadRow(Location("rows", 3), "boundary", "the boundary moves", "Set tokenize: turns.")
    for tokenizer, count in ((llama, 2), (gpt2, 0)):
        ways = [
            SimpleNamespace(where=Location("rows", i), rendering=example(tokenizer, *text, True),
                            turns=example(tokenizer, *text, False))
            for i, text in enumerate(texts, start=1)
        ]  # fmt: skip
        broken = SimpleNamespace(where=bad.where, rendering=bad, turns=ways[0].turns)
        found = diff_tokenizations([*ways, broken], tokenizer)
        assert (found.compared, found.differ) == (2, count)
        assert (found.only_rendering, found.only_turns) == (0, 1)
        lines = found.lines()
        assert len(lines) == 1 + (count > 0)
        assert lines[-1].startswith("1 rows can be tokenized by tokenize: turns only")
        if count:
            assert "differ on 2 of 2 rows. rows:1: rendering " in lines[0]
            # The two lists part at the boundary: Metaspace marks the start of each text.
            assert found.turns[3].startswith("\u2581")
            assert not found.rendering[3].startswith("\u2581")
            assert found.rendering[:3] == found.turns[:3]


def test_a_boundary_at_another_place_is_a_difference(gpt2):
    ids = np.arange(6, dtype=np.int32)
    moved = SimpleNamespace(where=Location("rows", 1), rendering=Example(ids[:2], ids[2:], False),
                            turns=Example(ids[:3], ids[3:], False))  # fmt: skip
    assert diff_tokenizations([moved], gpt2).differ == 1
