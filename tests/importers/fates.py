"""What an import says became of each foreign key."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
