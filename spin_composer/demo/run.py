"""The demo from start to finish: data, base model, SPIN, continued SFT, scores; then few rows.

Everything runs in one process, so that torch and Composer are imported only once.
"""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from spin_composer import startup
from spin_composer.demo.base import ModelSize, SFTConfig, make_base
from spin_composer.demo.game import play_game
from spin_composer.demo.results import DemoResults, ModelResult, report
from spin_composer.demo.scoring import Score, score
from spin_composer.demo.sft import SftRecipe, SftResult, sft
from spin_composer.demo.world import Row, is_valid, make_world, read_rows, write_rows
from spin_composer.errors import InputError
from spin_composer.report.history import NLL, in_evaluation, read_history
from spin_composer.settings.yaml import read_yaml

if TYPE_CHECKING:
    from spin_composer.report.history import RunHistory

YAML = resources.files("spin_composer.demo") / "demo.yaml"
"""The run's YAML, installed with the package; each demo saves a copy with its results."""

_MARK = ".spin-composer-demo"
_ANSWERS_PER_PROMPT = 8
"""Repetitions of each row in the data: how often the opponent answers it per iteration."""
_SCORED_ROWS, _SAMPLES = 200, 5
_LONGEST_ANSWER = 16
_FEW_ROWS, _FEW_ROWS_EPOCHS = 100, 60
"""Rows of the second setting, and epochs of SFT after which it surely has exhausted them."""
_FEW_ROWS_SETTINGS = ("optimizer.lr=1.0e-4",)
"""What is played there differently: at the first setting's rate both lose more than they gain."""


@dataclass(frozen=True)
class Paths:
    """The paths of the demo's files."""

    folder: Path

    @property
    def yaml(self) -> Path:
        """The game's YAML, as it was played."""
        return self.folder / "demo.yaml"

    @property
    def base(self) -> Path:
        """Base model and tokenizer."""
        return self.folder / "base"

    @property
    def game(self) -> Path:
        """What the run of SPIN writes."""
        return self.folder / "spin"

    def data(self, name: str) -> Path:
        """Return the jsonl of a set of rows."""
        return self.folder / "data" / f"{name}.jsonl"

    def sft_baseline(self, iteration: int) -> Path:
        """Return the folder of SFT's model after an iteration's number of steps."""
        return self.folder / "sft" / f"{iteration}"

    def export(self, iteration: int) -> Path:
        """Return the folder of SPIN's model after an iteration."""
        return self.game / "hf" / f"iter{iteration}"


def main(folder: Path, seed: int = 17) -> None:
    """Run the demonstration; print its table and, last, its figures as one line of JSON.

    Args:
        folder: New folder of everything that it writes; that of an earlier demo is replaced.
        seed: Of the data, the base model and both runs.

    Raises:
        InputError: If the folder holds something else.
    """
    paths = Paths(folder)
    prepare(paths)
    stage = Stage(Console(stderr=True))
    with stage("loading torch and Composer"):
        load_quietly()
    with stage("making the data"):
        held_out = _write_data(paths, seed)
    with stage("training a tokenizer and a base model by SFT"):
        make_base(
            paths.data("careless"),
            paths.data("careless-heldout"),
            paths.base,
            ModelSize(),
            SFTConfig(seed=seed),
        )
    results = _compare(paths, seed, held_out, stage)
    few = Paths(folder / "few-rows")
    with stage("the same with few rows: SFT on them, stopped by held-out rows of its own"):
        _exhaust_sft(paths, few, seed)
    held_out = read_rows(few.data("heldout"))
    report(results, _compare(few, seed, held_out, stage, _FEW_ROWS_SETTINGS), folder)


def _compare(
    paths: Paths, seed: int, held_out: list[Row], stage: Stage, overrides: Sequence[str] = ()
) -> DemoResults:
    """Play SPIN from the base model, continue SFT from it, and score the models of both."""
    given = [f"variables.folder={paths.folder}", f"seed={seed}", *overrides]
    with stage(f"playing three iterations of SPIN ({paths.yaml})"):
        spin_tokens, history = play(paths, given)
    steps = [int(record["batches"]) for record in history.iterations]
    with stage("continuing SFT instead, for as many steps"):
        sft_baseline = _continue_sft(paths, seed, steps, given)
    with stage("scoring samples of all models"):
        exports = [paths.export(iteration) for iteration in range(len(steps))]
        base_score, *scores = [score_exported(model, held_out) for model in (paths.base, *exports)]
        baseline_scores = [score_exported(r.folder, held_out) for r in sft_baseline]
    return DemoResults(
        base=ModelResult(history.baseline[_NLL], base_score),
        spin=[
            ModelResult(record[_NLL], s)
            for record, s in zip(history.iterations, scores, strict=True)
        ],
        sft=[
            ModelResult(r.held_out_nll, s)
            for r, s in zip(sft_baseline, baseline_scores, strict=True)
        ],
        records=history.iterations,
        tokens={"spin": spin_tokens, "sft_continuation": sum(r.tokens for r in sft_baseline)},
        seconds=stage.seconds,
    )


