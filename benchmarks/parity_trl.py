"""Loss curves of TRL's DPOTrainer and of ours on the pairs of one self-play store: are they equal?

    make parity

makes an environment of TRL's own and runs this. A small text world, a tokenizer and a tiny Llama
are made as in the demo; our side is a real run (play, store, pair loader, scheduler, Composer's
Trainer) of which every batch, learning rate and loss is noted; TRL then trains the same
base model on the same pairs in the same order, computing the reference's log-probs itself. Both in
fp32 on the CPU with RMSprop. Cases: all weights; LoRA; gradient accumulation. A control that must
differ shows that the comparison can fail: TRL with a beta that is one percent larger.

The exit code is 1 if a case differs by more than the tolerance, or the control does not.
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


def our_run(folder: Path, lora: bool, microbatch: int) -> tuple[dict[str, Any], list[float]]:
    """Play and train an iteration; return the case for the peer, and our losses."""
    import peft
    import torch
    from composer import Callback, Trainer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spin_composer import SPIN, HFSpinLM, SpinScheduler, build_spin_dataloader

    base, adapter = folder.parent / "base", None
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))  # pyright: ignore
        model.save_pretrained(folder / "adapter")
        adapter = {"config": LORA, "weights": str(folder / "adapter")}
    trained = [p for p in model.parameters() if p.requires_grad]
    batches: list[list[dict[str, list[int]]]] = []
    losses: list[float] = []
    rates: list[float] = []

    class Notes(Callback):
        def batch_start(self, state: Any, logger: Any) -> None:
            batches.append(pairs_of(state.batch))

        def after_train_batch(self, state: Any, logger: Any) -> None:  # before the step
            rates.append(state.optimizers[0].param_groups[0]["lr"])

        def batch_end(self, state: Any, logger: Any) -> None:
            losses.append(float(state.total_loss_dict["loss/train/total"]))

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
    planned = learning_rates(len(losses))
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
    return case, losses


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


def compared(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> Any:
    """Return by case the largest difference of the curves and whether it is as it must be.

    Args:
        ours: Losses by case.
        theirs: The same of the peer, and of the control, whose curve is compared with the first.
    """
    first = next(iter(ours))
    found = {}
    for name in [*ours, CONTROL]:
        a, b = ours[first if name == CONTROL else name], theirs[name]
        same_length = len(a) == len(b) > 0
        largest = max(map(abs, (x - y for x, y in zip(a, b, strict=False))), default=math.inf)
        if not same_length or math.isnan(sum(a) + sum(b)):
            largest = math.inf
        equal = largest <= TOLERANCE
        found[name] = {
            "steps": len(a),
            "first_loss": a[0],
            "last_loss": a[-1],
            "largest_difference": largest,
            "ok": equal != (name == CONTROL),
        }
    return found


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
    command = [peer_python, str(PEER), str(folder / "cases.json"), str(folder / "losses.json")]
    subprocess.run(command, check=True, env=peer_environment)
    theirs = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    return compared(ours, theirs["losses"]), machine(theirs["versions"])


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
            f"{row['last_loss']:.4f}, largest difference {row['largest_difference']:.2e} "
            f"{'ok' if row['ok'] else 'NOT AS IT MUST BE'}"
        )
    print(f"tolerance {TOLERANCE:.0e} nats; the control must exceed it")
    if args.out is not None:
        found = {"command": "make parity", "machine": where, "tolerance": TOLERANCE}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found | {"results": results}, indent=1) + "\n", "utf-8")
    return 0 if all(row["ok"] for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
