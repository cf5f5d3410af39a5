"""What ``spin-composer report`` does: prints a run's table, and writes its page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from spin_composer.errors import EnvironmentFailure, InputError
from spin_composer.report.outline import RunOutline, read_outline
from spin_composer.report.page import render
from spin_composer.report.run_files import RunFiles, read_run
from spin_composer.report.steps import alarms_of
from spin_composer.report.table import print_alarms, print_table

PAGE = "report.html"
"""The page's default name: in the store's folder, or in the working directory for a URL."""
_TABLE_COLUMNS = 120


@dataclass(frozen=True)
class ReportOptions:
    """What the command writes, and how often."""

    html: Path | None = None
    """The page; None: :data:`PAGE` in its default folder."""
    with_html: bool = True
    plot: Path | None = None
    """Also write the curves to this PNG."""
    watch: bool = False
    """Write the page again until the run is done."""
    interval_seconds: float = 30.0


def report(run: str, options: ReportOptions, wait: Callable[[float], object] = time.sleep) -> None:
    """Print the table of a run and write its page.

    Args:
        run: Its store's folder or URL, its history's file, or its YAML.
        options: What to write.
        wait: Waits for a number of seconds.

    Raises:
        InputError: If ``run`` is none of these.
        StoreError: If there is nothing to report yet, or a file of the store is damaged.
        EnvironmentFailure: If the page cannot be written.
    """
    if options.watch and not options.with_html:
        raise InputError("--watch writes the page again, and --no-html writes none. Give one.")
    outline = _outline(run)
    page = options.html or (Path() if outline.remote else outline.store) / PAGE
    console = Console()
    found = _read(outline)
    # In 80 columns rich would cut the figures themselves; a long line is better than "0.6…".
    wide = Console(width=max(console.width, _TABLE_COLUMNS))
    print_table(found.history, wide, found.steps)
    print_alarms(alarms_of(found.steps), console)
    if options.plot is not None:
        from spin_composer.report.curves import draw

        draw(found.history, options.plot, found.steps)
    if not options.with_html:
        return
    while True:
        going = options.watch and not found.is_done
        _write(page, render(found, max(1, round(options.interval_seconds)) if going else None))
        if not going:
            break
        console.print(f"{page}: step {_steps(found)}", soft_wrap=True, markup=False)
        try:
            wait(options.interval_seconds)
        except KeyboardInterrupt:
            _write(page, render(found))  # which no longer reads itself again
            break
        found = _read(outline)
    console.print(f"report: {page}", soft_wrap=True, markup=False)


def _outline(run: str) -> RunOutline:
    path = Path(run)
    if "://" in run or path.suffix in (".yaml", ".yml"):
        return read_outline(run)
    return RunOutline(path.parent if path.is_file() else path)


def _read(outline: RunOutline) -> RunFiles:
    if outline.remote is None:
        return read_run(outline)
    from spin_composer.store.open import store_at

    with TemporaryDirectory() as folder:
        store = store_at(Path(folder), outline.remote)
        return read_run(outline, store.fetch_records(Path(folder)))


def _write(path: Path, text: str) -> None:
    from spin_composer.store.durable import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise EnvironmentFailure(
            f"{path} cannot be written ({error.strerror}). Give another file: --html PATH, or "
            "--no-html."
        ) from None


def _steps(found: RunFiles) -> int:
    return found.steps[-1].step if found.steps else 0
