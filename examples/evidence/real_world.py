"""SmolLM2-135M on rows of GSM8K, and on the same rows in a style of our own."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.evidence.settings import set_all
from examples.evidence.worlds import Setting, World
from spin_composer.demo.base import ModelSize, SFTConfig, make_base
from spin_composer.demo.world import Row, read_rows, write_rows
from spin_composer.settings.yaml import read_yaml, to_mapping

YAML = Path(__file__).parents[2] / "yamls" / "smollm2-135m-cpu.yaml"

GSM8K, STYLE = "gsm8k", "style"
SIZES: Mapping[str, Mapping[str, int]] = {
    GSM8K: {},
    STYLE: {},
    "style-small": {
        "num_rows": 48, "num_validation": 24, "num_test": 48, "response_tokens": 80,
    },
}  # fmt: skip
"""The worlds with a real model, and the sizes of each that are not the default.

``style-small`` is what one core of a CPU does: half an hour for a seed of start, SPIN and SFT."""
_CALCULATION = re.compile(r"<<[^>]*>>")
_ANSWERS = {GSM8K: r"####\s*(-?[\d,]*\.?\d+)", STYLE: r"Answer:\s*(-?[\d,]*\.?\d+)"}
_STEP = re.compile(r"Step \d+: .+")


def styled(row: Row) -> Row:
    """Return a GSM8K row whose response has numbered steps, in a style that no model has by itself.

    ``Step 1: ...`` a line, without GSM8K's calculator marks, and ``Answer: 42.`` at the end.
    """
    steps, _, answer = row.response.rpartition("#### ")
    lines = [_CALCULATION.sub("", line).strip() for line in steps.splitlines() if line.strip()]
    numbered = [f"Step {i}: {line}" for i, line in enumerate(lines, 1)]
    return Row(row.prompt, "\n".join([*numbered, f"Answer: {answer.strip()}."]))


def is_styled(response: str) -> bool:
    """Return whether a response has the style: numbered steps in order, then the answer."""
    *steps, answer = response.strip().split("\n") or [""]
    return (
        bool(steps)
        and all(_STEP.fullmatch(line) for line in steps)
        and [int(line[5 : line.index(":")]) for line in steps] == [*range(1, len(steps) + 1)]
        and re.fullmatch(r"Answer: \S+\.", answer) is not None
    )


@dataclass(frozen=True)
class RealWorld(World):
    """A pretrained model and a few hundred real rows; a seed draws the rows.

    The start is the model as it was published, tuned to chat, not to these rows. The style is made
    of the real responses by a rule: whether a response has it can be checked, and no pretrained
    model has it by itself, so what an arm learned of the rows' distribution shows apart from
    arithmetic, which a model of 135M cannot.
    """

    name: str
    """One of :data:`SIZES`, which has the sizes that belong to it."""
    model: Path
    """Hugging Face folder of the pretrained model."""
    train: Path
    """jsonl of GSM8K rows."""
    held_out: Path
    num_rows: int = 200
    num_validation: int = 48
    num_test: int = 96
    iterations: int = 2
    epochs: int = 1
    response_tokens: int = 96
    """Rows with longer responses are left out, and none longer is generated."""
    gpu: bool = False
    tiny: bool = False
    """A model of random weights, short responses: a rehearsal, whose figures mean nothing."""

    @property
    def task(self) -> str:
        """Return what its rows are: ``gsm8k`` or ``style``."""
        return self.name.removesuffix("-small")

    @property
    def answer(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the regular expression of a response's final answer."""
        return _ANSWERS[self.task]

    def config(self) -> dict[str, Any]:
        """Return the settings of the model's YAML, with this world's sizes."""
        here: dict[str, Any] = {
            "max_duration": f"{self.iterations}iter",
            "eval_interval": f"{self.epochs}ep",
            "eval_subset_num_batches": -1,
            "algorithms.spin.iteration_length": f"{self.epochs}ep",
            "algorithms.spin.samples_per_iteration": "all",
            "algorithms.spin.replay": 0,
            "algorithms.spin.generation.max_new_tokens": self.response_tokens,
            "algorithms.gradient_clipping": {
                "clipping_type": "norm", "clipping_threshold": 1.0,
            },
        }  # fmt: skip
        if self.gpu:
            here |= {
                "precision": "amp_bf16",
                "algorithms.spin.generation.batch_size": 128,
                "algorithms.spin.unit_size": 128,
            }
        if self.tiny:
            here |= {
                "optimizer.lr": 1.0e-3,
                "algorithms.spin.generation.max_new_tokens": 16,
                "train_loader.dataset.max_prompt_len": 64,
                "eval_loader.dataset.max_prompt_len": 64,
            }
        return set_all(to_mapping(read_yaml(YAML, [])), here)

    def make(self, folder: Path, seed: int) -> None:
        """Draw the rows of the seed, and copy the model."""
        setting = Setting.of(folder)
        rng = random.Random(seed)
        rows = rng.sample(self._rows(self.train), self.num_rows)
        held_out = self._rows(self.held_out)
        rng.shuffle(held_out)
        held_out = held_out[: self.num_validation + self.num_test]
        write_rows(rows, setting.train)
        write_rows(held_out[: self.num_validation], setting.validation)
        write_rows(held_out[self.num_validation :], setting.test)
        if self.tiny:
            size = ModelSize(vocab_size=600, width=16, layers=1, heads=2, max_seq_len=512)
            training = SFTConfig(epochs=1, batch_size=8, microbatch_size=8, seed=seed)
            make_base(setting.train, setting.validation, setting.start, size, training)
            _give_template(setting.start)
        else:
            shutil.copytree(self.model, setting.start)

    def _rows(self, path: Path) -> list[Row]:
        """Return a file's rows in the world's style, those that are short enough."""
        rows = read_rows(path)
        if self.task == STYLE:
            rows = [styled(row) for row in rows]
        if self.tiny:
            return rows
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        tokens = tokenizer([row.response for row in rows], add_special_tokens=False)["input_ids"]
        # the stop token is one of them
        return [
            row for row, ids in zip(rows, tokens, strict=True) if len(ids) < self.response_tokens
        ]

    def measure(self, model: Path, setting: Setting, responses: list[str]) -> dict[str, float]:
        """Return the share of responses in the style, where the rows have it."""
        del model, setting
        if self.task != STYLE:
            return {}
        return {"styled": sum(map(is_styled, responses)) / len(responses)}


def _give_template(folder: Path) -> None:
    """Give the tokenizer of a rehearsal a chat template, as the real model's has."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
