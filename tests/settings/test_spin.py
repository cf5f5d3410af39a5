"""The game's settings: what is accepted, and the one line that anything else is answered with."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_composer.alarms.rules import ALARMS
from spin_composer.errors import InputError
from spin_composer.game import pair_loss
from spin_composer.loss import LOSSES, PairLoss, loss_parameters
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.section import fill
from spin_composer.settings.spin import SpinSettings, count_iterations, value_for_iteration
from spin_composer.settings.yaml import read_yaml, to_mapping, validate

YAML = Path(__file__).parents[2] / "yamls" / "smollm2-135m-cpu.yaml"


def refusal(make: Any) -> str:
    """Return the message of the InputError that ``make`` raises; it is one line."""
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"iteration_length": "2ba"}, "iteration_length must be like '2ep', got '2ba'"),
    ({"iteration_length": 0}, "iteration_length must be like '2ep', got 0"),
    ({"iteration_length": "1.5ep"}, "iteration_length"),
    ({"iteration_length": True}, "iteration_length"),
    (
        {"beta": 0},
        "beta must be a number from 1e-6 to 1e6 or a list of them, got 0. The paper's are",
    ),
    ({"beta": 1e300}, "beta must be a number from 1e-6 to 1e6 or a list of them, got 1e+300"),
    ({"beta": [0.1, 1e7]}, "beta"),
    ({"beta": []}, "beta"),
    ({"beta": [0.1, -1]}, "beta"),
    ({"beta": "0.1"}, "beta"),
    ({"beta": True}, "beta"),
    ({"beta": float("nan")}, "beta"),
    ({"beta": float("inf")}, "beta"),
    ({"learning_rate": -1e-7}, "learning_rate"),
    ({"loss": "logistik"}, "must be one of logistic, hinge, squared, space, dpop, got 'logistik'"),
    (
        {"loss": "space", "beta": 0.1},
        "spin.beta must be absent with loss: space, got 0.1. It takes space_mu: remove beta.",
    ),
    ({"loss": "space", "beta": [0.1, 5.0]}, "beta must be absent with loss: space, got [0.1, 5.0]"),
    ({"space_mu": 1.0}, "space_mu must be absent with loss: logistic, got 1.0. It takes beta"),
    ({"loss": "hinge", "dpop_lambda": 5}, "dpop_lambda must be absent with loss: hinge, got 5"),
    ({"loss": "space", "dpop_lambda": 5}, "dpop_lambda must be absent with loss: space, got 5"),
    (
        {"loss": "space", "space_mu": 1e300},
        "spin.space_mu must be a number from 1e-15 to 1e15, got 1e+300. The paper's is 1.",
    ),
    ({"loss": "space", "space_mu": 1e-300}, "space_mu must be a number from 1e-15 to 1e15"),
    ({"loss": "space", "space_mu": 0}, "space_mu must be a number from 1e-15 to 1e15, got 0"),
    ({"loss": "dpop", "dpop_lambda": -1}, "dpop_lambda must be a number from 0 to 1e6, got -1"),
    ({"loss": "dpop", "dpop_lambda": float("inf")}, "dpop_lambda"),
    ({"loss": "dpop", "dpop_lambda": 1e300}, "dpop_lambda must be a number from 0 to 1e6, got"),
    ({"nll_weight": -0.1}, "nll_weight"),
    ({"nll_weight": 1e300}, "nll_weight must be a number from 0 to 1e6, got 1e+300"),
    ({"nll_weight": float("nan")}, "nll_weight"),
    ({"length_normalised": "yes"}, "length_normalised must be true or false"),
    ({"reset_optimizer": 1}, "reset_optimizer"),
    ({"deterministic": None}, "deterministic"),
    ({"replay": -1}, "replay must be an integer >= 0, got -1"),
    ({"replay": 1.0}, "replay"),
    ({"replay": True}, "replay"),
    ({"unit_size": 0}, "unit_size"),
    ({"sample_table_rows": -1}, "sample_table_rows"),
    ({"samples_per_iteration": 0}, "samples_per_iteration must be a positive integer or 'all'"),
    ({"samples_per_iteration": "some"}, "samples_per_iteration"),
    ({"samples_per_iteration": True}, "samples_per_iteration"),
    ({"responses_per_prompt": 0}, "responses_per_prompt must be a positive integer, got 0"),
    ({"alarms": 5}, "spin.alarms must be a mapping of alarms to on or off, or off, got 5"),
    ({"alarms": {"high_accurracy": False}}, "alarms.high_accurracy must be absent, got False. Did"),
    ({"alarms": {"high_accuracy": 0}}, "spin.alarms.high_accuracy must be on or off, got 0"),
    ({"alarms": {"high_accuracy": None}}, "spin.alarms.high_accuracy must be on or off, got None"),
    ({"game": "dpo"}, "game must be one of spin, ditto, got 'dpo'"),
    (
        {"ditto": {"newest": 0.6, "earlier": 0.3}},
        "spin.ditto must be absent with game: spin, got {'newest': 0.6, 'earlier': 0.3}. Set game: "
        "ditto, or remove ditto.",
    ),
    (
        {"game": "ditto", "replay": 1},
        "spin.replay must be absent with game: ditto, got 1. It draws from all earlier iterations",
    ),
    (
        {"game": "ditto", "loss": "space"},
        "spin.loss must be a loss of better and worse with game: ditto, got 'space'. It judges",
    ),
    (
        {"game": "ditto", "ditto": {"newest": 0.8}},
        "ditto must be shares newest, earlier and between that add up to 1, got "
        "'0.8 + 0.2 + 0.1 = 1.1'.",
    ),
    ({"game": "ditto", "ditto": {"newest": 0}}, "ditto.newest must be a number in (0, 1], got 0"),
    ({"game": "ditto", "ditto": {"earlier": -0.1}}, "ditto.earlier must be a number in [0, 1)"),
    ({"game": "ditto", "ditto": {"between": "0.1"}}, "ditto.between must be a number in [0, 1)"),
    ({"game": "ditto", "ditto": {"betwen": 0.1}}, "Did you mean 'between'?"),
    (
        {"game": "ditto", "ditto": {"newest": 0.9, "earlier": 0, "between": 0.1}},
        "ditto.between must be 0 where earlier is 0, got 0.1. Its responses are those that pairs",
    ),
    ({"seed": "seven"}, "seed"),
    ({"seed": -1}, "seed"),
    ({"store": ""}, "store"),
    ({"generation": 5}, "generation must be a mapping of settings, got 5"),
    ({"generation": {"max_new_tokens": -1}}, "generation.max_new_tokens must be a positive"),
    ({"generation": {"max_new_tokens": 5.0}}, "generation.max_new_tokens"),
    ({"generation": {"batch_size": 0}}, "generation.batch_size"),
    ({"generation": {"min_new_tokens": -1}}, "generation.min_new_tokens"),
    ({"generation": {"min_new_tokens": 9, "max_new_tokens": 8}}, "at most max_new_tokens (8)"),
    ({"generation": {"temperature": 0}}, "generation.temperature must be a number > 0, got 0"),
    ({"generation": {"repetition_penalty": 0.0}}, "generation.repetition_penalty"),
    ({"generation": {"top_p": 0}}, "generation.top_p must be a number in (0, 1], got 0"),
    ({"generation": {"top_p": 1.1}}, "generation.top_p"),
    ({"generation": {"top_k": -1}}, "generation.top_k"),
    ({"generation": {"stop_strings": "###"}}, "generation.stop_strings must be a list"),
    ({"generation": {"stop_strings": [""]}}, "generation.stop_strings"),
    ({"generation": {"engine": "vllm"}}, "generation.engine must be one of hf, server, got 'vllm'"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_wrong_value_is_refused_by_its_name(given: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: fill(SpinSettings, given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replays": 1}, "algorithms.spin.replays is not a setting. Did you mean 'replay'?"),
        ({"generation": {"temprature": 1}}, "Did you mean 'temperature'?"),
        ({"zzz": 1}, "Known: "),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(given: Any, said: str) -> None:
    assert said in refusal(lambda: fill(SpinSettings, given))


@pytest.mark.parametrize("off", ["off", False])  # YAML reads off as false
def test_alarms_are_switched_off_one_by_one_or_all(off: Any) -> None:
    given = {"high_accuracy": off, "never_stops": "on"}
    assert fill(SpinSettings, {"alarms": given}).alarms == {
        "high_accuracy": False,
        "never_stops": True,
    }
    assert fill(SpinSettings, {"alarms": off}).alarms == dict.fromkeys(ALARMS, False)


def test_values_come_to_their_types() -> None:
    settings = fill(SpinSettings, {"iteration_length": 3, "beta": 1, "generation": {}})
    assert settings.iteration_length == "3ep"
    assert settings.epochs_per_iteration == 3
    assert settings.beta == [1.0]
    assert settings.generation == GenerationSettings()
    assert fill(SpinSettings, settings) is settings


def test_the_defaults_are_the_papers() -> None:
    settings = SpinSettings()
    assert settings.epochs_per_iteration == 2
    assert (settings.beta, settings.replay, settings.loss) == ([0.1], 1, "logistic")
    assert settings.reset_optimizer
    assert settings.generation.off_policy_settings == []


def test_a_default_of_another_losss_setting_is_not_refused() -> None:
    space = SpinSettings(loss="space")
    assert pair_loss(space, 0) == PairLoss("space", parameters={"space_mu": 1.0})
    dpop = fill(SpinSettings, {"loss": "dpop", "beta": [0.3, 0.1], "dpop_lambda": 5})
    assert pair_loss(dpop, 1) == PairLoss("dpop", 0.1, parameters={"dpop_lambda": 5})
    assert pair_loss(SpinSettings(loss="dpop"), 1).parameters == {"dpop_lambda": 50.0}


def test_a_null_of_another_losss_or_games_setting_counts_as_not_given() -> None:
    space = fill(SpinSettings, {"loss": "space", "beta": None, "dpop_lambda": None})
    assert space == SpinSettings(loss="space")
    assert fill(SpinSettings, {"beta": None, "space_mu": None, "ditto": None}) == SpinSettings()
    assert fill(SpinSettings, {"game": "ditto", "replay": None}) == SpinSettings(game="ditto")


def test_a_loss_is_chosen_on_the_command_line_for_a_yaml_that_has_beta() -> None:
    chosen = ["spin.loss=space", "algorithms.spin.beta=null"]
    config = to_mapping(read_yaml(YAML, chosen))
    assert config["algorithms"]["spin"]["loss"] == "space"
    assert pair_loss(validate(config), 0) == PairLoss("space", parameters={"space_mu": 1.0})
    with pytest.raises(InputError, match="beta must be absent with loss: space, got"):
        validate(to_mapping(read_yaml(YAML, chosen[:1])))


AT_THE_BOUNDS: list[dict[str, Any]] = [
    *({"loss": "space", "space_mu": mu} for mu in (1e-15, 1e15)),
    *({"loss": loss, "beta": b} for loss in ("logistic", "hinge", "squared") for b in (1e-6, 1e6)),
    {"loss": "dpop", "beta": 1e6, "dpop_lambda": 1e6},
    {"beta": 1e6, "nll_weight": 1e6},
]


@pytest.mark.parametrize("given", AT_THE_BOUNDS)
def test_the_bounds_of_a_loss_leave_it_and_its_squared_gradients_finite_in_fp32(
    given: dict[str, Any],
) -> None:
    apart = torch.tensor([-5000.0, -100.0, 0.0, 100.0, 5000.0])
    policy = torch.cartesian_prod(apart, apart).requires_grad_()
    loss = pair_loss(SpinSettings(**given), 0)
    values = loss(policy, torch.zeros_like(policy), torch.ones_like(policy))
    values.sum().backward()
    assert policy.grad is not None
    assert values.isfinite().all()
    assert policy.grad.square().sum().isfinite()


def test_every_parameter_of_a_loss_is_a_setting() -> None:
    names = {field.name for field in fields(SpinSettings)}  # pyright: ignore[reportArgumentType]
    for loss in LOSSES:
        assert set(loss_parameters(loss)) <= names


def test_settings_that_move_the_fixed_point_are_named() -> None:
    moved = {"min_new_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    generation = GenerationSettings(**moved, repetition_penalty=1.1)
    assert generation.off_policy_settings == [*moved, "repetition_penalty"]


@pytest.mark.parametrize(
    ("duration", "epochs", "iterations"),
    [("3iter", 2, 3), ("6ep", 2, 3), (6, 2, 3), ("2ep", 2, 1), ("1iter", 5, 1)],
)
def test_iterations_of_a_duration(duration: Any, epochs: int, iterations: int) -> None:
    assert count_iterations(duration, epochs) == iterations


@pytest.mark.parametrize(
    ("duration", "said"),
    [
        ("5ep", "max_duration=5ep is not a whole number of iterations of 2ep"),
        ("100ba", "must be a positive number of iterations or epochs, got 100ba"),
        ("0iter", "got 0iter"),
        ("-2ep", "got -2ep"),
        (None, "got None"),
    ],
)
def test_a_duration_that_is_no_number_of_iterations_is_refused(duration: Any, said: str) -> None:
    assert said in refusal(lambda: count_iterations(duration, 2))


@pytest.mark.parametrize("name", ["beta", "learning_rate"])
def test_lists_hold_one_value_per_iteration(name: str) -> None:
    settings = fill(SpinSettings, {name: [0.1, 0.2]})
    settings.check_iterations(2)
    for iterations in (1, 3):
        said = refusal(lambda n=iterations: settings.check_iterations(n))
        assert said.startswith(f"algorithms.spin.{name} has 2 values for {iterations} iterations")
    fill(SpinSettings, {name: 0.1}).check_iterations(7)


def test_one_value_serves_every_iteration() -> None:
    assert [value_for_iteration([0.5], k) for k in range(3)] == [0.5] * 3
    assert [value_for_iteration([0.1, 0.2, 0.3], k) for k in range(3)] == [0.1, 0.2, 0.3]


def test_settings_need_no_heavy_import() -> None:
    code = (
        "import sys, spin_composer.settings.spin; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'composer', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
