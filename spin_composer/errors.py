"""The errors that a user of spin_composer meets, each with one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InputError(ValueError):
    """A setting, file or row that cannot work: the message names it, its value and the remedy."""


class StoreError(RuntimeError):
    """A self-play store that does not belong to this run, or that is damaged."""


class EnvironmentFailure(RuntimeError):
    """The machine does not give what the run needs: space, a folder to write to, another rank."""


class NotFiniteError(RuntimeError):
    """A loss, a gradient, a log-prob or a weight is NaN or infinite: nothing is built on it."""


class EngineError(EnvironmentFailure):
    """A completion server that does not start, or does not answer as it must."""


class PlayDone(Exception):
    """Ends a job that only plays: the units that it was to make are in the store. No error."""


class RunEnded(Exception):
    """Ends a run that a callback stopped before it began. No error."""


def shown(value: object, limit: int = 60) -> str:
    """Return ``repr(value)`` shortened to ``limit`` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def together(*checks: Callable[[], Any]) -> list[Any]:
    """Run every check and return what each returns.

    Raises:
        InputError: One line for each check that failed.
    """
    results: list[Any] = []
    faults: list[str] = []
    for check in checks:
        try:
            results.append(check())
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return results
