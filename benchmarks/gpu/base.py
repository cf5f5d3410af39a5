"""The rows and the SFT model that the games of :mod:`product` begin with.

    python benchmarks/gpu/base.py FOLDER [--tiny] [--model FOLDER]

writes the rows of the demo's world to ``FOLDER/data``, fine-tunes a model on them (a Llama of
random weights, or the one given) and saves it to ``FOLDER/base``. ``FOLDER/base.json`` says what
the training's evaluation measured, and what the saved folder has when the Auto classes load it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer.data.sources import read_rows
from spin_composer.data.tokenization import build_examples
from spin_composer.demo.base import ModelSize, SFTConfig, make_base
from spin_composer.demo.sft import SftRecipe, SftResult, sft
from spin_composer.demo.world import make_world, write_rows
from spin_composer.settings.dataset import read_config

MAX_SEQ_LEN = 64
FIGURES = "base.json"
SIZES = {
    False: ModelSize(width=512, layers=8, heads=8),
    True: ModelSize(width=32, layers=2, heads=2),
}
TRAINING = {False: SFTConfig(epochs=3, learning_rate=1e-3), True: SFTConfig(epochs=3)}
ROWS = {False: (6000, 1280, 300), True: (600, 48, 32)}
"""Of the base model, of the game, and held out from each; by ``--tiny``."""
GENTLE = {"name": "decoupled_adamw", "lr": 1e-5, "betas": (0.9, 0.98), "weight_decay": 0.0}
"""For a model that was trained before."""


def write_data(folder: Path, tiny: bool) -> None:
    """Write ``careless``, ``careless_heldout``, ``train`` and ``heldout`` as jsonl."""
    careless, careful, held_out = ROWS[tiny]
    world = make_world(17, num_careless=careless, num_careful=careful, num_valid=held_out)
    data = folder / "data"
    write_rows(world.careless_train, data / "careless.jsonl")
    write_rows(world.careless_valid, data / "careless_heldout.jsonl")
    write_rows(world.careful_train, data / "train.jsonl")
    write_rows(world.careful_valid, data / "heldout.jsonl")


def train(folder: Path, tiny: bool, given: Path | None) -> tuple[Path, SftResult]:
    """Fine-tune; return the model that it began with, and the result."""
    rows, held_out = folder / "data/careless.jsonl", folder / "data/careless_heldout.jsonl"
    if given is None:
        base = folder / "base"
        return base / "untrained", make_base(rows, held_out, base, SIZES[tiny], TRAINING[tiny])
    result = sft(
        given, rows, held_out, folder / "base",
        SftRecipe(
            duration="20ba", batch_size=64, microbatch_size=16, optimizer=GENTLE, t_warmup="0.1dur",
            gradient_clipping=1.0, max_seq_len=MAX_SEQ_LEN, seed=17,
        ),
    )  # fmt: skip
    return given, result


@torch.no_grad()
def nll(model_folder: Path, rows: Path, device: torch.device) -> float:
    """Return nats per response token by a loop over rows: none of our own model code."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder).float().to(device).eval()
    torch.backends.cuda.matmul.allow_tf32 = False  # Composer switches it on
    config = read_config(
        {"hf_name": str(rows), "split": "train", "max_seq_len": MAX_SEQ_LEN}, "dataset"
    )
    total, tokens = 0.0, 0
    for example in build_examples(read_rows(config), tokenizer, config):
        ids = torch.tensor([*example.prompt, *example.response], device=device).long()[None]
        logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1].double()
        targets = ids[0, len(example.prompt) :]
        total += float(functional.cross_entropy(logits, targets, reduction="sum"))
        tokens += len(example.response)
    return total / tokens


def main() -> None:
    """Write the rows, train, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", type=Path, default=None)
    given = parser.parse_args()
    write_data(given.folder, given.tiny)
    started = time.perf_counter()
    began_with, result = train(given.folder, given.tiny, given.model)
    seconds = time.perf_counter() - started
    device = torch.device("cpu" if given.tiny else "cuda")
    held_out = given.folder / "data/careless_heldout.jsonl"
    found = {
        "seconds": seconds,
        "steps": result.steps,
        "tokens": result.tokens,
        "held_out_nll": result.held_out_nll,
        "nll_before": nll(began_with, held_out, device),
        "nll_of_export": nll(given.folder / "base", held_out, device),
    }
    assert math.isfinite(sum(found.values())), found
    (given.folder / FIGURES).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
