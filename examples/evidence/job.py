"""One arm with one seed, in a process of its own: trained, measured, and written whole or not."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import spin_composer.algorithm  # noqa: F401  (imported once, in the process that jobs are forks of)
from examples.evidence.arms import ARMS, START, Job
from examples.evidence.measures import measure_model
from examples.evidence.results import Result, digest_of
from examples.evidence.training import MODEL, RECORD, Trained
from examples.evidence.worlds import Setting, World

MEASURED = "measured.json"
_WORLD = "world"


def run(
    world: World, arm: str, seed: int, folder: Path, fingerprint: str, start: str | None
) -> None:
    """Train and measure an arm, unless it is done; ``measured.json`` of its folder says what came.

    Args:
        world: In which.
        arm: Which: one of :data:`ARMS`, or the start as it is.
        seed: Of world and training.
        folder: Of the world's seed; holds a folder for the world and one for each arm.
        fingerprint: Of the world's settings, for the result.
        start: Digest of the start and rows that the seed's other results are of; None: no matter.

    Raises:
        SystemExit: If they are not those that were made here.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_quiet()
    _written(folder / _WORLD, lambda to: world.make(to, seed))
    setting = Setting.of(folder / _WORLD)
    made = digest_of(setting)
    if start not in (None, made):
        sys.exit(
            f"evidence: seed {seed} of {world.name} has results of another start or other rows "
            f"({start or 'not noted'}; here {made}). Name another --results, or delete them."
        )
    own = folder / arm
    if arm == START:
        own.mkdir(exist_ok=True)
        model, trained = setting.start, Trained([], 0, [])
    else:
        _written(own, lambda to: _train(world, arm, seed, folder, to))
        model, trained = own / MODEL, Trained.load(own)
    began = time.perf_counter()
    measures = measure_model(world, setting, model)
    result = Result(
        world=world.name,
        arm=arm,
        seed=seed,
        fingerprint=fingerprint,
        measures=measures,
        validation_nll=trained.validation_nll,
        steps=sum(trained.steps),
        tokens=trained.tokens,
        seconds=round(trained.seconds + time.perf_counter() - began, 1),
        more=trained.more,
        start=made,
    )
    aside = own / f"{MEASURED}.partial"
    aside.write_text(json.dumps(vars(result)), encoding="utf-8")
    aside.replace(own / MEASURED)


def _train(world: World, arm: str, seed: int, folder: Path, to: Path) -> None:
    needed = {name: folder / name for name in ARMS[arm].needs}
    began = time.perf_counter()
    trained = ARMS[arm].train(Job(world, Setting.of(folder / _WORLD), to, seed, needed))
    seconds = trained.seconds or time.perf_counter() - began
    replace(trained, seconds=seconds).save(to)
    assert (to / RECORD).exists()


def _written(folder: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written aside and then given its name; what a kill left is begun anew."""
    if folder.exists():
        return
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    aside.rename(folder)


def _end_with_parent() -> None:
    """End this process when the runner is gone, that the next run does not meet it in a folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _be_quiet() -> None:
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
