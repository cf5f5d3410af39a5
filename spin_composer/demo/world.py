"""The demo's data: short sentences about an animal and a place, written by a seeded script.

A prompt names an animal and a place; a response is a sentence about both. Which adjectives and
verbs go with an animal, and which prepositions with a place, is fixed by tables that no row states:
a model can only learn them from the sentences. Many sentences are right for a prompt, and
``is_valid`` tells whether one is.

There are two sets of rows. *Careless* writers use a word that does not fit every now and then;
*careful* ones never do. The base model learns the language from many careless rows; the SFT set of
the game is a small careful one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ANIMALS = ["cat", "dog", "owl", "hen", "bee", "ant", "cow", "pig", "goat", "duck", "frog", "crow"]
PLACES = ["river", "hill", "barn", "road", "tree", "pond", "gate", "wall", "field", "bridge"]
VERBS = [
    "run", "jump", "sleep", "sing", "hide", "wait",
    "eat", "walk", "look", "turn", "stand", "play",
]  # fmt: skip
PREPOSITIONS = ["by", "near", "under", "behind", "over", "along", "inside", "beyond"]
ADJECTIVES = [
    "red", "old", "sly", "big", "sad", "shy",
    "tiny", "wild", "calm", "loud", "proud", "lazy",
]  # fmt: skip
NUMBERS = ["one", "two", "three"]

_CHOICES = 3
"""Adjectives and verbs that fit an animal."""
_PLACE_CHOICES = 2
"""Prepositions that fit a place."""
_TRAIN_SHARE = 2 / 3
"""Share of the (animal, place) prompts that are trained on; the others are held out."""


def _tables() -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    rng = random.Random("the tables of the world")
    adjectives = {animal: rng.sample(ADJECTIVES, _CHOICES) for animal in ANIMALS}
    verbs = {animal: rng.sample(VERBS, _CHOICES) for animal in ANIMALS}
    prepositions = {place: rng.sample(PREPOSITIONS, _PLACE_CHOICES) for place in PLACES}
    return adjectives, verbs, prepositions


_ADJECTIVES_OF, _VERBS_OF, _PREPOSITIONS_OF = _tables()


@dataclass(frozen=True)
class Row:
    """A row of SFT data."""

    prompt: str
    response: str


@dataclass(frozen=True)
class World:
    """The data of one demo: rows for the base model, for the game, and held out from both."""

    careless_train: list[Row]
    careless_valid: list[Row]
    careful_train: list[Row]
    careful_valid: list[Row]


def make_world(
    seed: int, num_careless: int = 3000, num_careful: int = 300, num_valid: int = 300,
    mistakes: float = 0.15,
) -> World:  # fmt: skip
    """Return the rows of a world; the same seed gives the same rows.

    Args:
        seed: Of the draw of prompts and sentences; the tables are the same in every world.
        num_careless: Rows that the base model is trained on.
        num_careful: Rows of the game's SFT set.
        num_valid: Held-out rows of either kind, about prompts that no trained row has.
        mistakes: Probability that a careless writer picks a word at random.
    """
    rng = random.Random(seed)
    prompts = [(animal, place) for animal in ANIMALS for place in PLACES]
    rng.shuffle(prompts)
    cut = round(_TRAIN_SHARE * len(prompts))
    trained, held_out = prompts[:cut], prompts[cut:]

    def rows(count: int, among: Sequence[tuple[str, str]], rate: float) -> list[Row]:
        return [_write(rng, *rng.choice(among), rate) for _ in range(count)]

    return World(
        careless_train=rows(num_careless, trained, mistakes),
        careless_valid=rows(num_valid, held_out, mistakes),
        careful_train=rows(num_careful, trained, 0.0),
        careful_valid=rows(num_valid, held_out, 0.0),
    )


def _write(rng: random.Random, animal: str, place: str, mistakes: float) -> Row:
    """Write a sentence; each free word is picked at random with probability ``mistakes``."""

    def pick(fitting: Sequence[str], every: Sequence[str]) -> str:
        return rng.choice(every if rng.random() < mistakes else fitting)

    number = rng.choice(NUMBERS)
    adjectives = [pick(_ADJECTIVES_OF[animal], ADJECTIVES) for _ in range(rng.choice((1, 2)))]
    verb = pick(
        [_inflect(verb, number) for verb in _VERBS_OF[animal]],
        [_inflect(verb, some) for verb in VERBS for some in NUMBERS],
    )
    preposition = pick(_PREPOSITIONS_OF[place], PREPOSITIONS)
    words = [number, *adjectives, _noun(animal, number), verb, preposition, "the", place]
    return Row(f"{animal}, {place}:", f" {' '.join(words)}.")


def _noun(animal: str, number: str) -> str:
    return animal if number == "one" else f"{animal}s"


def _inflect(verb: str, number: str) -> str:
    return f"{verb}s" if number == "one" else verb


def is_valid(prompt: str, response: str) -> bool:
    """Return whether a careful writer could have answered the prompt so: the demo's task score."""
    animal, _, place = prompt.removesuffix(":").partition(", ")
    words = response.removesuffix(".").split()
    if not response.endswith(".") or len(words) not in (7, 8) or words[0] not in NUMBERS:
        return False
    number, *adjectives, noun, verb, preposition, article, where = words
    return (
        all(word in _ADJECTIVES_OF[animal] for word in adjectives)
        and noun == _noun(animal, number)
        and verb in [_inflect(v, number) for v in _VERBS_OF[animal]]
        and preposition in _PREPOSITIONS_OF[place]
        and (article, where) == ("the", place)
    )


def write_rows(rows: Iterable[Row], path: Path) -> Path:
    """Write rows as a jsonl of ``prompt`` and ``response``; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a jsonl of ``prompt`` and ``response``."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Row(row["prompt"], row["response"]) for row in rows]
