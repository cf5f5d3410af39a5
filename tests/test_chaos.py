"""A run killed by SIGKILL goes on by the same command and comes to the same, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.foundry

CHAOS = Path(__file__).parent / "chaos"


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # A process of its own: it forks, which one that has threads and a process group must not.
    command = [sys.executable, str(CHAOS), "--folder", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def test_two_kills_at_moments_drawn_from_a_printed_seed_change_nothing(tmp_path):
    done = chaos(tmp_path, "--kills", "2")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, all runs the same as the one not killed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_of_two_ranks_killed_changes_nothing(tmp_path):
    kills = ("--kills", "4", "--seed", "2")
    done = chaos(tmp_path, *kills, "--ranks", "2", "--checkpoints", "sharded")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_in_dittos_play_change_nothing(tmp_path):
    kills = ("--kills", "6", "--seed", "3", "--moments", "score,unit half written,unit renamed")
    done = chaos(tmp_path, "--game", "ditto", *kills)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rank_killed_under_composers_launcher_changes_nothing(tmp_path):
    done = chaos(tmp_path, "--launcher", "--ranks", "2", "--at", "training:8")
    assert done.returncode == 0, done.stdout + done.stderr
