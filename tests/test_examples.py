"""The examples run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from fixtures.runs import write_rows
from fixtures.yaml_run import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart_trains_a_model_that_loads(tmp_path):
    model = save_model(tmp_path, max_position_embeddings=256)
    rows = write_rows(tmp_path / "sft.jsonl")
    held_out = write_rows(tmp_path / "heldout.jsonl", num_rows=7, seed=1)
    command = [sys.executable, str(EXAMPLES / "quickstart.py")]
    done = subprocess.run(
        [*command, str(model), str(rows), str(held_out), "--folder", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures = re.search(r"held-out NLL: ([\d.]+) before, ([\d.]+) after", done.stdout)
    assert figures is not None, done.stdout
    before, after = map(float, figures.groups())
    assert 0 < after < 10
    assert after != before
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/hf/iter1")
    AutoTokenizer.from_pretrained(tmp_path / "out/hf/iter1")
    history = json.loads((tmp_path / "out/self-play/iterations.json").read_text())
    assert len(history["iterations"]) == 2
