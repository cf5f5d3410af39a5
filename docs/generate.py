"""Writes the pages of docs/ that are made from code and results: ``python docs/generate.py``.

tests/test_docs.py holds that the pages are what the code says.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from spin_composer.alarms.rules import (
    ALARMS,
    DISTINCT_GENERATED,
    DISTINCT_REAL,
    FIRST_TOKEN_GAP,
    FIRST_WORDS_SHARED,
    LEAST_STEPS,
    LEAST_WINDOW,
    REAL_LENGTH,
    REAL_LOGP,
)
from spin_composer.judge.measures import UNITS, Measures
from spin_composer.loss import LOSSES, loss_parameters
from spin_composer.metrics import KIND_METRICS, PAIR_METRICS
from spin_composer.play.metrics import PLAY_METRICS
from spin_composer.report.steps import LEARNING_RATE, TOKENS_PER_SECOND
from spin_composer.settings.dataset import DatasetConfig
from spin_composer.settings.ditto import DittoSettings
from spin_composer.settings.fields import describe_type
from spin_composer.settings.generation import ENGINE_SECTIONS, GenerationSettings
from spin_composer.settings.judge import JudgeSettings
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.spin import PlayOnly, SpinSettings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from command_page import commands  # noqa: E402
from drawing import drawing  # noqa: E402
from evidence_page import evidence  # noqa: E402
from markdown_table import GENERATED, table  # noqa: E402


def summary(documented: Any) -> str:
    """Return the first sentence of a docstring as a table's cell, without "Return"."""
    first = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")
    first = first.removeprefix("Return ").removesuffix(".").replace("``", "`")
    return first[:1].upper() + first[1:]


def remarks(documented: Any) -> str:
    """Return the paragraphs of a docstring between its first sentence and its arguments."""
    _, *paragraphs = (inspect.getdoc(documented) or "").split("\n\n")
    ends = [i for i, text in enumerate(paragraphs) if text.startswith("Args")]
    kept = paragraphs[: ends[0]] if ends else paragraphs
    return "\n\n".join(kept).replace("``", "`")


def losses() -> str:
    """Return the page of losses."""
    rows = [
        (f"`{name}`", summary(function), ", ".join(f"`{own}`" for own in loss_parameters(name)))
        for name, function in LOSSES.items()
    ]
    page = f"""{GENERATED}
# Losses

The values of `algorithms.spin.loss`. A response's reward r is beta * (policy - opponent) of its sum
of log-probabilities, and a pair's margin m is the real response's reward less the generated one's.
`nll_weight` adds the real response's negative log-likelihood per token to any loss, and
`length_normalised` divides each sum by its number of tokens first.

A parameter that the chosen loss does not take must be absent or null: `spin.loss=space
spin.beta=null` on the command line for a YAML that has beta.

With `game: ditto` ([docs/ditto.md](ditto.md)) some pairs have no real response: m is then the
newest response's reward less the earlier one's, `dpop`'s penalty is on a fall of the newest one,
`nll_weight` leaves them out, and `space`, which judges the real response alone, is refused.

The metrics of training ([docs/metrics.md](metrics.md)) are those of r whatever the loss: for one
without beta (`space`) r is in nats, as with beta = 1, and `dpop`'s penalty is not in its margin.
What is checked at an iteration's first batch are log-probs, not the loss: policy equals opponent,
and `loss/train/total` begins at the value that the table or the remarks below give.

[loss.py](../spin_composer/loss.py) has the functions; [CONTRIBUTING](../CONTRIBUTING.md) shows how
to add one.

{table(("loss", "of each pair", "takes"), rows)}
"""
    for name, function in LOSSES.items():
        page += f"\n## `{name}`\n\n{remarks(function)}\n"
    return f"{page}\n{T_SPIN}"


T_SPIN = """## Not here: T-SPIN

T-SPIN (arXiv 2601.08198, as a published summary gives it) trains on the real response y, the newest
y' and y0 of the first policy: l(alpha log p(y) - alpha log p(y')) + beta l(alpha log p(y') -
alpha log p(y0)), without an opponent's log-probs. Rows of `[prompt | real | generated]` hold two
responses, and so do the store's pairs and the kernel's; a third side would bend all three. It need
not: the sum is that of two pairs, (y, y') and (y', y0), the second weighted by beta, at the cost of
a second forward pass of y'. Pairs of two generated sides are in the store since `game: ditto`
([docs/ditto.md](ditto.md)); what is missing is a weight per pair, and a loss without the opponent.
"""


METRIC = ("metric", "meaning", "unit", "NeMo-Aligner")
LOSS = (
    "`loss/train/total`",
    "Mean pair loss; log 2 at an iteration's first batch, if `logistic` (losses.md has the others)",
    "-",
    "`loss`",
)
DURING_TRAINING = (
    (
        "`spin/first_batch_gap`",
        "Mean difference of policy and opponent at an iteration's first microbatch",
        "nats per token",
        "-",
    ),
    ("`spin/play_time_share`", "Share of the run's time spent in play so far", "fraction", "-"),
    ("`alarms/<name>`", "1 at the step that raises an alarm of [alarms.md](alarms.md)", "-", "-"),
    (
        "`metrics/eval/LanguageCrossEntropy`",
        "Negative log-likelihood of held-out SFT rows, before the first and after each iteration",
        "nats per response token",
        "`validation loss`",
    ),
)

