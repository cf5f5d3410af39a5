"""Manifests: a field that is absent means what was done then, and what differs is named."""

from __future__ import annotations

import pytest

from spin_composer.errors import StoreError
from spin_composer.store.manifest import (
    differing_fields,
    manifest_value,
    normalize_manifest,
    num_played_units,
    num_replayed_units,
    require_equal_manifests,
)

OLD = {
    "iteration": 1, "seed": 7, "num_units": 10, "unit_size": 5, "samples_per_iteration": "all",
    "replay": 1, "num_examples": 24, "data": "d",
}  # fmt: skip
"""A manifest as it was before `tokenize`, `degenerate`, `merged` and `replayed` were fields."""


def test_a_field_that_is_absent_means_what_was_done_then():
    new = OLD | {"tokenize": "turns", "degenerate": "ids", "merged": None, "replayed": None}
    assert differing_fields(OLD, new) == differing_fields(new, OLD) == []
    assert differing_fields(OLD, new | {"responses_per_prompt": 1}) == []
    assert differing_fields(OLD, new | {"responses_per_prompt": 2}) == ["responses_per_prompt"]
    assert differing_fields(OLD, new | {"game": "spin"}) == []
    assert differing_fields(OLD, new | {"game": "ditto"}) == ["game"]
    assert differing_fields(OLD, new | {"tokenize": "rendering"}) == ["tokenize"]
    assert differing_fields(OLD, new | {"degenerate": "text"}) == ["degenerate"]
    assert manifest_value(OLD, "seed") == 7


def test_a_field_that_no_table_names_still_differs():
    assert differing_fields(OLD, OLD | {"from_the_future": 1}) == ["from_the_future"]
    assert differing_fields(OLD | {"from_the_future": 1}, OLD) == ["from_the_future"]


@pytest.mark.parametrize(("samples", "units"), [("all", 5), (9, 2), (10, 2), (1000, 5)])
def test_played_units_are_told_by_the_manifest(samples, units):
    assert num_played_units(OLD | {"samples_per_iteration": samples}) == units


def test_replayed_units_of_an_old_iteration_are_its_own_settings():
    assert num_replayed_units(OLD) == {0: 5}
    assert num_replayed_units(normalize_manifest(OLD | {"replayed": {"0": 2}})) == {0: 2}


def test_an_iteration_replays_none_before_the_first():
    assert num_replayed_units(OLD | {"iteration": 0}) == {}
    assert num_replayed_units(OLD | {"iteration": 1, "replay": 3}) == {0: 5}
    assert num_replayed_units(OLD | {"iteration": 5, "replay": 2}) == {3: 5, 4: 5}


def test_a_manifest_is_the_same_after_it_was_read_back():
    assert normalize_manifest(normalize_manifest(OLD)) == normalize_manifest(OLD)
    assert normalize_manifest({"generation": {"stop": ("a",)}})["generation"] == {"stop": ["a"]}


def test_what_differs_is_named_by_what_it_means():
    require_equal_manifests(OLD, OLD | {"merged": None}, "here")
    with pytest.raises(StoreError) as caught:
        require_equal_manifests(OLD, OLD | {"tokenize": "rendering", "seed": 8}, "here")
    said = str(caught.value)
    assert said.startswith("here was played by another run; it differs in seed (store 7, run 8), ")
    assert "tokenize (store 'turns', run 'rendering')" in said
    assert "\n" not in said