_NLL = in_evaluation("eval", NLL)


def load_quietly() -> None:
    """Import the slow packages, silence their messages, and have torch use one thread."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import datasets
    import torch
    import transformers

    import spin_composer.algorithm  # noqa: F401

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # with so little to compute, more threads only wait for one another


def prepare(paths: Paths) -> None:
    """Make the demo's folder, or empty that of an earlier demo, and put the YAML into it.

    Raises:
        InputError: If the folder is a file, or holds something else.
    """
    folder = paths.folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--folder={folder} is a file. Name another folder.")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise InputError(
                f"--folder={folder} contains something other than a demo. Name another folder."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    paths.yaml.write_bytes(YAML.read_bytes())


def _write_data(paths: Paths, seed: int) -> list[Row]:
    """Write the rows of the world; return the held-out rows."""
    world = make_world(seed)
    write_rows(world.careless_train, paths.data("careless"))
    write_rows(world.careless_valid, paths.data("careless-heldout"))
    write_rows(world.careful_train * _ANSWERS_PER_PROMPT, paths.data("train"))
    write_rows(world.careful_valid, paths.data("heldout"))
    return world.careful_valid


def _exhaust_sft(paths: Paths, few: Paths, seed: int) -> SftResult:
    """Write the few rows, and do with SFT what it can: the base model of the second setting.

    The held-out rows that are scored are the ones to report on; the others tell SFT when to stop.
    """
    rows = read_rows(paths.data("train"))[:_FEW_ROWS]  # the first round of them: each row once
    write_rows(rows * _ANSWERS_PER_PROMPT, few.data("train"))
    held_out = read_rows(paths.data("heldout"))
    write_rows(held_out[:_SCORED_ROWS], few.data("heldout"))
    validation = write_rows(held_out[_SCORED_ROWS:], few.data("validation"))
    few.yaml.write_bytes(YAML.read_bytes())
    recipe = SftRecipe(
        duration=f"{_FEW_ROWS_EPOCHS * (_FEW_ROWS // 32)}ba",
        batch_size=32,
        microbatch_size=32,
        optimizer=dict(read_yaml(paths.yaml, []).optimizer),
        t_warmup="0.1dur",
        gradient_clipping=1.0,
        max_seq_len=ModelSize().max_seq_len,
        seed=seed,
        stop_early=f"{_FEW_ROWS // 32}ba",
    )
    once = write_rows(rows, few.data("once"))
    return sft(paths.base, once, validation, few.base, recipe)


def play(paths: Paths, overrides: Sequence[str]) -> tuple[int, RunHistory]:
    """Play the game; return the tokens trained on, and its history."""
    startup.process_clock().rename_all("the program before")  # SFT's Trainer is not SPIN's
    trainer = play_game(paths.yaml, overrides)
    trainer.close()
    return int(trainer.state.timestamp.token), read_history(paths.game / "self-play")


def _continue_sft(
    paths: Paths, seed: int, steps: Sequence[int], overrides: Sequence[str]
) -> list[SftResult]:
    """Continue SFT on the same rows, for one iteration's number of steps at a time.

    Optimizer, learning rate, its restart with each iteration, gradient clipping and seed are those
    of SPIN; a step uses two rows for each pair.
    """
    config = read_yaml(paths.yaml, overrides)
    results: list[SftResult] = []
    for iteration, count in enumerate(steps):
        results.append(
            sft(
                results[-1].folder if results else paths.base,
                paths.data("train"),
                paths.data("heldout"),
                paths.sft_baseline(iteration),
                SftRecipe(
                    duration=f"{count}ba",
                    batch_size=2 * config.global_train_batch_size,
                    microbatch_size=2 * config.device_train_microbatch_size,
                    optimizer=dict(config.optimizer),
                    t_warmup=config.scheduler.t_warmup,
                    gradient_clipping=config.algorithms.gradient_clipping.clipping_threshold,
                    max_seq_len=config.max_seq_len,
                    seed=seed + iteration,
                ),
            )
        )
    return results


def score_exported(model: Path, held_out: list[Row]) -> Score:
    """Return the figures of a saved model's samples to held-out prompts."""
    return score(
        model,
        held_out[:_SCORED_ROWS],
        lambda row, response: is_valid(row.prompt, response.strip()),
        samples=_SAMPLES,
        max_new_tokens=_LONGEST_ANSWER,
    )


class Stage:
    """Prints the current stage, and how long it took; stages of one name are added up."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> Stage:
        """Print the stage that begins: ``with stage("playing"): ...`` takes its time."""
        self.console.print(f"[bold]{name} ...")
        self.name, self.started = name, time.perf_counter()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        took = round(time.perf_counter() - self.started, 1)
        self.seconds[self.name] = round(self.seconds.get(self.name, 0.0) + took, 1)
        self.console.print(f"  {took:.1f} s", style="dim")
