"""Losses and gradient norms of TRL's DPOTrainer and of ours on one self-play store: are they equal?

    make parity

makes an environment of TRL's own and runs this. A small text world, a tokenizer and a tiny Llama
are made as in the demo; our side is a real run (play, store, pair loader, scheduler, Composer's
Trainer) of which every batch, learning rate, loss and norm of the gradient is noted; TRL then
trains the same base model on the same pairs in the same order, computing the reference's log-probs
itself. Both in fp32 on the CPU with RMSprop, which divides a gradient's scale out: a wrong scale,
as of accumulation, shows in the norms only. Cases: all weights; LoRA; gradient accumulation. A
control that must differ shows that the comparison can fail: TRL with a beta that is one percent
larger.

The exit code is 1 if a case differs by more than a tolerance, or the control does not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 2e-5
"""In nats of a batch's mean loss.

Rounding of fp32: a response's sum of up to 16 log-probs of size 1 to 10 is exact to some 1e-6, beta
0.5 halves that, and the weights that were trained add the same of their own. RMSprop makes a full
step of a gradient that is rounding only, which may add up over the steps.
"""
NORM_TOLERANCE = 1e-4
"""Of the norm of a batch's gradient, relative: above rounding, far below any wrong scale."""
BETA, LEARNING_RATE, WARMUP_BATCHES = 0.5, 2e-4, 4
CONTROL = "control: beta x 1.01"
OPTIMIZER = {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0}
LORA = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"]}  # fmt: skip
BATCH, EPOCHS = 16, 2
CASES = {
    "all weights": {"microbatch": BATCH, "lora": False},
    "LoRA": {"microbatch": BATCH, "lora": True},
    "gradient accumulation": {"microbatch": 4, "lora": False},
}
PEER = Path(__file__).with_name("parity_trl_peer.py")
Curves = dict[str, list[float]]
"""``losses`` and ``gradient_norms``, both by step."""


def make_world(folder: Path, rows: int) -> None:
    """Write the rows of the game and train the base model, as the demo does, but shorter."""
    from spin_composer.demo.base import ModelSize, SFTConfig, make_base
    from spin_composer.demo.world import make_world as make_rows
    from spin_composer.demo.world import write_rows

    world = make_rows(17, num_careless=1500, num_careful=rows, num_valid=40)
    careless = write_rows(world.careless_train, folder / "careless.jsonl")
    held_out = write_rows(world.careless_valid, folder / "heldout.jsonl")
    write_rows(world.careful_train, folder / "train.jsonl")
    make_base(careless, held_out, folder / "base", ModelSize(), SFTConfig(epochs=3))


def our_run(folder: Path, lora: bool, microbatch: int) -> tuple[dict[str, Any], Curves]:
    """Play and train an iteration; return the case for the peer, and our curves."""
    import peft
    import torch
    from composer import Callback, Trainer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spin_composer import SPIN, HFSpinLM, SpinScheduler, build_spin_dataloader

    base, adapter = folder.parent / "base", None
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))  # pyright: ignore
        model.save_pretrained(folder / "adapter")
        adapter = {"config": LORA, "weights": str(folder / "adapter")}
    trained = [p for p in model.parameters() if p.requires_grad]
    batches: list[list[dict[str, list[int]]]] = []
    curves: Curves = {"losses": [], "gradient_norms": []}
    rates: list[float] = []

    class Notes(Callback):
        def batch_start(self, state: Any, logger: Any) -> None:
            batches.append(pairs_of(state.batch))

        def after_train_batch(self, state: Any, logger: Any) -> None:  # before the step
            rates.append(state.optimizers[0].param_groups[0]["lr"])
            gradients = [p.grad for p in trained if p.grad is not None]
            curves["gradient_norms"].append(float(torch.nn.utils.get_total_norm(gradients)))

        def batch_end(self, state: Any, logger: Any) -> None:
            curves["losses"].append(float(state.total_loss_dict["loss/train/total"]))

    data = {"hf_name": str(folder.parent / "train.jsonl"), "split": "train", "max_seq_len": 64}
    Trainer(
        model=HFSpinLM.from_model(model, tokenizer),
        train_dataloader=build_spin_dataloader(tokenizer, BATCH, dataset=data, pin_memory=False),
        optimizers=torch.optim.RMSprop(trained, lr=LEARNING_RATE, **OPTIMIZER),
        schedulers=SpinScheduler(t_warmup=f"{WARMUP_BATCHES}ba"),
        algorithms=[
            SPIN(
                beta=BETA,
                iteration_length=f"{EPOCHS}ep",
                store=str(folder / "self-play"),
                generation={"max_new_tokens": 16, "batch_size": 64},
            )
        ],
        callbacks=[Notes()],
        max_duration="1iter",
        device_train_microbatch_size=microbatch,
        device="cpu",
        precision="fp32",
        seed=17,
        run_name="parity",
        progress_bar=False,
    ).fit()
    planned = learning_rates(len(curves["losses"]))
    if not all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(planned, rates, strict=True)):
        raise SystemExit(f"our learning rates {rates} are not the schedule's {planned}")
    case = {
        "model": str(base),
        "adapter": adapter,
        "batches": batches,
        "learning_rates": planned,
        "microbatch_size": microbatch,
        "beta": BETA,
        "optimizer": OPTIMIZER,
    }
    return case, curves


