"""The demo's results in two settings: tables of SPIN and of more SFT, curves, a line of JSON."""

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
    """Everything that the demo measured in one setting."""

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
    """Of the demo's stages, of both settings."""

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


def report(plenty: DemoResults, few: DemoResults, folder: Path) -> None:
    """Print the tables of both settings, draw their pictures, and print the line of JSON.

    Args:
        plenty: Of the setting in which SFT has not seen the rows yet.
        few: Of the one with few rows that SFT has exhausted.
        folder: Of the pictures, ``curves.png`` and ``curves-few-rows.png``.
    """
    console = Console()
    pictures = folder / "curves.png", folder / "curves-few-rows.png"
    for title, figures, picture in zip(_TITLES, (plenty, few), pictures, strict=True):
        console.print(f"\n[bold]{title}")
        _print_tables(figures, console)
        draw(figures, picture)
        console.print(f"curves: {picture}", highlight=False, soft_wrap=True)
    console.print(_FEW_ROWS_REMARK, highlight=False, soft_wrap=True)
    seconds = {**plenty.seconds, "total": sum(plenty.seconds.values())}
    summary = {
        **_summary(plenty, pictures[0]),
        "few_rows": _summary(few, pictures[1]),
        "seconds": seconds,
    }
    print(json.dumps(_round_numbers(summary)), flush=True)


_TITLES = (
    "300 rows that the base model has not seen",
    "100 rows that SFT has exhausted: it was stopped by the NLL of other held-out rows",
)
_FEW_ROWS_REMARK = (
    "With few rows more SFT learns them by heart: the held-out NLL rises, with SPIN much less or "
    "not, for about\nas many valid answers. docs/evidence.md has five seeds, and the other ways to "
    "train."
)


def _print_tables(figures: DemoResults, console: Console) -> None:
    """Print the tables of SPIN and of SFT, and what is compared."""
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
