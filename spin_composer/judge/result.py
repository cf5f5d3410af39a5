"""The result of judging a run: ``judge.json``, and the table that people read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spin_composer.judge.estimate import Estimate
from spin_composer.judge.kept import START, Kept
from spin_composer.judge.measures import Measures, measure
from spin_composer.judge.verdict import Verdict, decide
from spin_composer.settings.judge import JudgeSettings
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import JUDGE

_COLUMNS = {
    "classifier_accuracy": ("classifier", "{:.3f}"),
    "nll": ("NLL", "{:.3f}"),
    "stop_rate": ("stopped", "{:.3f}"),
    "length": ("length", "{:.1f}"),
    "length_distance": ("length distance", "{:.2f}"),
    "exact_match": ("exact match", "{:.3f}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
    "self_bleu": ("self-BLEU", "{:.3f}"),
}
"""The measures of the table: title and format."""
_OF_REAL = {"length": "real_length", "distinct_2": "real_distinct_2", "self_bleu": "real_self_bleu"}


@dataclass(frozen=True)
class Result:
    """What was measured of a run's models, and which iteration is the best."""

    names: tuple[str, ...]
    """Of the iterations, in order."""
    exports: tuple[str, ...]
    start: Measures
    iterations: tuple[Measures, ...]
    verdict: Verdict
    responses: int
    """Responses of each model."""
    settings: JudgeSettings
    held_out: str
    """The held-out data, for people."""

    @property
    def best(self) -> str | None:
        """Name of the best iteration; None if none is better than the start."""
        return None if self.verdict.best is None else self.names[self.verdict.best]

    def conclusion(self) -> str:
        """Return the sentence that names the best iteration, or says that there is none."""
        if self.best is None:
            return f"No iteration of {len(self.names)} is better than the start."
        index = self.names.index(self.best)
        at = f" ({self.exports[index]})" if self.exports[index] else ""
        return f"The best is {self.best}{at}: {self.verdict.reasons[index]}."

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``judge.json``."""
        models: list[dict[str, Any]] = [{"name": START, "measures": self.start.as_json()}]
        for index, name in enumerate(self.names):
            measures = self.iterations[index]
            change = {key: found.as_json() for key, found in changes(measures, self.start).items()}
            models.append(
                {
                    "name": name,
                    "export": self.exports[index],
                    "measures": measures.as_json(),
                    "change": change,
                    "helped": self.verdict.helped[index],
                    "reason": self.verdict.reasons[index],
                }
            )
        return {
            "best": self.best,
            "conclusion": self.conclusion(),
            "held_out": self.held_out,
            "responses": self.responses,
            "settings": asdict(self.settings),  # pyright: ignore[reportArgumentType]
            "models": models,
        }

    def write(self, run: Path) -> None:
        """Write ``judge.json`` atomically to the run's folder."""
        write_atomically(run / JUDGE, json.dumps(self.as_json(), indent=1) + "\n")


def changes(measures: Measures, start: Measures) -> dict[str, Estimate]:
    """Return the paired difference of each measure from the start's."""
    before = start.known()
    return {
        name: found.minus(before[name])
        for name, found in measures.known().items()
        if name in before and name in _COLUMNS
    }


def measure_kept(kept: Kept, settings: JudgeSettings) -> Measures:
    """Return the measures of a model's rows."""
    rows = kept.rows
    return measure(
        [row.real for row in rows],
        [row.sampled for row in rows],
        [row.prompt for row in rows],
        real_tokens=[row.real_tokens for row in rows],
        sampled_tokens=[row.sampled_tokens for row in rows],
        stopped=[row.stopped for row in rows],
        real_logps=[row.real_logp for row in rows],
        answer=settings.answer,
        folds=settings.folds,
        resamples=settings.resamples,
        seed=settings.seed,
    )


def judge(
    start: Kept,
    iterations: Sequence[tuple[str, Kept]],
    settings: JudgeSettings,
    held_out: str,
    known: dict[str, Measures],
) -> Result:
    """Measure a run's models and decide which iteration is the best.

    Args:
        start: The start model's rows.
        iterations: Name and rows of each iteration's policy, in order, judged in the same way.
        settings: Of measures.
        held_out: The data's name, for people.
        known: Measures of earlier calls with the same rows and settings, by the model's
            fingerprint; new ones are added.
    """

    def measures(kept: Kept) -> Measures:
        weights = str(kept.key["weights"])
        if weights not in known:
            known[weights] = measure_kept(kept, settings)
        return known[weights]

    before = measures(start)
    after = tuple(measures(kept) for _, kept in iterations)
    return Result(
        names=tuple(name for name, _ in iterations),
        exports=tuple(kept.export for _, kept in iterations),
        start=before,
        iterations=after,
        verdict=decide(before, after),
        responses=len(start.rows),
        settings=settings,
        held_out=held_out,
    )


def print_result(result: Result, console: Console) -> None:
    """Print a row per model with each change from the start, and the conclusion."""
    shown = [name for name in _COLUMNS if name in result.start.known()]
    title = f"{result.responses} responses to the prompts of {result.held_out}"
    table = Table(title=title, show_lines=True)
    table.add_column("model")
    for name in shown:
        table.add_column(_COLUMNS[name][0], justify="right")
    real = {"classifier_accuracy": "classifier_control", **_OF_REAL}
    known = result.start.known()
    table.add_row("real", *[_cell(known.get(real.get(name, "")), name) for name in shown])
    table.add_row(START, *[_cell(known[name], name) for name in shown])
    for name, measures, helped in zip(
        result.names, result.iterations, result.verdict.helped, strict=True
    ):
        values, change = measures.known(), changes(measures, result.start)
        cells = [f"{_cell(values[key], key)}\n{_span(change[key], key)}" for key in shown]
        table.add_row(f"{name}{' *' if helped else ''}", *cells)
    console.print(table)
    console.print(
        "Below each value: the 95% interval of its change from the start, paired by prompt. *: it "
        "helped. Classifier:\naccuracy of telling sampled from real responses, 0.5 is the goal "
        "(row real: two halves of the real ones).",
        style="dim",
    )
    for name, reason in zip(result.names, result.verdict.reasons, strict=True):
        console.print(f"{name}: {reason}", soft_wrap=True, markup=False)
    console.print(result.conclusion(), soft_wrap=True, markup=False)


def _cell(estimate: Estimate | None, name: str) -> str:
    return "-" if estimate is None else _COLUMNS[name][1].format(estimate.value)


def _span(change: Estimate, name: str) -> str:
    form = _COLUMNS[name][1].replace(":", ":+")
    return f"{form.format(change.low)} to {form.format(change.high)}"
