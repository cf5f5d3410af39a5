"""The arms: ways to go on from a start, of which only one thing differs from SPIN's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from examples.evidence.settings import REMOVED
from examples.evidence.training import MODEL, Trained, continue_sft, last_of_stopped, play
from examples.evidence.worlds import Setting, World

START, SPIN, SFT = "start", "spin", "sft"
COMPUTE, STOPPED = "sft-compute", "sft-stopped"
NO_REFRESH, FALLING = "spin-one-iteration", "spin-falling-rate"


@dataclass(frozen=True)
class Job:
    """An arm's training in one setting."""

    world: World
    setting: Setting
    folder: Path
    """Of the arm; empty when its training begins."""
    seed: int
    needed: Mapping[str, Path]
    """Folders of the arms that this one builds on."""


@dataclass(frozen=True)
class Arm:
    """A way to train."""

    title: str
    train: Callable[[Job], Trained]
    needs: tuple[str, ...] = ()
    """Arms of the same seed that it builds on."""


def _game(title: str, changes: Mapping[str, Any] | None = None, swapped: bool = False) -> Arm:
    def train(job: Job) -> Trained:
        start = job.setting.start
        more = changes or {}
        return play(job.world, job.setting, start, job.folder, job.seed, more, swapped)

    return Arm(title, train)


def _without_refresh(job: Job) -> Trained:
    config = job.world.config()
    spin = config["algorithms"]["spin"]
    epochs = _number(spin["iteration_length"]) * _number(config["max_duration"])
    one = {"max_duration": "1iter", "algorithms.spin.iteration_length": f"{epochs}ep"}
    return play(job.world, job.setting, job.setting.start, job.folder, job.seed, one)


def _falling_rates(job: Job) -> Trained:
    """Play with a fall as the paper's, from 5e-7 to 1e-7, which it has after two iterations."""
    config = job.world.config()
    rate, iterations = config["optimizer"]["lr"], _number(config["max_duration"])
    rates = [rate, *[rate / 5] * (iterations - 1)]
    change = {"algorithms.spin.learning_rate": rates}
    return play(job.world, job.setting, job.setting.start, job.folder, job.seed, change)


def _number(time: str) -> int:
    return int(time.rstrip("epitr"))


def _after_stopped_sft(job: Job, share: float = 1.0) -> Trained:
    start = job.needed[STOPPED] / MODEL
    rate = {"optimizer.lr": share * job.world.config()["optimizer"]["lr"]}
    return play(job.world, job.setting, start, job.folder, job.seed, rate)


def _same_steps(job: Job) -> Trained:
    return last_of_stopped(job.needed[STOPPED], job.folder)


def _same_compute(job: Job) -> Trained:
    """SFT for as many tokens as SPIN computed, a forward pass being the unit.

    A token that is trained on takes three units, forward and backward. Play generates one sequence
    of each pair and scores two, a unit for each token; training has both in every epoch: 6 E units
    of training beside 3 of play, if real and generated responses are of one length.
    """
    epochs = _number(job.world.config()["algorithms"]["spin"]["iteration_length"])
    share = (6 * epochs + 3) / (6 * epochs)
    steps = [round(share * count) for count in Trained.load(job.needed[SPIN]).steps]
    return continue_sft(job.world, job.setting, job.folder, job.seed, steps)


def _stopped(job: Job) -> Trained:
    steps = Trained.load(job.needed[SPIN]).steps
    return continue_sft(job.world, job.setting, job.folder, job.seed, steps, stop_early=True)


_LOSS, _BETA = "algorithms.spin.loss", "algorithms.spin.beta"

ARMS: Mapping[str, Arm] = {
    SPIN: _game("SPIN"),
    NO_REFRESH: Arm("SPIN without refresh: one long iteration", _without_refresh),
    FALLING: Arm("SPIN, later iterations at a fifth of the learning rate", _falling_rates),
    STOPPED: Arm("SFT, stopped early", _stopped, (SPIN,)),
    SFT: Arm("SFT, the same steps", _same_steps, (STOPPED,)),
    COMPUTE: Arm("SFT, the same tokens with play's", _same_compute, (SPIN,)),
    "sft-stopped-spin": Arm("SFT, stopped early, then SPIN", _after_stopped_sft, (SPIN, STOPPED)),
    "sft-stopped-spin-slow": Arm(
        "SFT, stopped early, then SPIN at a tenth of the learning rate",
        partial(_after_stopped_sft, share=0.1),
        (SPIN, STOPPED),
    ),
    "space": _game("SPACE", {_LOSS: "space", _BETA: REMOVED}),
    "dpop": _game("DPOP, lambda 5", {_LOSS: "dpop", "algorithms.spin.dpop_lambda": 5.0}),
    "nll": _game("SPIN + NLL", {"algorithms.spin.nll_weight": 1.0}),
    "hinge": _game("hinge", {_LOSS: "hinge"}),
    "squared": _game("IPO (squared)", {_LOSS: "squared"}),
    "ditto": _game("DITTO", {"algorithms.spin.game": "ditto", "algorithms.spin.replay": REMOVED}),
    "swapped": _game("labels swapped (control)", swapped=True),
}
"""In the order in which they are run: an arm stands after those that it needs."""

LOSSES = (SPIN, "space", "dpop", "nll", "hinge", "squared")
"""The arms that differ in the loss alone."""
