"""What an import says became of each foreign key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any

from spin_composer.importers.fresh import FreshYaml


def fates(draft: FreshYaml) -> dict[str, str]:
    """Return the reason of each key that is not carried over, and "" for those that are."""
    found = dict.fromkeys(draft.named, "")
    for change in draft.changes:
        for key in re.findall(r"(?:^|, )([\w.]+)=", change.setting):
            assert key not in found, f"{key} has two fates"
            found[key] = change.why
    return found


def leaves(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the values that are not null."""
    for key, value in values.items():
        if isinstance(value, dict) and key != "dataset_mixer":
            yield from leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}"


def require_comments(draft: FreshYaml) -> None:
    """Check that the YAML has a comment for each line of stderr."""
    comments = " ".join(draft.yaml.text.replace("#", " ").split())
    for change in draft.changes:
        added = change.setting == "added"
        said = change.why.partition(" (")[2].removesuffix(")") if added else change.setting
        assert " ".join(said.split()) in comments, change


def require_reachable(explained: Collection[str], refused: Collection[str]) -> None:
    """Check that no pattern of reasons is hidden by one before it, or by a refused key."""
    for pattern in explained:
        first = next(one for one in explained if fnmatchcase(pattern.replace("*", "x"), one))
        assert first == pattern
        assert not any(fnmatchcase(pattern, one) for one in refused)
