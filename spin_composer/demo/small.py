"""A smoke test of an installation: one iteration of the demo on a few rows; it claims nothing.

It goes through everything that a run does: SFT rows, play, training on pairs, the store, a
checkpoint, an export, and sampling from that. The models learn too little to compare anything.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console

from spin_composer.demo.base import ModelSize, SFTConfig, make_base
from spin_composer.demo.run import Paths, Stage, load_quietly, play, prepare, score_exported
from spin_composer.demo.world import make_world, write_rows
from spin_composer.report.history import ACCURACY, BATCHES, NLL, PAIRS, in_evaluation
from spin_composer.versions import stack_line

_CARELESS, _CAREFUL, _HELD_OUT = 640, 64, 32
"""Rows of the base model, of the game, and held out."""
_SETTINGS = (
    "max_duration=1iter",
    "eval_interval=1iter",
    "algorithms.spin.iteration_length=4ep",
    "global_train_batch_size=32",
    "device_train_microbatch_size=32",
)
"""The demo's YAML, but for these."""


def main(folder: Path, seed: int = 17) -> None:
    """Play one iteration on a few rows; print what was made and, last, a line of JSON.

    Args:
        folder: New folder of everything that it writes; that of an earlier demo is replaced.
        seed: Of the data, the base model and the run.

    Raises:
        InputError: If the folder holds something else.
    """
    started = time.perf_counter()
    paths = Paths(folder)
    prepare(paths)
    stage = Stage(Console(stderr=True))
    with stage("loading torch and Composer"):
        load_quietly()
    with stage("making the data, and a base model by SFT"):
        world = make_world(seed, _CARELESS, _CAREFUL, _HELD_OUT)
        write_rows(world.careless_train, paths.data("careless"))
        write_rows(world.careful_train, paths.data("train"))
        write_rows(world.careful_valid, paths.data("heldout"))
        make_base(
            paths.data("careless"),
            paths.data("heldout"),
            paths.base,
            ModelSize(),
            SFTConfig(epochs=2, seed=seed),
        )
    given = [f"variables.folder={folder}", f"seed={seed}", *_SETTINGS]
    with stage(f"playing one iteration of SPIN ({paths.yaml})"):
        _, history = play(paths, given)
    with stage("sampling from the exported model"):
        score = score_exported(paths.export(0), world.careful_valid)
    (record,) = history.iterations
    nll = in_evaluation("eval", NLL)
    figures = {
        "small": True,
        "pairs": int(record[PAIRS]),
        "steps": int(record[BATCHES]),
        "accuracy": record[ACCURACY],
        "held_out_nll": [history.baseline[nll], record[nll]],
        "responses_sampled": score.responses,
        "export": str(paths.export(0)),
        "seconds": {**stage.seconds, "total": round(time.perf_counter() - started, 1)},
    }
    console = Console()
    console.print(
        f"It works: {figures['pairs']} pairs played, {figures['steps']} steps trained, "
        f"{score.responses} responses sampled from\nthe exported model, {figures['export']}. "
        f"{stack_line()}.\nThis is a smoke test: so few rows and steps say nothing about SPIN. "
        "`spin-composer demo` compares it with SFT.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    print(json.dumps(figures), flush=True)
