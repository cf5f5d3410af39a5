"""SPIN without a YAML: two iterations on your rows, with any small causal LM, on a CPU.

    python examples/quickstart.py my/sft-model sft.jsonl heldout.jsonl --folder runs/quickstart

The model is a Hugging Face folder or name, best one that was tuned on these very rows; a row is
``{"prompt": ..., "response": ...}`` or any other that is read. Prints the held-out negative
log-likelihood before the first iteration and at the end, and writes each iteration's policy to
``<folder>/hf/iter<iteration>``. The sizes below are those of a small model and a few rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from composer import Trainer
from transformers import AutoTokenizer

from spin_composer import (
    SPIN,
    HFSpinLM,
    HuggingFaceExporter,
    SpinScheduler,
    build_spin_dataloader,
    build_spin_evaluator,
)

MAX_SEQ_LEN = 256  # tokens of a row, prompt and response together
MAX_NEW_TOKENS = 32  # of a generated response
BATCH_SIZE = 8  # pairs


def train(model_name: str, rows: str, held_out: str, folder: Path) -> tuple[float, float]:
    """Play two iterations; return the held-out NLL before and after, in nats per token."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = HFSpinLM(tokenizer, model_name)
    data = {"hf_name": rows, "split": "train", "max_seq_len": MAX_SEQ_LEN}
    trainer = Trainer(
        model=model,
        train_dataloader=build_spin_dataloader(tokenizer, BATCH_SIZE, dataset=data),
        eval_dataloader=build_spin_evaluator(
            tokenizer, BATCH_SIZE, dataset={**data, "hf_name": held_out}
        ),
        optimizers=torch.optim.RMSprop(model.parameters(), lr=5e-6),
        schedulers=SpinScheduler(t_warmup="0.1dur"),
        algorithms=[
            SPIN(
                beta=[0.1, 5.0],  # one value per iteration: the last stays near its opponent
                store=str(folder / "self-play"),
                generation={"max_new_tokens": MAX_NEW_TOKENS},
            )
        ],
        callbacks=[HuggingFaceExporter(str(folder / "hf"))],
        max_duration="2iter",
        device="cpu",
        precision="fp32",
    )
    trainer.eval()
    before = held_out_nll(trainer)
    trainer.fit()  # evaluates at the end of each iteration
    after = held_out_nll(trainer)
    trainer.close()
    return before, after


def held_out_nll(trainer: Trainer) -> float:
    """Return the last evaluation's negative log-likelihood of a response's tokens, in nats."""
    return float(trainer.state.eval_metrics["eval"]["LanguageCrossEntropy"].compute())


def main() -> None:
    """Read the command line, train, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder or name of a Hugging Face causal LM")
    parser.add_argument("rows", help="what to train on: jsonl, parquet, a data set's name, ...")
    parser.add_argument("held_out", help="rows that are not trained on")
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"))
    given = parser.parse_args()
    before, after = train(given.model, given.rows, given.held_out, given.folder)
    print(f"held-out NLL: {before:.4f} before, {after:.4f} after, nats per token")
    print(f"the policy is in {given.folder / 'hf/iter1'}, its play in {given.folder / 'self-play'}")


if __name__ == "__main__":
    main()
