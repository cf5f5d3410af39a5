"""What the arms are compared in: a start, rows to train on, and what can be measured there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A world as one seed made it; paths lie in the folder that it was made in."""

    start: Path
    """Model and tokenizer that every arm starts from."""
    train: Path
    """Rows that every arm trains on, as jsonl of ``prompt`` and ``response``."""
    validation: Path
    """Held-out rows: SFT stops early by them, and the curves are theirs."""
    test: Path
    """Held-out rows that the final models are measured on, and nothing else."""

    @classmethod
    def of(cls, folder: Path) -> Setting:
        """Return the setting of a world's folder."""
        data = folder / "data"
        return cls(
            folder / "start", data / "train.jsonl", data / "validation.jsonl", data / "test.jsonl"
        )


class World(ABC):
    """A start, rows and the settings of the game; a seed makes a :class:`Setting` of it."""

    name: str
    """Of the results' file, and on the command line."""
    samples: int = 1
    """Responses to each of the test rows that the measures are of."""
    answer: str | None = None
    """Regular expression of a response's final answer, where the rows have one."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the settings of the game SPIN, sections as in a YAML; paths are filled in."""

    @abstractmethod
    def make(self, folder: Path, seed: int) -> None:
        """Write the rows and the start to where :meth:`Setting.of` finds them."""

    def measure(self, model: Path, setting: Setting, responses: list[str]) -> dict[str, float]:
        """Return measures that only this world has.

        Args:
            model: Folder of the trained model.
            setting: What it was trained in.
            responses: The model's to the prompts of the test rows: those of the first row first.
        """
        del model, setting, responses
        return {}
