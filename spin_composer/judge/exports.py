"""Where a run's exported models lie: Hugging Face folders, by iteration; reads names only."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from spin_composer.errors import InputError
from spin_composer.settings.launch import EXPORTERS
from spin_composer.settings.section import Config
from spin_composer.store.layout import iteration_name

_MARKS = ("config.json", "adapter_config.json")
_ITERATION = "iteration"
_NUMBER = re.compile(r"(?:(?<![A-Za-z])iter|Iter|ITER)(?:ation|ATION)?[-_.= ]*(\d+)")
"""An iteration's number in the path of an export of which nothing is known; ``ba10`` has none."""
ADAPTERS = "adapter_config.json"
"""Is in an export of adapters alone."""


@dataclass(frozen=True)
class Export:
    """An exported model."""

    name: str
    """``iter-000``, or the folder's path below that of all exports where no iteration is known."""
    folder: Path

    @property
    def only_adapters(self) -> bool:
        """Whether it loads beside its base."""
        return (self.folder / ADAPTERS).exists()


def exports_of_run(config: Config, where: str) -> list[Export]:
    """Return the exports of a run's YAML, in order; of an iteration the last.

    Args:
        config: The run's config.
        where: The YAML's path, for messages.

    Raises:
        InputError: There are none, or they are in an object store.
    """
    looked = []
    for folder, name in _places(config):
        if "://" in folder:
            raise InputError(
                f"{where}: its exports are in {folder}, and are not read from there. Download them "
                "to a folder, and judge that: spin-composer judge FOLDER --start ... --data ..."
            )
        run_name = str(config.get("run_name") or "")
        root = Path(folder.replace("{run_name}", run_name))
        looked.append(str(root / name))
        pattern, numbered = _pattern(name, run_name), []
        for path in _folders(root):
            if match := pattern.fullmatch(path.relative_to(root).as_posix()):
                number = match.groupdict().get(_ITERATION)
                numbered.append((path, None if number is None else int(number)))
        if numbered:
            return _exports(root, numbered)
    at = f" in {' or '.join(looked)}" if looked else ""
    raise InputError(
        f"{where}: there is no exported iteration{at}. Train one first (callbacks: {{hf_exporter: "
        "{save_folder: ...}} writes them)."
    )


def exports_in(folder: Path) -> list[Export]:
    """Return the exports in a folder, in the order of their iterations.

    An iteration's number is the one after ``iter`` or ``iteration``, or the whole name; of an
    iteration the last (``iter0-ba5``, ``iter0-ba10``).

    Raises:
        InputError: There are none, or an iteration has some in several folders.
    """
    numbered = [
        (path, _number_of(path.relative_to(folder).as_posix())) for path in _folders(folder)
    ]
    for (first, number), (other, same) in pairwise(sorted(numbered, key=_iteration)):
        if number is not None and number == same and first.parent != other.parent:
            raise InputError(
                f"{folder} has several exports of iteration {number}: {first} and {other}. Give "
                "the folder of one run."
            )
    found = _exports(folder, numbered)
    if not found:
        raise InputError(
            f"{folder} has no exported iteration: a folder with a config.json or "
            "adapter_config.json. Give the run's YAML, or the exporter's save_folder."
        )
    return found


def _places(config: Config) -> list[tuple[str, str]]:
    """Return folder and name of each exporter's folders, as their format strings."""
    callbacks = config.get("callbacks") or {}
    given = {name: callbacks.get(name) or {} for name in sorted(EXPORTERS) if name in callbacks}
    if not given and config.get("save_folder"):  # the config transform's default
        given = {"hf_checkpointer": {"huggingface_folder_name": "iter{iteration}"}}
    places = []
    for exporter, settings in given.items():
        if not isinstance(settings, Mapping):
            continue
        own = exporter == "hf_exporter"
        folder = str(settings.get("save_folder") or config.get("save_folder") or "")
        name = settings.get("huggingface_folder_name") or (
            "iter{iteration}" if own else "ba{batch}"
        )
        places.append((folder if own else f"{folder or '.'}/huggingface", str(name)))
    return places


def _pattern(name: str, run_name: str) -> re.Pattern[str]:
    """Return the pattern of the folders that are made from a format string."""
    pattern = ""
    for literal, field, _, _ in string.Formatter().parse(name):
        pattern += re.escape(literal)
        if field == _ITERATION and f"<{_ITERATION}>" not in pattern:
            pattern += rf"(?P<{_ITERATION}>\d+)"
        elif field is not None:
            pattern += re.escape(run_name) if field == "run_name" else r"\w+"
    return re.compile(pattern)


def _number_of(path: str) -> int | None:
    name = path.rpartition("/")[2]
    found = _NUMBER.findall(path) or ([name] if name.isdecimal() else [])
    return int(found[-1]) if found else None


def _folders(root: Path) -> list[Path]:
    """Return the folders of exports below a folder, in the order of the numbers in their paths."""
    found = {path.parent for mark in _MARKS for path in root.glob(f"**/{mark}")} - {root}
    return [
        folder
        for folder in sorted(found, key=_numbers)
        if not any(path.is_symlink() for path in (folder, *folder.parents) if root in path.parents)
    ]


def _exports(root: Path, numbered: Sequence[tuple[Path, int | None]]) -> list[Export]:
    """Return exports by iteration, those without one after them; of an iteration the last."""
    found: dict[str, Export] = {}
    for folder, number in sorted(numbered, key=_iteration):
        path = folder.relative_to(root).as_posix()
        name = path if number is None else iteration_name(number)
        found[name] = Export(name, folder)
    return list(found.values())


def _iteration(numbered: tuple[Path, int | None]) -> tuple[bool, int]:
    number = numbered[1]
    return number is None, number or 0


def _numbers(folder: Path) -> list[tuple[int, int, str]]:
    """Return the sort key of a folder in which iter10 comes after iter9."""
    parts = re.split(r"(\d+)", str(folder))
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