def pairs_of(batch: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """Return the pairs of one of our batches as TRL's rows of token ids."""
    ids, bounds, scored = (
        batch["input_ids"].tolist(),
        batch["seqlen_bounds"],
        batch["scored_bounds"],
    )
    sides = []
    for i in range(len(bounds) - 1):
        cut = bounds[i + 1] - (scored[i + 1] - scored[i])
        sides.append((ids[bounds[i] : cut], ids[cut : bounds[i + 1]]))
    rows = []
    for (prompt, real), (same, generated) in zip(sides[::2], sides[1::2], strict=True):
        assert prompt == same, "both sides of a pair continue one prompt"
        rows.append({"prompt_ids": prompt, "chosen_ids": real, "rejected_ids": generated})
    return rows


def learning_rates(steps: int) -> list[float]:
    """Return the learning rate of each step: linear from 0 to the peak, then linear to 0."""
    w = WARMUP_BATCHES
    return [LEARNING_RATE * min(s / w, (steps - s) / (steps - w)) for s in range(steps)]


def compared(ours: Mapping[str, Curves], theirs: Mapping[str, Curves]) -> Any:
    """Return by case the largest differences of the curves and whether they are as they must be.

    Args:
        ours: Curves by case.
        theirs: The same of the peer, and of the control, whose curves are compared with the first.
    """
    first = next(iter(ours))
    found = {}
    for name in [*ours, CONTROL]:
        a, b = ours[first if name == CONTROL else name], theirs[name]
        losses = largest(a["losses"], b["losses"], relative=False)
        norms = largest(a["gradient_norms"], b["gradient_norms"], relative=True)
        equal = (losses <= TOLERANCE, norms <= NORM_TOLERANCE)
        found[name] = {
            "steps": len(a["losses"]),
            "first_loss": a["losses"][0],
            "last_loss": a["losses"][-1],
            "largest_difference": losses,
            "largest_relative_difference_of_gradient_norms": norms,
            "ok": not any(equal) if name == CONTROL else all(equal),
        }
    return found


def largest(ours: Sequence[float], theirs: Sequence[float], *, relative: bool) -> float:
    """Return the largest difference of two curves; infinite where they cannot be compared."""
    if not len(ours) == len(theirs) > 0 or math.isnan(sum(ours) + sum(theirs)):
        return math.inf
    return max(
        abs(a - b) / (max(abs(a), abs(b), 1e-30) if relative else 1)
        for a, b in zip(ours, theirs, strict=True)
    )


def machine(peer: Mapping[str, str]) -> dict[str, Any]:
    """Return what the curves were made on."""
    import composer
    import peft
    import torch
    import transformers

    ours = {m.__name__: m.__version__ for m in (composer, transformers, torch, peft)}
    return {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "ours": {"python": platform.python_version()} | ours,
        "peer": dict(peer),
    }


def run(folder: Path, peer_python: str, rows: int) -> tuple[Any, dict[str, Any]]:
    """Make everything in ``folder``; return the comparison and the machine."""
    # Composer, once it is imported, says that this is rank 0 of one.
    peer_environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    import torch

    torch.set_num_threads(1)
    print("a tokenizer and a base model ...", flush=True)
    make_world(folder, rows)
    cases, ours = {}, {}
    for name, case in CASES.items():
        print(f"ours: {name} ...", flush=True)
        target = folder / name.replace(" ", "-")
        target.mkdir()
        cases[name], ours[name] = our_run(target, **case)
    cases[CONTROL] = cases[next(iter(CASES))] | {"beta": 1.01 * BETA}
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    print("TRL: all cases ...", flush=True)
    command = [peer_python, str(PEER), str(folder / "cases.json"), str(folder / "curves.json")]
    subprocess.run(command, check=True, env=peer_environment)
    theirs = json.loads((folder / "curves.json").read_text(encoding="utf-8"))
    return compared(ours, theirs["curves"]), machine(theirs["versions"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="python of TRL's environment")
    parser.add_argument("--rows", type=int, default=336)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, where = run(Path(folder), args.peer_python, args.rows)
    for name, row in results.items():
        print(
            f"{name:24s} {row['steps']:3d} steps, loss {row['first_loss']:.4f} to "
            f"{row['last_loss']:.4f}, largest difference {row['largest_difference']:.2e}, of "
            f"gradient norms {row['largest_relative_difference_of_gradient_norms']:.2e} "
            f"{'ok' if row['ok'] else 'NOT AS IT MUST BE'}"
        )
    print(f"tolerances {TOLERANCE:.0e} nats, {NORM_TOLERANCE:.0e}; the control must exceed both")
    if args.out is not None:
        found = {"command": "make parity", "machine": where, "tolerance": TOLERANCE}
        found["tolerance_of_gradient_norms"] = NORM_TOLERANCE
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found | {"results": results}, indent=1) + "\n", "utf-8")
    return 0 if all(row["ok"] for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
