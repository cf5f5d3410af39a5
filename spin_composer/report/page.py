"""A run's report as one HTML file: no network, no fonts, no scripts but its own.

What the run's files say is untrusted: the template escapes all of it, and the page's own policy
lets only the script that is part of it run.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from spin_composer.report.panels import charts
from spin_composer.report.paper import compare
from spin_composer.report.plot import (
    HEIGHT,
    INNER_HEIGHT,
    INNER_WIDTH,
    LEFT,
    TOP,
    WIDTH,
    plots,
)
from spin_composer.report.run_files import RunFiles
from spin_composer.report.shading import first_tokens, show
from spin_composer.report.status import next_step
from spin_composer.report.steps import alarms_of
from spin_composer.report.table import columns_of, format_metric, rows_of
from spin_composer.report.time_spent import time_spent

if TYPE_CHECKING:
    from jinja2 import Environment

_TIME = "%Y-%m-%d %H:%M:%S UTC"
_LEVELS = range(1, 10)


def render(run: RunFiles, refresh_seconds: int | None = None) -> str:
    """Return the page.

    Args:
        run: The run's files.
        refresh_seconds: After how long a browser reads the file again; None: never.
    """
    script, style = (_part(name) for name in ("page.js", "page.css"))
    shown = [show(sample) for sample in run.samples]
    last = run.processes[-1] if run.processes else None
    columns = columns_of(run.history)
    page = _environment().get_template("page.html").render(
        run=run,
        written=_as_time(time.time()),
        refresh=refresh_seconds,
        next_step=next_step(run.status),
        script=script,
        script_hash=_hash(script),
        style=style,
        alarms=alarms_of(run.steps),
        charts=(found := charts(run)),
        plots=plots(found),
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "top": TOP,
             "inner_width": INNER_WIDTH, "inner_height": INNER_HEIGHT},
        columns=columns,
        rows=[(name, [format_metric(x, column) for column in columns])
              for name, x in rows_of(run.history, run.steps)],
        samples=shown,
        has_tokens=any(one.real.tokens for one in shown),
        has_policy=any(one.margin is not None for one in shown),
        first_tokens=first_tokens(run.samples),
        last=last,
        began=[_as_time(process.began) for process in run.processes],
        comparison=compare(last) if last else [],
        settings=list(_flat(last.settings)) if last else [],
        command=shlex.join(last.command) if last else "",
        times=time_spent(run.history.iterations),
        levels=_LEVELS,
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no character


def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _part(name: str) -> str:
    return files("spin_composer.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return the script's hash as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _as_time(seconds: float) -> str:
    return time.strftime(_TIME, time.gmtime(seconds))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Any:
    """Yield dotted name and value of each setting."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
