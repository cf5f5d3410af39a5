"""Names of a store: what gives a name also knows it, and knows no other."""

from __future__ import annotations

import pytest

from spin_composer.store.layout import (
    COMPLETE,
    MANIFEST,
    SET_ASIDE,
    UNITS,
    Marker,
    is_temporary,
    iteration_name,
    iteration_number,
    marker_named,
    markers,
    temporary_name,
    unit_name,
    unit_number,
)


@pytest.mark.parametrize("number", [0, 7, 999, 1000, 123456])
def test_numbers_are_told_by_their_names(number: int) -> None:
    assert iteration_number(iteration_name(number)) == number
    assert unit_number(unit_name(number)) == number


@pytest.mark.parametrize("damaged", [False, True])
def test_a_marker_is_told_by_its_name_and_begins_as_its_units_do(damaged: bool) -> None:
    marker = Marker(1000, 123456, "0123abcd", damaged)
    assert marker_named(marker.name) == marker
    assert marker.name.startswith(markers(1000, 123456))
    assert markers(1000, 123456).startswith(markers(1000))
    assert not Marker(1000, 1234567, "0123abcd").name.startswith(markers(1000, 123456))


@pytest.mark.parametrize("name", ["unit-00000", MANIFEST, SET_ASIDE, ".mine"])
def test_a_temporary_name_is_new_and_no_other_is_taken_for_one(name: str) -> None:
    assert is_temporary(temporary_name(name))
    assert temporary_name(name) != temporary_name(name)
    assert not is_temporary(name)


@pytest.mark.parametrize("name", [UNITS, COMPLETE, ".unit-00000.0123abcd", "unit-00000-1"])
def test_other_names_are_no_iterations_or_units(name: str) -> None:
    assert iteration_number(name) is None
    assert unit_number(name) is None
    assert marker_named(f"iter-000/done/{name}") is None
