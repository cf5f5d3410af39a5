"""A run's settings beside those of the paper (Chen et al., 2024, arXiv 2401.01335)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_composer.report.processes import Process
from spin_composer.settings.spin import value_for_iteration


@dataclass(frozen=True)
class Comparison:
    """A setting of the run and of the paper."""

    name: str
    run: str
    paper: str
    same: bool


_LATE_ITERATIONS = 2
"""From this iteration on the paper's learning rate is lower."""


def compare(process: Process) -> list[Comparison]:
    """Return the settings that the paper gives, as the run's newest process has them."""
    spin, training = process.settings, process.facts
    total = training.iterations
    betas = _per_iteration(spin["beta"], total)
    rates = _per_iteration(spin["learning_rate"] or training.learning_rate, total)
    generation: Mapping[str, Any] = spin["generation"]
    beta_of_paper = [5.0 if k == total - 1 and k >= _LATE_ITERATIONS else 0.1 for k in range(total)]
    rates_of_paper = [5e-7 if k < _LATE_ITERATIONS else 1e-7 for k in range(total)]
    epochs = int(str(spin["iteration_length"]).removesuffix("ep"))
    loss = spin["loss"]
    plain = not spin["length_normalised"] and not spin["nll_weight"]
    return [
        Comparison("iterations T", str(total), "3 to 4", total in (3, 4)),
        Comparison("epochs per iteration E", str(epochs), "2", epochs == 2),
        Comparison("loss", loss if plain else f"{loss}, changed", "logistic",
                   loss == "logistic" and plain),
        Comparison("beta", _text(betas) if loss != "space" else "none", "0.1, in the last 5",
                   betas == beta_of_paper and loss != "space"),
        Comparison("peak learning rate", _text(rates), "5e-07, from the third on 1e-07",
                   rates == rates_of_paper),
        Comparison("optimizer", training.optimizer, "RMSprop", training.optimizer == "RMSprop"),
        Comparison("weight decay", f"{training.weight_decay:g}", "0", not training.weight_decay),
        Comparison("warm-up", _warm_up(training.t_warmup), "10% of an iteration",
                   training.t_warmup == "0.1dur"),
        Comparison("pairs per step", str(training.global_batch_size), "64",
                   training.global_batch_size == 64),
        Comparison("prompts per iteration", str(spin["samples_per_iteration"]), "50000",
                   spin["samples_per_iteration"] == 50000),
        Comparison("replayed iterations", str(spin["replay"]), "1", spin["replay"] == 1),
        Comparison("temperature", f"{generation['temperature']:g}", "1",
                   generation["temperature"] == 1),
        Comparison("precision", training.precision.removeprefix("Precision.").lower(), "bf16",
                   "bf16" in training.precision.lower()),
    ]  # fmt: skip


def _per_iteration(values: float | Sequence[float], total: int) -> list[float]:
    return [value_for_iteration(values, iteration) for iteration in range(total)]


def _text(values: Sequence[float]) -> str:
    """Return one value if all are the same, else each."""
    kept = values[:1] if len(set(values)) == 1 else values
    return ", ".join(f"{value:g}" for value in kept)


def _warm_up(given: str) -> str:
    share = given.removesuffix("dur")
    if share == given:
        return f"{given.removesuffix('ba')} steps"
    return f"{float(share):.0%} of an iteration"
