"""Runs that have a fault raise its alarm, where people look; a run that has none raises none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composer import Trainer
from composer.core import Callback, Event, State
from fixtures import tokenizers
from fixtures.runs import WORDS, tiny_trainer
from fixtures.scripted_engine import Script, ScriptedEngine
from typer.testing import CliRunner

from spin_composer.alarms.rules import ALARMS, LEAST_WINDOW
from spin_composer.cli import app
from spin_composer.report.steps import find_alarms, read_steps
from spin_composer.settings.engines import ENGINES, EngineEntry

TOKENIZER = tokenizers.byte_level()
EACH = 3
"""Responses to each of the 24 prompts."""


def encode(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def words(random: np.random.Generator, count: int | None = None) -> list[str]:
    return random.choice(WORDS, size=count or random.integers(1, 6)).tolist()


def like_the_data(iteration: int, random: np.random.Generator) -> list[int]:
    """Answer as the data's writer does: nothing is left to learn."""
    return encode(" " + " ".join(words(random)))


def never_stops(iteration: int, random: np.random.Generator) -> list[int]:
    return encode(" " + " ".join(words(random, 40)))


def longer_each_time(iteration: int, random: np.random.Generator) -> list[int]:
    return encode(" " + " ".join(words(random, 3 + 3 * iteration)))


def without_the_space(iteration: int, random: np.random.Generator) -> list[int]:
    return encode(" ".join(words(random)))


def one_answer(iteration: int, random: np.random.Generator) -> list[int]:
    """Answer as the data's writer does, then always in the same way."""
    return encode(" sun moon star") if iteration else like_the_data(iteration, random)


def nonsense(iteration: int, random: np.random.Generator) -> list[int]:
    return encode("%" * int(random.integers(4, 9)))


def play_scripted(
    folder: Path, script: Script, patch: pytest.MonkeyPatch, **overrides: Any
) -> Trainer:
    """Return the Trainer of a run whose opponent answers by a script."""
    patch.setitem(ENGINES, "scripted", EngineEntry("fixtures.scripted_engine:ScriptedEngine"))
    patch.setattr(ScriptedEngine, "script", staticmethod(script), raising=False)
    spin = {
        "iteration_length": "1ep",
        "replay": 0,
        "responses_per_prompt": EACH,
        "learning_rate": 1e-4,
        "generation": {"engine": "scripted", "max_new_tokens": 26},
        **overrides.pop("spin", {}),
    }
    given = {"device_batch_size": 8, "device_train_microbatch_size": 8, **overrides}
    return tiny_trainer(folder, spin=spin, **given)


def raised(folder: Path) -> list[str]:
    return [alarm.name for alarm in find_alarms(folder / "self-play")]


def write_judged(folder: Path, *accuracies: float) -> None:
    """Write what a judge measured of the start and each iteration."""
    names = ["start", *(f"iter-{k:03d}" for k in range(len(accuracies) - 1))]
    models = [
        {"name": n, "measures": {"classifier_accuracy": {"value": a, "standard_error": 0.01}}}
        for n, a in zip(names, accuracies, strict=True)
    ]
    (folder / "self-play/judge.json").write_text(json.dumps({"models": models}))


class JudgesEachIteration(Callback):
    """Writes a judge's result as an iteration's checkpoint is saved."""

    def __init__(self, folder: Path, *accuracies: float):
        self.folder, self.accuracies = folder, accuracies

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        del logger
        if event == Event.ITERATION_CHECKPOINT:
            write_judged(self.folder, *self.accuracies[: int(state.timestamp.iteration) + 1])


def test_a_sound_run_raises_none(tmp_path, monkeypatch):
    trainer = play_scripted(
        tmp_path, like_the_data, monkeypatch, max_duration="3iter",
        callbacks=[JudgesEachIteration(tmp_path, 0.9, 0.8, 0.7, 0.6)],
        spin={"iteration_length": "2ep"},
    )  # fmt: skip
    trainer.fit()
    assert raised(tmp_path) == []
    # Each alarm had what it looks at: a shorter run, or one without a judge, raises none anyway.
    steps = Counter(row.iteration for row in read_steps(tmp_path / "self-play"))
    assert min(steps.values()) >= LEAST_WINDOW
    (spin,) = trainer.state.algorithms
    assert spin.records.alarms.state_dict()["margins"][0] > 0


