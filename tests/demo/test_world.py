from __future__ import annotations

from pathlib import Path

import pytest

from spin_composer.demo.world import Row, is_valid, make_world, read_rows, write_rows

WORLD = make_world(seed=0)


def share_valid(rows: list[Row]) -> float:
    return sum(is_valid(row.prompt, row.response.strip()) for row in rows) / len(rows)


def test_careful_rows_are_valid_and_careless_ones_often_not():
    assert share_valid(WORLD.careful_train) == share_valid(WORLD.careful_valid) == 1.0
    assert 0.4 < share_valid(WORLD.careless_train) < 0.8


def test_same_seed_gives_the_same_rows_and_another_seed_others():
    assert make_world(seed=0) == WORLD
    assert make_world(seed=1).careful_train != WORLD.careful_train


def test_held_out_prompts_are_never_trained_on():
    trained = {row.prompt for row in WORLD.careless_train + WORLD.careful_train}
    held_out = {row.prompt for row in WORLD.careless_valid + WORLD.careful_valid}
    assert not trained & held_out


@pytest.mark.parametrize(
    ("change", "to"),
    [("two", "four"), ("the ", ""), (".", ""), (" the ", " the the ")],
    ids=["number", "article", "full stop", "repetition"],
)
def test_spoiled_sentence_is_not_valid(change: str, to: str):
    row = next(row for row in WORLD.careful_train if " two " in row.response)
    response = row.response.strip()
    assert is_valid(row.prompt, response)
    assert not is_valid(row.prompt, response.replace(change, to))


def test_sentence_about_another_prompt_is_not_valid():
    first = WORLD.careful_train[0]
    animal = first.prompt.split(",")[0]
    other = next(r for r in WORLD.careful_train if not r.prompt.startswith(animal))
    assert not is_valid(other.prompt, first.response.strip())


def test_verb_must_agree_with_the_number():
    row = next(r for r in WORLD.careful_train if r.response.startswith(" one "))
    words = row.response.strip().split()
    noun = words.index(row.prompt.split(",")[0])
    words[noun + 1] = words[noun + 1].removesuffix("s")
    assert not is_valid(row.prompt, " ".join(words))


@pytest.mark.parametrize("response", ["", ".", "one.", " ".join(["one"] * 9) + "."])
def test_no_sentence_is_not_valid(response: str):
    assert not is_valid("cat, hill:", response)


def test_rows_survive_their_file(tmp_path: Path):
    rows = [*WORLD.careful_valid[:5], Row("a line separator \u2028 in a prompt", "é")]
    assert read_rows(write_rows(rows, tmp_path / "new" / "rows.jsonl")) == rows
