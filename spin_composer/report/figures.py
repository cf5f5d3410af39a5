"""Figures in sections, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_COLUMNS = 120
"""Of the table at least: in fewer, rich would cut the figures."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    """Its name for people; with underscores, its key in JSON."""
    value: Any
    """For programs: a number in the unit that the key ends in, a text, a list; None: unknown."""
    text: str
    """For people."""


@dataclass
class Section:
    """Figures on one subject."""

    title: str
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: Any, text: str | None = None) -> None:
        """Add a figure; its text is the value's own if not given."""
        self.figures.append(Figure(name, value, str(value) if text is None else text))


@dataclass
class Figures:
    """All sections, and what to think about."""

    title: str
    sections: list[Section]
    notes: list[str]
    """Warnings, a line each: none of them is an error."""

    def as_json(self) -> str:
        """Return the figures as a JSON text."""
        content: dict[str, Any] = {
            _key(section.title): {_key(one.name): one.value for one in section.figures}
            for section in self.sections
        }
        return json.dumps({**content, "notes": self.notes}, indent=1)

    def show(self, as_json: bool = False) -> None:
        """Print the table, then the notes; or the JSON."""
        if as_json:
            print(self.as_json())
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(title=escape(self.title), show_header=False)
        table.add_column(style="bold")
        table.add_column()
        table.add_column()
        for section in self.sections:
            for place, one in enumerate(section.figures):
                last = place == len(section.figures) - 1
                title = "" if place else escape(section.title)
                name = one.name.removesuffix(" bytes").removesuffix(" seconds")
                table.add_row(title, escape(name), escape(one.text), end_section=last)
        console = Console()
        console = Console(width=max(console.width, _COLUMNS))
        console.print(table)
        for note in self.notes:
            console.print(Text(note, style="yellow"))


def _key(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_").lower()


def bytes_text(num_bytes: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def count_text(count: float) -> str:
    """Return a large count with a letter: 7.24B, 135M."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / limit if letter != 'k' else count / 1e3:.3g}{letter}"
    return str(int(count))
