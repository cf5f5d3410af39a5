"""The commands that README and docs/ show exist, with the arguments that they are given."""

from __future__ import annotations

import importlib.util
import re
import shlex
from contextlib import suppress
from typing import Any

import pytest
import typer
from fixtures.shown_commands import PAGES, ROOT, shown
from typer.main import get_command, get_completion_inspect_parameters

from spin_composer.cli import app

INSTALLED = ("pip", "venv")
"""Modules of ``python -m`` that are not this project's to check."""


COMMANDS = sorted({(page.name, command) for page in PAGES for command in shown(page)})


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def check_make(words: list[str]) -> None:
    goals = [word for word in words if "=" not in word and not word.startswith("-")]
    assert set(goals) <= targets()


def check_module(words: list[str]) -> None:
    """Check the module or file that a Python program runs."""
    if words[0] == "-m":
        if words[1] not in INSTALLED:
            assert importlib.util.find_spec(words[1]) is not None
    elif words[0].endswith(".py"):
        assert (ROOT / words[0]).exists()


def check_spin_composer(words: list[str]) -> None:
    """Parse the arguments as the command line does."""
    command: Any = get_command(app)
    name = "spin-composer"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
        assert name in command.commands
        command = command.commands[name]
    if words == ["--install-completion"]:  # would write to the home folder
        assert get_completion_inspect_parameters()
    elif words and "..." not in words:
        with suppress(typer.Exit), command.make_context(name, words):
            pass


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value[:70])
def test_a_command_that_a_page_shows_exists(page: str, command: str) -> None:
    words = shlex.split(re.split(r" [>|] ", command)[0].removeprefix("NODE_RANK=0 "))
    program, given = words[0], words[1:]
    for word in given:
        if word.startswith("yamls/") and "*" not in word:
            assert (ROOT / word).exists()
    if program == "make":
        check_make(given)
    elif program == "spin-composer":
        check_spin_composer(given)
    elif program in ("python", "python3"):
        check_module(given)
    elif "-m" in given:
        check_module(given[given.index("-m") :])
    elif "-c" in given:
        own = given[given.index("-c") + 1 :]
        if own[0] == "spin-composer":
            check_spin_composer(own[1:])


def test_commands_were_found_on_many_pages() -> None:
    assert len(COMMANDS) > 40
    assert len({page for page, _ in COMMANDS}) > 8