JUDGED = (
    ("`judge/helped`", "1 if the iteration helped, else 0", "-", "-"),
    ("`judge/best_iteration`", "The best iteration so far; -1 for the start model", "-", "-"),
    ("`judge/seconds`", "Time spent in judging the iteration", "seconds", "-"),
)


def metric_row(name: str, documented: Any, unit: str, nemo_aligner: str | None) -> tuple[str, ...]:
    """Return the row of a metric."""
    return f"`{name}`", summary(documented), unit, f"`{nemo_aligner}`" if nemo_aligner else "-"


def metrics() -> str:
    """Return the page of metrics."""
    of_pairs, of_kinds = (
        [
            metric_row(f"metrics/train/{metric.__name__}", metric, metric.unit, metric.nemo_aligner)
            for metric in registered
        ]
        for registered in (PAIR_METRICS, KIND_METRICS)
    )
    of_play = [
        metric_row(name, metric.value, metric.unit, metric.nemo_aligner)
        for name, metric in PLAY_METRICS.items()
    ]
    about = docstrings(Measures)
    of_judge = [
        *((f"`judge/{name}`", about[name].rstrip("."), UNITS[name], "-") for name in UNITS),
        *JUDGED,
    ]
    return f"""{GENERATED}
# Metrics

What a run logs to Composer's loggers. A response's reward is beta * (policy - opponent) of its sum
of log-probabilities (beta is 1 for the loss `space`, which has none), and the opponent is the
policy of the iteration's start. [CONTRIBUTING](../CONTRIBUTING.md) shows how to add a metric.

## Of each batch

{table(METRIC, [LOSS, *of_pairs])}

## Of each batch, with `game: ditto`

The metrics above are then those of the pairs with a real response. A batch without any pair of the
kind has nan; an iteration's mean in `iterations.json` is that of the other batches.

{table(METRIC, of_kinds)}

## Of an iteration's play

Logged when its training starts, and kept in the store's `iterations.json`.

{table(METRIC, of_play)}

## Besides

{table(METRIC, DURING_TRAINING)}

## In the run's own file

All of these are also in `steps.jsonl` of the run's store, so that a run without a logger has curves
(`spin-composer report STORE --plot curves.png`): a JSON object per optimizer step, by these names,
with `{LEARNING_RATE}`, `{TOKENS_PER_SECOND}` (of prompts and responses, over all ranks), `step`,
`iteration`, `epoch` and `time` (seconds since 1970). An iteration's first step also has the metrics
of its play, and figures of up to 1,024 of its responses: `{REAL_LENGTH}` (tokens),
`{REAL_LOGP}` (nats, the mean of each response's, by the opponent),
`{DISTINCT_REAL}` and `{DISTINCT_GENERATED}` (distinct-2),
`{FIRST_WORDS_SHARED}` (share that begins with a word of the other side) and
`{FIRST_TOKEN_GAP}` (share of these words that begins with other tokens). An evaluation, and
an iteration's end, have lines of their own; `alarms` of a line are those raised then. A resumed run
replaces the lines after its checkpoint.

## Of the callback `spin_judge`

Logged after each iteration; [docs/judge.md](judge.md) says what they are for.

{table(METRIC, of_judge)}
"""


def alarms() -> str:
    """Return the page of alarms."""
    rows = [
        (f"`{name}`", summary(alarm.rule), alarm.moment.value) for name, alarm in ALARMS.items()
    ]
    page = f"""{GENERATED}
# Alarms

What in a run's figures says that the game goes wrong. Each is raised once per run, also if the run
is stopped and resumed: as a warning in the log, as the metric `alarms/<name>` (1, at that step),
and in the run's `steps.jsonl`, so that `spin-composer report` and `status` show it. It stops
nothing.
`algorithms.spin.alarms: {{high_accuracy: off}}` switches one off, `alarms: off` all of them.

Thresholds are chosen so that a run whose model was tuned on its rows raises none; they have been
tried on runs of minutes, not on many real ones, and an alarm is a reason to look, not a proof.
`make real` raises two, `never_stops` and `high_accuracy`: SmolLM2-135M-Instruct answers GSM8K's
questions at length, and of its responses 66% in the first iteration and 38% in the second are cut
off at 256 tokens. Held-out rows get likelier all the same ([evidence](evidence.md)). A run that
raises one that it should not is worth an issue. Those that average over steps do not look in short
iterations: `falling_logps` needs {LEAST_WINDOW} steps, `high_accuracy` {LEAST_STEPS} after the
first tenth. [rules.py](../spin_composer/alarms/rules.py) has
them all.

{table(("alarm", "what it finds", "looked for"), rows)}
"""
    for name, alarm in ALARMS.items():
        advice = textwrap.fill(f"**What to do.** {alarm.advice}", 100)
        page += f"\n## `{name}`\n\n{remarks(alarm.rule)}\n\n{advice}\n"
    return page


