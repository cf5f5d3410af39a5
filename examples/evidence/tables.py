"""Tables of results: means over seeds, each with its standard error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from examples.evidence.arms import ARMS, LOSSES, START
from examples.evidence.results import Result, of_arm

MEASURES = {
    "nll": ("held-out NLL", "{:.3f}", -1),
    "total_variation": ("total variation", "{:.3f}", -1),
    "valid": ("valid", "{:.3f}", 1),
    "styled": ("styled", "{:.3f}", 1),
    "exact_match": ("exact match", "{:.3f}", 1),
    "classifier_accuracy": ("real or own", "{:.3f}", -1),
    "stop_rate": ("stops", "{:.3f}", 0),
    "length_distance": ("length distance", "{:.2f}", 0),
    "distinct_2": ("distinct-2", "{:.3f}", 0),
    "self_bleu": ("self-BLEU", "{:.3f}", 0),
}
"""Title, format, and which way is better: 1 higher, -1 lower, 0 neither by itself."""


def title_of(arm: str) -> str:
    """Return an arm's title."""
    return "start" if arm == START else ARMS[arm].title


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, nan for one value alone."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def with_error(values: Sequence[float], form: str, bold: bool = False) -> str:
    """Return the mean and its standard error as text; of one value, the value alone."""
    mean, error = mean_and_error(values)
    text = f"**{form.format(mean)}**" if bold else form.format(mean)
    return text if math.isnan(error) else f"{text} ±{form.format(error).lstrip('+')}"


def known_measures(results: Sequence[Result]) -> list[str]:
    """Return the measures that all results have, in the table's order."""
    return [name for name in MEASURES if all(name in one.measures for one in results)]


def measures_of(results: Sequence[Result], arm: str, measure: str) -> list[float]:
    """Return a measure of an arm, by seed."""
    return [one.measures[measure] for one in of_arm(results, arm)]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measures_table(results: Sequence[Result]) -> str:
    """Return a row per arm: each measure's mean and standard error; the best mean is bold.

    The last row has what is known of the data's own responses, where the arms were measured.
    """
    measures = known_measures(results)
    arms = [arm for arm in (START, *ARMS) if of_arm(results, arm)]
    best = {name: best_arm(results, arms, name) for name in measures}
    rows = []
    for arm in arms:
        cells = [title_of(arm), str(len(of_arm(results, arm)))]
        for name in measures:
            found = measures_of(results, arm, name)
            cells.append(with_error(found, MEASURES[name][1], bold=best[name] == arm))
        rows.append(cells)
    rows.append(_of_the_data(results, measures))
    header = ["arm", "seeds", *(MEASURES[name][0] for name in measures)]
    return markdown(header, rows)


def _of_the_data(results: Sequence[Result], measures: Sequence[str]) -> list[str]:
    found = {one.seed: one.measures for one in results}
    cells = ["the data", str(len(found))]
    for name in measures:
        own = [of_seed[f"real_{name}"] for of_seed in found.values() if f"real_{name}" in of_seed]
        cells.append(with_error(own, MEASURES[name][1]) if own else "")
    return cells


def best_arm(results: Sequence[Result], arms: Sequence[str], measure: str) -> str | None:
    """Return the arm with the best mean of a measure; None where no arm or way is better."""
    way = MEASURES[measure][2]
    means = {arm: way * mean_and_error(measures_of(results, arm, measure))[0] for arm in arms}
    if len(set(means.values())) < 2:
        return None
    return max(arms, key=means.__getitem__)


def paired_table(results: Sequence[Result], against: Sequence[str], arm: str) -> str:
    """Return how an arm differs from others, seed by seed: the mean, its error, seeds it won."""
    measures = [name for name in known_measures(results) if MEASURES[name][2]]
    rows = []
    for other in against:
        cells = [f"{title_of(arm)} - {title_of(other)}"]
        ours = {one.seed: one for one in of_arm(results, arm)}
        theirs = {one.seed: one for one in of_arm(results, other)}
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            continue
        for name in measures:
            gaps = [ours[s].measures[name] - theirs[s].measures[name] for s in seeds]
            won = sum(gap * MEASURES[name][2] > 0 for gap in gaps)
            cells.append(f"{with_error(gaps, '{:+.3f}')} ({won}/{len(seeds)})")
        rows.append(cells)
    return markdown(["difference", *(MEASURES[name][0] for name in measures)], rows)


def losses_table(worlds: Mapping[str, Sequence[Result]]) -> str:
    """Return which loss had the best mean of each measure, by world; of one alone, nothing."""
    rows = []
    for title, results in worlds.items():
        arms = [arm for arm in LOSSES if of_arm(results, arm)]
        for name in known_measures(results):
            best = best_arm(results, arms, name)
            if best is None:
                continue
            rows.append([title, MEASURES[name][0], title_of(best), *_second(results, arms, name)])
    return markdown(["world", "measure", "best loss", "its mean", "SPIN's (logistic)"], rows)


def _second(results: Sequence[Result], arms: Sequence[str], name: str) -> list[str]:
    best = best_arm(results, arms, name)
    assert best is not None
    form = MEASURES[name][1]
    cells = []
    for arm in (best, LOSSES[0]):
        cells.append(with_error(measures_of(results, arm, name), form))
    return cells
