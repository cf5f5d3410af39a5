"""The tutorial's commands do what it says, on fewer rows and an untrained model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import models, tokenizers
from fixtures.runs import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.foundry]

PAGE = (Path(__file__).parents[1] / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line
    for line in "".join(text for language, text in BLOCKS if not language).splitlines()
    if not line.endswith(" demo")  # takes a minute; its model and rows are made below
]


def shell(command: str, folder: Path) -> str:
    """Run a command of the page in a folder; return what it printed."""
    program = f"{sys.executable} -W ignore -m spin_composer"
    line = re.sub(r"^spin-composer", program, command)
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        ["bash", "-euc", line], check=False, cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_commands_of_the_tutorial_run(tmp_path: Path) -> None:
    demo = tmp_path / "runs" / "demo"
    tokenizer = tokenizers.byte_level()
    model = models.tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=64)
    model.save_pretrained(demo / "base")
    tokenizer.save_pretrained(demo / "base")
    (demo / "data").mkdir()
    write_rows(demo / "data/train.jsonl", num_rows=64)
    write_rows(demo / "data/heldout.jsonl", num_rows=16, seed=1)
    (sft,) = (text for language, text in BLOCKS if language == "yaml")
    (tmp_path / "sft.yaml").write_text(sft, encoding="utf-8")
    assert len(COMMANDS) >= 5
    printed = {command.split()[1]: shell(command, tmp_path) for command in COMMANDS}
    assert "the run is finished" in printed["status"]
    assert "held-out NLL" in printed["report"]
    (code,) = (text for language, text in BLOCKS if language == "python")
    (tmp_path / "use.py").write_text(code, encoding="utf-8")
    assert shell(f"{sys.executable} use.py", tmp_path)
