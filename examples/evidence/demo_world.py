"""The world of ``make demo`` (spin_composer/demo/world.py), as it is and with few rows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from examples.evidence.settings import set_all
from examples.evidence.worlds import Setting, World
from spin_composer.demo.base import ModelSize, SFTConfig, make_base
from spin_composer.demo.sft import SftRecipe, sft
from spin_composer.demo.world import is_valid, make_world, read_rows, write_rows
from spin_composer.settings.yaml import read_yaml, to_mapping

YAML = str(resources.files("spin_composer.demo") / "demo.yaml")
VALIDATION, TEST = 200, 400
ADAMW = {"name": "decoupled_adamw", "betas": (0.9, 0.98), "weight_decay": 0.0}


@dataclass(frozen=True)
class DemoWorld(World):
    """A Llama of 100,000 weights, trained on 3,000 careless sentences; careful rows for the game.

    Held-out rows are about prompts that no row has.
    """

    name: str = "demo"
    num_rows: int = 300
    answers: int = 4
    """Repetitions of each row: how often the opponent answers it per iteration."""
    exhausted: bool = False
    """The start is the base model after SFT on the game's rows, stopped where the held-out NLL was
    lowest: more SFT only does harm."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Settings that differ from the demo's YAML, by their dotted names."""

    def config(self) -> dict[str, Any]:
        """Return the settings of the demo's YAML, with this world's changes."""
        return set_all(to_mapping(read_yaml(YAML, [])), dict(self.changes))

    def make(self, folder: Path, seed: int) -> None:
        """Write the rows, and train the base model; then exhaust SFT, if asked for."""
        world = make_world(seed, num_careful=self.num_rows, num_valid=VALIDATION + TEST)
        setting, data = Setting.of(folder), folder / "data"
        write_rows(world.careful_train * self.answers, setting.train)
        write_rows(world.careful_valid[:VALIDATION], setting.validation)
        write_rows(world.careful_valid[VALIDATION:], setting.test)
        careless = write_rows(world.careless_train, data / "careless.jsonl")
        held_out = write_rows(world.careless_valid, data / "careless-heldout.jsonl")
        base = folder / "base" if self.exhausted else setting.start
        make_base(careless, held_out, base, ModelSize(), SFTConfig(seed=seed))
        if self.exhausted:
            once = write_rows(world.careful_train, data / "once.jsonl")
            sft(base, once, setting.validation, setting.start, self._exhausting(seed))

    def _exhausting(self, seed: int) -> SftRecipe:
        batch = min(32, self.num_rows)
        return SftRecipe(
            duration=f"{60 * (self.num_rows // batch)}ba",
            batch_size=batch,
            microbatch_size=batch,
            optimizer={**ADAMW, "lr": 6e-4},
            t_warmup="0.1dur",
            gradient_clipping=1.0,
            max_seq_len=64,
            seed=seed,
            stop_early=f"{self.num_rows // batch}ba",
        )

    def measure(self, model: Path, setting: Setting, responses: list[str]) -> dict[str, float]:
        """Return the share of responses that a careful writer could have given."""
        del model
        rows = [row for row in read_rows(setting.test) for _ in range(self.samples)]
        found = [
            is_valid(row.prompt, text.strip()) for row, text in zip(rows, responses, strict=True)
        ]
        return {"valid": sum(found) / len(found)}
