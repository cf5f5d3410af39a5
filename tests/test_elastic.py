"""A run stopped on some ranks goes on with others: the same store, losses, and weights.

Each case is a run of ``tests/chaos``: started on the first number of ranks, killed in training
or in play, gone on with the next number, killed again, and finished with the one after that; then
compared with the run that was not killed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.yaml_run import launch, save_model, tiny_config, write_config
from test_chaos import chaos

pytestmark = pytest.mark.foundry

# Killed at the 8th batch (the last save was at the 5th), then in the next iteration's play; or in
# the first play, then after ten batches more. Four ranks share five units: each makes one or two.
IN_TRAINING_THEN_PLAY = "training:8,generate:1"
IN_PLAY_THEN_TRAINING = "generate:1,training:10"


def check(folder: Path, ranks: str, at: str, checkpoints: str = "full") -> None:
    done = chaos(folder, "--ranks", ranks, "--at", at, "--checkpoints", checkpoints)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, all runs the same as the one not killed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_then_one_then_two_come_to_the_same(tmp_path):
    check(tmp_path, "2,1", IN_TRAINING_THEN_PLAY)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("ranks", "at", "checkpoints"),
    [
        ("2,1", IN_PLAY_THEN_TRAINING, "full"),
        ("1,2", IN_TRAINING_THEN_PLAY, "full"),
        ("1,2", IN_PLAY_THEN_TRAINING, "full"),
        ("2,1", IN_TRAINING_THEN_PLAY, "unwrapped"),
        ("1,2", IN_PLAY_THEN_TRAINING, "unwrapped"),
        ("2,4", IN_TRAINING_THEN_PLAY, "full"),
        ("2,4", IN_TRAINING_THEN_PLAY, "sharded"),
        ("4,2", IN_PLAY_THEN_TRAINING, "sharded"),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(ranks, at, checkpoints, tmp_path):
    check(tmp_path, ranks, at, checkpoints)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_process_refuses_sharded_checkpoints_in_one_line_and_touches_nothing(tmp_path):
    config = tiny_config(tmp_path, save_model(tmp_path), max_duration="1iter")
    config["fsdp_config"]["state_dict_type"] = "sharded"
    yaml = write_config(config, tmp_path / "run.yaml")
    command = ("composer", "-m", "spin_composer.train", str(yaml))
    assert launch(*command, ranks=2).returncode == 0
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    alone = launch("spin-composer", "train", str(yaml))
    assert alone.returncode == 2, alone.stderr[-2000:]
    assert "checkpoint ep2-ba12 is sharded, and one process" in alone.stderr.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    again = launch(*command, ranks=2)
    assert again.returncode == 0, again.stderr[-2000:]
