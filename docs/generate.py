"""Writes the pages of docs/ that are made from the code: ``python docs/generate.py``.

tests/test_docs.py holds that the pages are what the code says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_composer.loss import LOSSES
from spin_composer.metrics import PAIR_METRICS
from spin_composer.play.metrics import PLAY_METRICS

HERE = Path(__file__).parent
GENERATED = "<!-- Made by docs/generate.py; edit the code, not this page. -->"


def summary(documented: Any) -> str:
    """Return the first sentence of a docstring as a table's cell, without "Return"."""
    first = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")
    first = first.removeprefix("Return ").removesuffix(".").replace("``", "`")
    return first[:1].upper() + first[1:]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def losses() -> str:
    """Return the page of losses."""
    rows = [(f"`{name}`", summary(function)) for name, function in LOSSES.items()]
    return f"""{GENERATED}
# Losses

The values of `algorithms.spin.loss`. A response's reward is beta * (policy - opponent) of its sum
of log-probabilities, and a pair's margin m is the real response's reward less the generated one's.
[loss.py](../spin_composer/loss.py) has the functions; [CONTRIBUTING](../CONTRIBUTING.md) shows how
to add one.

{table(("loss", "of each pair"), rows)}
"""


METRIC = ("metric", "meaning", "unit", "NeMo-Aligner")
LOSS = ("`loss/train/total`", "Mean pair loss; log 2 at an iteration's first batch", "-", "`loss`")
DURING_TRAINING = (
    (
        "`spin/first_batch_gap`",
        "Mean difference of policy and opponent at an iteration's first microbatch",
        "nats per token",
        "-",
    ),
    ("`spin/play_time_share`", "Share of the run's time spent in play so far", "fraction", "-"),
    (
        "`metrics/eval/LanguageCrossEntropy`",
        "Negative log-likelihood of held-out SFT rows, before the first and after each iteration",
        "nats per response token",
        "`validation loss`",
    ),
)


def metric_row(name: str, documented: Any, unit: str, nemo_aligner: str | None) -> tuple[str, ...]:
    """Return the row of a metric."""
    return f"`{name}`", summary(documented), unit, f"`{nemo_aligner}`" if nemo_aligner else "-"


def metrics() -> str:
    """Return the page of metrics."""
    of_pairs = [
        metric_row(f"metrics/train/{metric.__name__}", metric, metric.unit, metric.nemo_aligner)
        for metric in PAIR_METRICS
    ]
    of_play = [
        metric_row(name, metric.value, metric.unit, metric.nemo_aligner)
        for name, metric in PLAY_METRICS.items()
    ]
    return f"""{GENERATED}
# Metrics

What a run logs to Composer's loggers. A response's reward is beta * (policy - opponent) of its sum
of log-probabilities, and the opponent is the policy of the iteration's start.
[CONTRIBUTING](../CONTRIBUTING.md) shows how to add a metric.

## Of each batch

{table(METRIC, [LOSS, *of_pairs])}

## Of an iteration's play

Logged when its training starts, and kept in the store's `iterations.json`.

{table(METRIC, of_play)}

## Besides

{table(METRIC, DURING_TRAINING)}
"""


PAGES = {"losses.md": losses, "metrics.md": metrics}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
