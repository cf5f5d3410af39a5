"""The page of the command line, made from its own help."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from markdown_table import GENERATED, table
from typer.main import get_command

from spin_composer.cli import app


def commands() -> str:
    """Return the page of the command line, from its own help."""
    page = f"""{GENERATED}
# Commands

What a user can correct ends a command with one line and an [exit code](resuming.md). `--help` of
each says the same as this page. `python -m spin_composer` is `spin-composer`.
"""
    for name, command in subcommands(get_command(app), "spin-composer"):
        arguments = [x for x in command.params if x.param_type_name == "argument"]
        options = [x for x in command.params if x.param_type_name == "option" and x.name != "help"]
        usage = " ".join([name, *(str(x.name).upper() for x in arguments)])
        more = " [key=value ...]" if command.context_settings.get("ignore_unknown_options") else ""
        page += f"\n## `{usage}{more}`\n\n{inspect.cleandoc(command.help or '')}\n"
        rows = [(f"`{str(x.name).upper()}`", getattr(x, "help", "") or "", "") for x in arguments]
        rows += [(f"`{x.opts[0]}`", getattr(x, "help", "") or "", default_of(x)) for x in options]
        if rows:
            page += f"\n{table(('argument', 'meaning', 'default'), rows)}\n"
    return page


def subcommands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the command of each command below one, in their order."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for key, below in command.commands.items():
        yield from subcommands(below, f"{name} {key}")


def default_of(option: Any) -> str:
    """Return an option's default as a table's cell."""
    value = option.default
    if option.required:
        return "must be given"
    if isinstance(getattr(option, "show_default", None), str):
        return option.show_default
    return "" if value is None or value == "" or callable(value) else f"`{value}`"
