"""A section of settings is a dataclass like any other, and says all that is wrong with it."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from spin_composer.errors import InputError
from spin_composer.settings.fields import (
    Count,
    Number,
    OneOf,
    Positive,
    PositiveInt,
    Requirement,
    describe_type,
)
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.section import fill, section
from spin_composer.settings.spin import SpinSettings

TOYS = ["ball"]


@section("toys")
class Toys:
    number: PositiveInt
    kind: Annotated[str, OneOf(TOYS)] = "ball"
    weights: list[Positive] = field(default_factory=list)


def test_each_wrong_setting_of_a_section_has_a_line() -> None:
    with pytest.raises(InputError) as caught:
        fill(SpinSettings, {"replay": -1, "seed": "7", "generation": {"top_p": 2, "topk": 1}})
    assert str(caught.value).splitlines() == [
        "algorithms.spin.replay must be an integer >= 0, got -1.",
        "algorithms.spin.seed must be an integer >= 0, or null, got '7'.",
        "algorithms.spin.generation.top_p must be a number in (0, 1], got 2.",
        "algorithms.spin.generation.topk is not a setting. Did you mean 'top_k'?",
    ]


def test_a_section_says_what_it_lacks_and_where_it_is() -> None:
    with pytest.raises(InputError, match=r"^toys\.number is not set\.$"):
        Toys()  # pyright: ignore[reportCallIssue]
    with pytest.raises(
        InputError, match=r"^box\.toys\.number must be a positive integer, got 0\.$"
    ):
        fill(Toys, {"number": 0}, "box.toys")


def test_a_name_that_is_registered_later_is_accepted() -> None:
    with pytest.raises(InputError, match="kind must be one of ball, got 'bear'"):
        Toys(1, "bear")
    TOYS.append("bear")
    assert Toys(1, "bear").kind == "bear"


@pytest.mark.parametrize(
    "settings",
    [SpinSettings(seed=3), SpinSettings(loss="space", space_mu=2), Toys(2, weights=[1, 0.5])],
)
def test_settings_are_copied_and_compared_as_dataclasses_are(settings: Any) -> None:
    for made in (pickle.loads(pickle.dumps(settings)), copy.deepcopy(settings), replace(settings)):
        assert made == settings
        assert asdict(made) == asdict(settings)
    assert type(settings)(**asdict(settings)) == settings


def test_a_copy_with_changes_is_checked_too() -> None:
    with pytest.raises(InputError, match="top_p must be a number in"):
        replace(GenerationSettings(), top_p=2)


def test_a_manifest_has_numbers_as_the_yaml_has_them() -> None:
    made = fill(GenerationSettings, {"temperature": 1, "top_p": 1.0, "stop_strings": ("a",)})
    assert json.dumps(made.sampling_fields()).startswith(
        '{"max_new_tokens": 512, "min_new_tokens": 0, "temperature": 1, "top_p": 1.0'
    )
    assert made.stop_strings == ["a"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (Count, "an integer >= 0"),
        (PositiveInt | Literal["all"], "a positive integer or 'all'"),
        (Positive | None, "a number > 0, or null"),
        (Annotated[Number, Field(gt=0, le=1)], "a number in (0, 1]"),
        (Literal["error", "skip"], "one of error, skip"),
        (str | dict[str, str] | None, "a text or a mapping of keys to values, or null"),
        (Annotated[list[str], Requirement("a list of names")], "a list of names"),
        (SpinSettings | None, "a mapping of settings, or null"),
    ],
)
def test_a_type_says_what_a_setting_must_be(annotation: Any, words: str) -> None:
    assert describe_type(annotation) == words
