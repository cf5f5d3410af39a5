"""The demo's results: tables of SPIN and of continued SFT, curves, and a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from spin_composer.demo.scoring import Score
from spin_composer.report.curves import Curve, draw_panels
from spin_composer.report.history import ACCURACY, BATCHES, MARGIN, PAIRS
from spin_composer.report.table import Column, make_table


@dataclass(frozen=True)
class ModelResult:
    """What was measured of a model on held-out prompts."""

    held_out_nll: float
    score: Score

    def figures(self) -> dict[str, float]:
        """Return the figures by the names they have in the JSON."""
        return {
            "held_out_nll": self.held_out_nll,
            "valid": self.score.share_valid,
            "generated_length": self.score.generated_length,
        }


@dataclass(frozen=True)
class DemoResults:
    """Everything that the demo measured."""

    base: ModelResult
    spin: Sequence[ModelResult]
    """After each iteration."""
    sft: Sequence[ModelResult]
    """After as many steps of SFT."""
    records: Sequence[Mapping[str, float]]
    """The records of the game's iterations."""
    tokens: Mapping[str, int]
    """Tokens trained on, of both runs."""
    seconds: Mapping[str, float]
    """Of the demo's stages."""

    def iterations(self) -> list[dict[str, Any]]:
        """Return the figures of each iteration: SPIN's, and SFT's below ``sft_continuation``."""
        return [
            {
                "iteration": i,
                "steps": int(record[BATCHES]),
                "pairs": int(record[PAIRS]),
                "accuracy": record[ACCURACY],
                "margin": record[MARGIN],
                **spin.figures(),
                "sft_continuation": sft.figures(),
            }
            for i, (record, spin, sft) in enumerate(
                zip(self.records, self.spin, self.sft, strict=True)
            )
        ]


_EVALUATION_COLUMNS = (
    Column("held-out NLL", "held_out_nll"),
    Column("valid", "valid", "{:.1%}"),
    Column("length", "generated_length", "{:.1f}"),
)
_TRAINING_COLUMNS = (
    Column("steps", "steps", "{:.0f}"),
    Column("accuracy", "accuracy"),
    Column("margin", "margin"),
)


def report(figures: DemoResults, picture: Path) -> None:
    """Print the table and what is compared, draw the picture, and print the line of JSON."""
    console = Console()
    iterations = figures.iterations()
    base = figures.base.figures()
    table = make_table("SPIN", "after iteration", [*_TRAINING_COLUMNS, *_EVALUATION_COLUMNS], [
        ("base", base), *[(str(it["iteration"]), it) for it in iterations]
    ])  # fmt: skip
    console.print(table)
    sft_baseline = make_table("SFT continued instead", "after as many steps", _EVALUATION_COLUMNS, [
        ("base", base), *[(str(it["iteration"]), it["sft_continuation"]) for it in iterations]
    ])  # fmt: skip
    console.print(sft_baseline)
    console.print(_explanation(figures), highlight=False, soft_wrap=True)
    draw(figures, picture)
    console.print(f"curves: {picture}", highlight=False, soft_wrap=True)
    print(json.dumps(_round_numbers(_summary(figures, picture))), flush=True)


def _explanation(figures: DemoResults) -> str:
    tokens = figures.tokens
    responses = figures.base.score.responses
    se = 0.5 / responses**0.5
    return (
        "Held-out NLL: nats per token of held-out rows. Valid: share of "
        f"{responses:,} responses to held-out prompts,\n"
        "sampled at temperature 1, that follow the world's rules (standard error at most "
        f"{se:.1%}); length: their tokens.\n"
        "Accuracy and margin: means over the iteration's training.\n"
        "Equal for both: base model, rows, optimizer, learning rates and their restarts, steps, "
        "and sequences per step\n"
        "(a pair is two: the row's response and the opponent's; SFT takes two rows). Tokens "
        f"trained on: SPIN {tokens['spin']:,},\n"
        f"SFT {tokens['sft_continuation']:,}. SPIN's play, generation and scoring, comes on top."
    )


def _summary(figures: DemoResults, picture: Path) -> dict[str, object]:
    return {
        "base": figures.base.figures(),
        "iterations": figures.iterations(),
        "tokens_trained": dict(figures.tokens),
        "seconds": {**figures.seconds, "total": sum(figures.seconds.values())},
        "picture": str(picture),
    }


def _round_numbers(value: object) -> object:
    """Return the structure with numbers of five significant digits."""
    if isinstance(value, Mapping):
        return {key: _round_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_round_numbers(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def draw(figures: DemoResults, picture: Path) -> None:
    """Draw held-out NLL, score and length of both runs, and the game's accuracy and margin."""
    base, iterations = figures.base.figures(), figures.iterations()

    def both(key: str) -> list[Curve]:
        spin = [base[key], *[it[key] for it in iterations]]
        sft = [base[key], *[it["sft_continuation"][key] for it in iterations]]
        return [Curve("SPIN", spin), Curve("SFT continued", sft, "s--")]

    def game(key: str) -> list[Curve]:
        return [Curve("SPIN", [None, *[it[key] for it in iterations]])]

    panels = {
        "valid samples (share)": both("valid"),
        "held-out NLL (nats per token)": both("held_out_nll"),
        "accuracy in training": game("accuracy"),
        "margin in training": game("margin"),
        "generated length (tokens)": both("generated_length"),
    }
    draw_panels(panels, picture)
