"""A run keeps its figures step by step; resumed, it has the file of a run that was not killed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from composer import Trainer
from composer.core import Callback
from fixtures import tokenizers
from fixtures.runs import tiny_trainer, write_rows
from fixtures.steps import steps_without_times, without_times

from spin_composer import build_spin_evaluator
from spin_composer.metrics import PAIR_METRICS
from spin_composer.play.metrics import PLAY_METRICS
from spin_composer.report.steps import LEARNING_RATE, TOKENS_PER_SECOND, read_steps

NLL = "metrics/eval/LanguageCrossEntropy"
# 24 pairs / 4 = 6 batches an epoch, 12 in iteration 0; replay makes it 24 in iteration 1
STEPS = 36
CHECKPOINTS = [
    pytest.param("ep0-ba4", id="mid epoch", marks=pytest.mark.slow),
    pytest.param("ep0-ba6", id="last batch of an epoch"),
    pytest.param("ep1-ba7", id="first batch of the second epoch", marks=pytest.mark.slow),
    pytest.param("ep2-ba12", id="an iteration's end"),
    pytest.param("ep2-ba13", id="first batch of the second iteration", marks=pytest.mark.slow),
]


def trainer_with_evaluation(folder: Path, **overrides: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    held_out = write_rows(folder / "held-out.jsonl", num_rows=6, seed=1)
    dataset = {"hf_name": str(held_out), "split": "train", "max_seq_len": 64}
    evaluator = build_spin_evaluator(tokenizers.byte_level(), 4, dataset=dataset)
    return tiny_trainer(folder, eval_dataloader=evaluator, eval_interval="1ep", **overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Trainer]:
    """A run with an evaluation after each epoch that saves after every batch."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_with_evaluation(
        folder,
        save_folder=str(folder / "checkpoints"),
        save_interval="1ba",
        save_filename="ep{epoch}-ba{batch}.pt",
    )
    trainer.eval()
    trainer.fit()
    trainer.close()
    return folder, trainer


def test_every_step_has_a_line_with_what_is_logged_of_its_batch(whole):
    folder, trainer = whole
    rows = [row for row in read_steps(folder / "self-play") if LEARNING_RATE in row.values]
    assert [row.step for row in rows] == list(range(1, STEPS + 1))
    assert [row.iteration for row in rows] == [0] * 12 + [1] * 24
    assert [row.epoch for row in rows[:13]] == [0] * 6 + [1] * 6 + [2]
    (memory,) = trainer.logger.destinations
    names = ["loss/train/total", *(f"metrics/train/{m.__name__}" for m in PAIR_METRICS)]
    for name in names:
        logged = {int(at.batch) + 1: float(value) for at, value in memory.data[name]}
        logged.pop(STEPS + 1, None)  # at the last epoch's end the last batch's are logged again
        assert {row.step: row.values[name] for row in rows} == logged, name
    assert all(row.values[TOKENS_PER_SECOND] > 0 for row in rows)


def test_a_line_has_the_learning_rate_that_its_step_was_made_with(whole):
    folder, _ = whole
    rates = [
        row.values[LEARNING_RATE]
        for row in read_steps(folder / "self-play")
        if LEARNING_RATE in row.values
    ]
    assert rates[0] == rates[12] == 0.0  # the warm-up's first
    assert max(rates[:12]) == pytest.approx(1e-2, rel=0.2)


def test_the_first_step_of_an_iteration_has_the_metrics_of_its_play(whole):
    folder, _ = whole
    rows = read_steps(folder / "self-play")
    names = set(PLAY_METRICS) - {"spin/server_gap", "spin/between_pairs"}  # of other settings
    assert [row.step for row in rows if "spin/generated_length" in row.values] == [1, 13]
    assert all(names <= set(row.values) for row in rows if "spin/pairs" in row.values)


def test_evaluations_and_the_ends_of_iterations_have_lines(whole):
    folder, trainer = whole
    rows = read_steps(folder / "self-play")
    (memory,) = trainer.logger.destinations
    found = [(row.step, row.values[NLL]) for row in rows if NLL in row.values]
    assert [step for step, _ in found] == [0, 6, 12, 24, 36]
    assert [value for _, value in found] == [float(value) for _, value in memory.data[NLL]]
    ends = [row for row in rows if "spin/play_time_share" in row.values]
    assert [(row.iteration, row.step) for row in ends] == [(0, 12), (1, 36)]
    assert [row.position for row in rows] == sorted(row.position for row in rows)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_resumed_run_has_the_lines_of_one_that_was_not_killed(whole, checkpoint, tmp_path):
    folder, _ = whole
    shutil.copytree(folder / "self-play", tmp_path / "self-play")  # with lines after the checkpoint
    path = tmp_path / "self-play/steps.jsonl"
    path.write_text(path.read_text()[:-30])  # and a last one that is cut short
    load_path = str(folder / "checkpoints" / f"{checkpoint}.pt")
    trainer_with_evaluation(tmp_path, load_path=load_path).fit()
    wanted = steps_without_times(folder / "self-play")
    assert steps_without_times(tmp_path / "self-play") == wanted


class Killed(Exception):
    pass


class Kills(Callback):
    """Ends a run after a batch, as a kill would: nothing more is written."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_end(self, state, logger):
        del logger
        if int(state.timestamp.batch) == self.batch:
            raise Killed


def test_a_kill_loses_no_line_before_the_last_checkpoint(whole, tmp_path):
    folder, _ = whole
    saving: dict[str, Any] = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "5ba"}
    saving |= {"autoresume": True, "save_filename": "ba{batch}.pt"}
    killed = trainer_with_evaluation(tmp_path, callbacks=[Kills(13)], **saving)
    killed.eval()
    with pytest.raises(Killed):
        killed.fit()
    killed.close()
    found = steps_without_times(tmp_path / "self-play")
    wanted = steps_without_times(folder / "self-play")
    assert found == wanted[: len(found)]
    assert found[-1][0] >= (0, 2, 12)  # an iteration's end saves
    trainer_with_evaluation(tmp_path, **saving).fit()
    assert steps_without_times(tmp_path / "self-play") == wanted


def test_a_run_that_begins_again_begins_its_file_again(tmp_path):
    short: dict[str, Any] = {"max_duration": "1iter", "spin": {"iteration_length": "1ep"}}
    with pytest.raises(Killed):
        trainer_with_evaluation(tmp_path, callbacks=[Kills(4)], **short).fit()
    trainer_with_evaluation(tmp_path, **short).fit()
    rows = read_steps(tmp_path / "self-play")
    assert [row.step for row in rows if LEARNING_RATE in row.values] == list(range(1, 7))
    assert without_times(rows[0])["spin/pairs"] == 24
