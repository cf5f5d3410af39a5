from __future__ import annotations

import pytest
from fixtures.reported_run import process

from spin_composer.report.paper import compare

PAPERS = {
    "settings": {"learning_rate": [5e-7, 5e-7, 1e-7], "samples_per_iteration": 50000},
}


def differing(**changes: dict) -> list[str]:
    settings = {**PAPERS["settings"], **changes.get("settings", {})}
    made = process(settings=settings, training=changes.get("training", {}))
    return [one.name for one in compare(made) if not one.same]


def test_the_papers_own_settings_do_not_differ() -> None:
    assert differing() == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"settings": {"beta": [0.1]}}, ["beta"]),
        ({"settings": {"beta": 0.5}}, ["beta"]),
        ({"settings": {"learning_rate": None}}, ["peak learning rate"]),
        ({"settings": {"iteration_length": "1ep"}}, ["epochs per iteration E"]),
        ({"settings": {"nll_weight": 0.1}}, ["loss"]),
        ({"settings": {"replay": 0}}, ["replayed iterations"]),
        ({"settings": {"generation": {"temperature": 0.7}}}, ["temperature"]),
        ({"training": {"optimizer": "AdamW"}}, ["optimizer"]),
        ({"training": {"t_warmup": "20ba"}}, ["warm-up"]),
        ({"training": {"global_batch_size": 32}}, ["pairs per step"]),
        ({"training": {"precision": "Precision.FP32"}}, ["precision"]),
    ],
)
def test_what_differs_is_named(changes: dict, names: list[str]) -> None:
    assert differing(**changes) == names


def test_values_of_iterations_are_shown_once_if_they_are_the_same() -> None:
    shown = {one.name: one.run for one in compare(process(settings={"beta": [0.1]}))}
    assert shown["beta"] == "0.1"
    assert {one.name: one.run for one in compare(process())}["beta"] == "0.1, 0.1, 5"


def test_the_loss_without_beta_has_none() -> None:
    settings = {"loss": "space", "beta": [0.1, 0.1, 5.0]}
    shown = {one.name: one for one in compare(process(settings=settings))}
    assert (shown["beta"].run, shown["beta"].same) == ("none", False)
