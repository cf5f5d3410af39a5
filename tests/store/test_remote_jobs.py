"""Play jobs on other nodes: what they and the run see of each other in an object store."""

from __future__ import annotations

import pytest
import torch

from spin_composer.engines.base import NoGenerator
from spin_composer.errors import StoreError
from spin_composer.play.iteration import require_same_play
from spin_composer.play.plan import ReplayUnit
from spin_composer.play.player import Player
from tests.play.test_prepare import EXAMPLES
from tests.store.conftest import reopen

PREFIX = "run/self-play/iter-000"


def test_a_job_sees_that_an_iteration_was_started_otherwise_on_another_node(a, b, s3):
    wanted = a.manifest(0)
    require_same_play(a, wanted)
    for name in [*s3.names(PREFIX)]:
        s3.delete(name)
    with pytest.raises(StoreError, match=r"iter-000 was played by another run"):
        require_same_play(a, wanted)
    reopen(b, seed=6)
    with pytest.raises(StoreError, match=r"it differs in seed \(store 6, run 5\)"):
        require_same_play(a, wanted)


def test_a_unit_without_prompts_that_another_node_made_is_there(a, b):
    reopen(b)
    player = Player(b, NoGenerator(), torch.zeros_like, EXAMPLES, seed=5, score_batch_size=1)
    assert player.recover(0, 1, ReplayUnit(0, 1))
    assert not player.recover(0, 2, ReplayUnit(0, 2))
