"""What a unit of self-play costs: seconds measured by a real run, or drawn from a lognormal.

A run's store holds them: ``unit.json`` of each unit says how long its responses took, and their
scoring. Where ``algorithms.spin.unit_size`` equals ``generation.batch_size`` a unit is one batch,
and the spread is a batch's; larger units average over theirs and show less of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from spin_composer.store.layout import REPORT, UNITS, iteration_number, unit_number

REPORTS = f"iter-*/{UNITS}/unit-*/{REPORT}"
"""Of a store's units, as a glob below its folder."""

_PLAY = "play"  # as in unit.json; the other kind is rescored, not generated
_QUANTILES = 1000


@dataclass(frozen=True)
class Times:
    """Seconds per prompt of some units of full batches; a draw takes both of one unit.

    Args:
        generation: [U] seconds per prompt to generate its response in a full batch.
        scoring: [U] seconds per prompt to score both responses.
    """

    generation: NDArray[np.float64]
    scoring: NDArray[np.float64]

    def scaled(self, generation: float | None, scoring: float | None) -> Times:
        """Return the same spread with other means (seconds per prompt); None keeps one."""

        def to(mean: float | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
            return values if mean is None else values * (mean / values.mean())

        return Times(to(generation, self.generation), to(scoring, self.scoring))

    @property
    def cv(self) -> tuple[float, float]:
        """The coefficients of variation of generation and scoring."""
        generation, scoring = self.generation, self.scoring
        return (
            float(generation.std() / generation.mean()),
            float(scoring.std() / scoring.mean()),
        )


def lognormal(cv: float) -> Times:
    """Return times of mean 1 and a coefficient of variation, as equally likely quantiles."""
    sigma = np.sqrt(np.log1p(cv**2))
    normal = NormalDist()
    quantiles = [normal.inv_cdf((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)]
    values = np.exp(sigma * np.array(quantiles))
    values /= values.mean()
    return Times(values, values)


@dataclass(frozen=True)
class Measured:
    """One unit's figures, as its ``unit.json`` has them."""

    iteration: int
    unit: int
    prompts: int
    generated_tokens: int
    generation_seconds: float
    scoring_seconds: float


def read_store(root: Path) -> list[Measured]:
    """Return the played units of all iterations of a self-play store.

    Raises:
        ValueError: If there is none.
    """
    found = []
    for path in sorted(root.glob(REPORTS)):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] == _PLAY:
            names = ("prompts", "generated_tokens", "generation_seconds", "scoring_seconds")
            iteration = iteration_number(path.parents[2].name)
            unit = unit_number(path.parents[0].name)
            if iteration is not None and unit is not None:
                found.append(Measured(iteration, unit, *(content[name] for name in names)))
    if not found:
        raise ValueError(f"{root} holds no played unit: {REPORTS} is absent.")
    return found


def read_times(path: Path) -> list[Measured]:
    """Return the units of a file that :func:`save_times` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Measured(**unit) for unit in content["units"]]


def save_times(path: Path, units: list[Measured], about: dict[str, str]) -> None:
    """Write units and what is to be known about them; one unit per line."""
    lines = ",\n".join("  " + json.dumps(asdict(unit)) for unit in units)
    text = f'{{\n "about": {json.dumps(about)},\n "units": [\n{lines}\n ]\n}}\n'
    path.write_text(text, encoding="utf-8")


def times_of(units: list[Measured]) -> Times:
    """Return the seconds per prompt of the units that are as large as the largest.

    An iteration's last unit may be smaller: a short batch costs more per prompt.
    """
    size = max(unit.prompts for unit in units)
    full = [unit for unit in units if unit.prompts == size]
    return Times(
        np.array([unit.generation_seconds / size for unit in full]),
        np.array([unit.scoring_seconds / size for unit in full]),
    )