SECTIONS: tuple[Any, ...] = (
    SpinSettings, DittoSettings, GenerationSettings, *ENGINE_SECTIONS.values(), PlayOnly,
    SchedulerSettings, DatasetConfig, JudgeSettings,
)  # fmt: skip


def docstrings(section: type[Any]) -> dict[str, str]:
    """Return what is written below each field of a class, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for declared, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(declared, ast.AnnAssign) and isinstance(text, ast.Expr):
            name = ast.unparse(declared.target)
            found[name] = " ".join(ast.literal_eval(text.value).split()).replace("``", "`")
    return found


def default(field: Field[Any]) -> str:
    """Return a field's default as a YAML has it."""
    if field.default_factory is not MISSING:
        made = field.default_factory()
        return f"`{json.dumps(made)}`" if isinstance(made, (list, dict)) else "its own defaults"
    if field.default is MISSING:
        return "none: must be set"
    value = field.default
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def settings() -> str:
    """Return the page of settings."""
    page = f"""{GENERATED}
# Settings

Every setting of this package by the section of the YAML that it stands in. In Python,
`SPIN(beta=0.1, generation={{"top_p": 0.9}})` takes those of `algorithms.spin`, `SpinScheduler`
those of `scheduler`, and `build_spin_dataloader` those of `train_loader.dataset`. The losses have
[a page of their own](losses.md).
"""
    for section in SECTIONS:
        described = {name: f"Settings of engine `{name}`." for name in ENGINE_SECTIONS}
        described |= docstrings(section)
        rows = [
            (f"`{field.name}`", words(section, field.name), default(field), described[field.name])
            for field in fields(section)
        ]
        about = (inspect.getdoc(section) or "").replace("``", "`")
        page += f"\n## `{section.__where__}`\n\n{about}\n\n"
        page += table(("setting", "must be", "default", "meaning"), rows) + "\n"
    return page


def words(section: Any, name: str) -> str:
    """Return what a field must be."""
    declared = section.__pydantic_fields__[name]
    return describe_type(declared.annotation, declared.metadata)


RESULTS = HERE.parent / "benchmarks" / "results"
OURS, PEER = "ours, shared", "TRL, reference's log-probs given"
LENGTHS = {
    "gsm8k": "GSM8K's", "oasst": "OASST's, several turns", "long-prompts": "1,024 + 2 x 128",
    "long-responses": "64 + 2 x 1,024",
}  # fmt: skip


def speed() -> str:
    """Return the page of a training step's speed, from the committed results."""
    rows, machines = [], set()
    names: tuple[str, ...] = ()
    for path in sorted(RESULTS.glob("step_cpu_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        _, _, shape, lengths = path.stem.split("_")
        figures, made_on = result["contenders"], result["machine"]
        names = tuple(figures)
        ours, peer = figures[OURS], figures[PEER]
        rows.append((
            shape, LENGTHS[lengths], *(f"{x['step_ms'] / 1000:.2f}" for x in figures.values()),
            f"**{peer['step_ms'] / ours['step_ms']:.2f}**",
            f"{ours['step_mib'] / peer['step_mib']:.2f}",
        ))  # fmt: skip
        machines.add(f"{made_on['device']}, torch {made_on['torch'].partition('+')[0]}")
    header = ("model", "lengths", *names, "TRL's faster / ours", "memory, ours / TRL's")
    return f"""{GENERATED}
# How fast a training step is

CPU seconds of a step of four pairs on one core, in fp32; the contenders of a row took turns in one
run (`make bench-step`; [step.py](../benchmarks/step.py) says what is measured). On a GPU nothing
was measured yet. Models are Llamas with random weights: 135m has the shape of SmolLM2-135M, 10m a
vocabulary of 8,192. Lengths are tokens of the prompt and of the two responses. TRL is 1.16: with
the reference model beside the policy, its default, and with the reference's log-probs given, its
faster way. "Two models" is the way of the paper's authors. Memory is what a step takes beyond
weights and optimizer.

{table(header, rows)}

A step is the median of three or four rounds, each another batch of these lengths. The machine is
shared: other runs gave 2.4 at GSM8K's lengths and 2.9 and 3.5 at OASST's. Where responses are many
times as long as their prompt and equally long, little is shared and nothing padded: there `shared`
takes about the time of `padded`.

## How it grows

![Tokens per second and memory over the pairs of a step and over their length](step_growth.svg)

The 10m model; `make bench-step` draws it (`benchmarks/step_growth.py`).

Measured on: {"; ".join(sorted(machines))}.
"""


PAGES = {
    "alarms.md": alarms, "architecture.svg": drawing, "commands.md": commands, "losses.md": losses,
    "metrics.md": metrics, "settings.md": settings, "speed.md": speed, "evidence.md": evidence,
}  # fmt: skip


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
