"""What the results say: printed tables, and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.evidence.arms import COMPUTE, NO_REFRESH, SFT, SPIN, START, STOPPED
from examples.evidence.curves import draw_curves
from examples.evidence.picture import draw
from examples.evidence.results import Result, read_results
from examples.evidence.tables import losses_table, measures_table, paired_table

_BESIDE = (START, SFT, COMPUTE, STOPPED, NO_REFRESH)
"""The arms whose differences from SPIN are shown."""
_ORDER = ("few", "demo", "exact", "few-ditto", "exact-ditto", "style-small", "style", "gsm8k")
"""Of the files of results on the page, most of which have the world's name."""
_CURVES = {
    "few": "A toy model that SFT has exhausted on 100 rows",
    "style-small": "SmolLM2-135M on 48 rows new to it",
}
"""Titles of the worlds whose curves README shows: SPIN beats more SFT in one, SFT wins in one."""


def all_results(folder: Path) -> Mapping[str, Sequence[Result]]:
    """Return the results of every file of a folder by world, in the page's order."""
    found = {path.stem: read_results(path) for path in sorted(folder.glob("*.jsonl"))}
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(world: str) -> int:
    return _ORDER.index(world) if world in _ORDER else len(_ORDER)


def evidence_tables(folder: Path) -> dict[str, str]:
    """Return the tables of docs/evidence.md, by the names of their places there.

    ``exact`` and so on: measures of each arm in that world; ``exact_pairs``: SPIN's differences
    from the start, from SFT and from itself without refresh, seed by seed; ``losses``: which loss
    was best where.
    """
    worlds = all_results(folder)
    tables = {name: measures_table(results) for name, results in worlds.items()}
    for name, results in worlds.items():
        tables[f"{name}_pairs"] = paired_table(results, _BESIDE, SPIN)
    tables["losses"] = losses_table(worlds)
    return tables


def print_report(folder: Path, picture: Path) -> None:
    """Print each world's tables, and draw the picture and, beside it, the curves."""
    worlds = all_results(folder)
    for name, results in worlds.items():
        print(f"\n{name}\n\n{measures_table(results)}\n")
        print(paired_table(results, _BESIDE, SPIN))
    if worlds:
        draw(worlds, picture)
        print(f"\npicture: {picture}")
    if worlds.keys() >= _CURVES.keys():
        curves = picture.with_name(f"{picture.stem}_curves.svg")
        draw_curves({title: worlds[name] for name, title in _CURVES.items()}, curves)
        print(f"curves: {curves}")