FAULTS: dict[str, tuple[Script, dict[str, Any]]] = {
    "never_stops": (never_stops, {"max_duration": "1iter"}),
    "growing_length": (longer_each_time, {"max_duration": "2iter"}),
    "first_token_gap": (without_the_space, {"max_duration": "1iter"}),
    "low_diversity": (one_answer, {"max_duration": "2iter"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_play_raises_its_alarm_and_is_a_warning(name, tmp_path, monkeypatch, caplog):
    script, settings = FAULTS[name]
    play_scripted(tmp_path, script, monkeypatch, **settings).fit()
    # One answer, always the same, is soon told apart as well.
    assert [found for found in raised(tmp_path) if found != "high_accuracy"] == [name]
    (said,) = (r for r in caplog.records if f"alarm {name}, " in r.getMessage())
    assert said.levelname == "WARNING"


def test_pairs_that_are_all_won_raise_high_accuracy(tmp_path, monkeypatch):
    spin = {"iteration_length": "6ep", "learning_rate": 1e-2}
    play_scripted(tmp_path, nonsense, monkeypatch, max_duration="1iter", spin=spin).fit()
    assert "high_accuracy" in raised(tmp_path)
    (alarm,) = (a for a in find_alarms(tmp_path / "self-play") if a.name == "high_accuracy")
    assert alarm.advice == ALARMS["high_accuracy"].advice


def test_a_learning_rate_that_ruins_the_policy_raises_falling_logps(tmp_path, monkeypatch):
    spin = {"iteration_length": "6ep", "learning_rate": 0.5}
    play_scripted(tmp_path, like_the_data, monkeypatch, max_duration="1iter", spin=spin).fit()
    assert "falling_logps" in raised(tmp_path)


def test_a_margin_that_grows_while_the_judge_falls_is_heard(tmp_path, monkeypatch):
    trainer = play_scripted(
        tmp_path, like_the_data, monkeypatch, max_duration="2iter",
        callbacks=[JudgesEachIteration(tmp_path, 0.9, 0.8, 0.95)],
        spin={"learning_rate": [1e-4, 3e-3]},
    )  # fmt: skip
    (spin,) = trainer.state.algorithms
    trainer.fit()
    margins = spin.records.alarms.state_dict()["margins"]
    assert margins[1] > margins[0] > 0
    assert raised(tmp_path) == ["judge_falls"]


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory) -> tuple[Path, Trainer]:
    """A run whose responses never stop, and that saves after every batch."""
    folder = tmp_path_factory.mktemp("cut-off")
    with pytest.MonkeyPatch.context() as patch:
        trainer = play_scripted(
            folder, never_stops, patch, max_duration="1iter", save_interval="1ba",
            save_folder=str(folder / "checkpoints"), save_filename="ba{batch}.pt",
        )  # fmt: skip
        trainer.fit()
        trainer.close()
    return folder, trainer


def test_an_alarm_reaches_loggers_steps_report_and_status(cut_off):
    folder, trainer = cut_off
    (memory,) = trainer.logger.destinations
    assert [float(value) for _, value in memory.data["alarms/never_stops"]] == [1.0]
    rows = read_steps(folder / "self-play")
    assert [row.step for row in rows if "alarms/never_stops" in row.values] == [1]
    advice = " ".join(ALARMS["never_stops"].advice.split())
    for command in ("report", "status"):
        printed = CliRunner().invoke(app, [command, str(folder / "self-play")]).output
        said = " ".join(printed.split())
        assert said.count("alarm never_stops, iteration 0: 100% of the generated responses") == 1
        assert advice in said


def test_a_resumed_run_repeats_no_alarm(cut_off, monkeypatch, caplog):
    folder, _ = cut_off
    load_path = str(folder / "checkpoints/ba3.pt")
    play_scripted(folder, never_stops, monkeypatch, max_duration="1iter", load_path=load_path).fit()
    assert "alarm never_stops" not in caplog.text
    assert raised(folder) == ["never_stops"]


@pytest.mark.slow
def test_an_alarm_that_is_off_is_raised_nowhere(tmp_path, monkeypatch, caplog):
    off = {"alarms": {"never_stops": False}}
    play_scripted(tmp_path, never_stops, monkeypatch, max_duration="1iter", spin=off).fit()
    assert raised(tmp_path) == []
    assert "alarm never_stops" not in caplog.text
