"""The trainings that arms are made of: a game of SPIN, and SFT, from a start of a world."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.evidence.settings import REMOVED, set_all
from examples.evidence.worlds import Setting, World

if TYPE_CHECKING:
    from spin_composer.demo.sft import SftResult

MODEL, RECORD = "model", "trained.json"
LAST = "last"


@dataclass(frozen=True)
class Trained:
    """What an arm's training came to; its model is in ``model`` of the arm's folder."""

    steps: list[int]
    """Optimizer steps of each iteration, or of each run of SFT in its place."""
    tokens: int
    """Tokens trained on: prompts and responses, padding excluded; play's are not among them."""
    validation_nll: list[float]
    """Nats per response token on the validation rows, after each of these."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else was noted; lists are of a game's iterations."""
    seconds: float = 0.0
    """Of the training; 0 until it is known."""

    def save(self, folder: Path) -> None:
        """Write the record, the last thing that an arm's training does."""
        text = json.dumps(asdict(self), indent=1)
        (folder / RECORD).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """Return the record of an arm's folder."""
        return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))


def play(
    world: World,
    setting: Setting,
    start: Path,
    folder: Path,
    seed: int,
    changes: Mapping[str, Any],
    swapped: bool = False,
) -> Trained:
    """Play the world's game from a start, and leave the last policy in the folder.

    Args:
        world: Whose settings are played with.
        setting: The world's rows.
        start: Model and tokenizer to begin with.
        folder: Of the arm.
        seed: Of the run.
        changes: The arm's settings, by their dotted names.
        swapped: Train with real and generated responses exchanged.
    """
    from spin_composer.alarms.rules import GENERATED_LENGTH, TRUNCATED
    from spin_composer.demo.game import run_game
    from spin_composer.report.history import ACCURACY, BATCHES, NLL, in_evaluation, read_history
    from spin_composer.report.steps import find_alarms

    config = set_all(world.config(), {**_places(setting, start, folder, seed), **changes})
    model_class = None
    if swapped:
        from examples.evidence.swapped import SwappedSpinLM as model_class
    trainer = run_game(config, model_class)
    tokens = int(trainer.state.timestamp.token)
    trainer.close()
    store = folder / "self-play"
    history = read_history(store)
    nll = in_evaluation("eval", NLL)
    last = len(history.iterations) - 1
    (folder / "hf" / f"iter{last}").rename(folder / MODEL)
    shutil.rmtree(folder / "hf")
    return Trained(
        steps=[int(record[BATCHES]) for record in history.iterations],
        tokens=tokens,
        validation_nll=[record[nll] for record in history.iterations],
        more={
            "start_nll": history.baseline[nll],
            "first_accuracy": history.iterations[0][ACCURACY],
            "last_accuracy": history.iterations[last][ACCURACY],
            "generated_length": [record[GENERATED_LENGTH] for record in history.iterations],
            "cut_off": [record[TRUNCATED] for record in history.iterations],
            "alarms": [[alarm.iteration, alarm.name] for alarm in find_alarms(store)],
        },
    )


def _places(setting: Setting, start: Path, folder: Path, seed: int) -> dict[str, Any]:
    return {
        "model.pretrained_model_name_or_path": str(start),
        "tokenizer.name": str(start),
        "train_loader.dataset.hf_name": str(setting.train),
        "eval_loader.dataset.hf_name": str(setting.validation),
        "algorithms.spin.store": str(folder / "self-play"),
        "callbacks.hf_exporter.save_folder": str(folder / "hf"),
        "seed": seed,
        "progress_bar": False,
        **dict.fromkeys(("save_folder", "save_interval", "autoresume"), REMOVED),
        "save_num_checkpoints_to_keep": REMOVED,
    }


def continue_sft(
    world: World,
    setting: Setting,
    folder: Path,
    seed: int,
    steps: Sequence[int],
    stop_early: bool = False,
) -> Trained:
    """Continue SFT from the world's start, a run for each iteration of the game.

    Optimizer, learning rate, its restarts, clipping, rows and seed are those of the game, and so
    are the sequences of a step: two rows for each pair.

    Args:
        world: Whose settings are used.
        setting: The world's start and rows.
        folder: Of the arm.
        seed: Of the runs.
        steps: Optimizer steps of each run.
        stop_early: Leave the weights that had the lowest NLL on the validation rows on the way,
            evaluated before each run and at least four times in it; they may be the start's. The
            last ones stay as well, with a record of their own, in ``last`` of the folder.
    """
    from spin_composer.demo.sft import sft

    began = time.perf_counter()
    results = []
    for run, count in enumerate(steps):
        results.append(
            sft(
                results[-1].last if results else setting.start,
                setting.train,
                setting.validation,
                folder / f"run-{run}",
                _recipe(world.config(), count, seed + run, stop_early),
            )
        )
    tokens = sum(result.tokens for result in results)
    last = Trained(list(steps), tokens, [result.last_nll for result in results])
    if not stop_early:
        results[-1].folder.rename(folder / MODEL)
        _remove(results)
        return last
    (folder / LAST).mkdir()
    results[-1].last.rename(folder / LAST / MODEL)
    replace(last, seconds=time.perf_counter() - began).save(folder / LAST)
    best = min(results, key=lambda result: result.held_out_nll)
    best.folder.rename(folder / MODEL)
    shutil.rmtree(folder / MODEL / best.last.name, ignore_errors=True)
    _remove(results)
    return Trained(
        steps=list(steps),
        tokens=tokens,
        validation_nll=[result.held_out_nll for result in results],
        more={"best_step": sum(steps[: results.index(best)]) + best.best_step},
    )


def _remove(results: Sequence[SftResult]) -> None:
    """Remove what is left of the runs' folders; the one that was kept has another name by now."""
    for result in results:
        shutil.rmtree(result.folder, ignore_errors=True)


def last_of_stopped(stopped: Path, folder: Path) -> Trained:
    """Return what SFT came to where early stopping only watched: its last weights.

    Args:
        stopped: Folder of an arm that :func:`continue_sft` stopped early.
        folder: Of this arm.
    """
    shutil.copytree(stopped / LAST / MODEL, folder / MODEL)
    return Trained.load(stopped / LAST)


def _recipe(config: Mapping[str, Any], steps: int, seed: int, stop_early: bool) -> Any:
    from spin_composer.demo.sft import SftRecipe

    dataset = dict(config["train_loader"]["dataset"])
    for key in ("hf_name", "split", "max_seq_len"):
        dataset.pop(key, None)
    return SftRecipe(
        duration=f"{steps}ba",
        batch_size=2 * config["global_train_batch_size"],
        microbatch_size=2 * config["device_train_microbatch_size"],
        optimizer=config["optimizer"],
        t_warmup=config["scheduler"]["t_warmup"],
        alpha_f=config["scheduler"]["alpha_f"],
        gradient_clipping=config["algorithms"]["gradient_clipping"]["clipping_threshold"],
        max_seq_len=config["max_seq_len"],
        seed=seed,
        precision=config["precision"],
        dataset=dataset,
        stop_early=f"{max(1, steps // 4)}ba" if stop_early else None,
    )
