"""What ``parity_trl.py`` has TRL's DPOTrainer do, in an environment of its own: train, note curves.

    python benchmarks/parity_trl_peer.py CASES.json CURVES.json

Imports nothing of spin_composer. A case names the model's folder, the batches of pairs in their
order (token ids), the learning rate of each step, and how a batch is cut for accumulation.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl
from torch.utils.data import SequentialSampler


class InOrder(trl.DPOTrainer):
    """Takes rows of token ids as they are, one after another; reports losses unrounded."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: Any) -> Any:
        found = super()._compute_loss(model, inputs, return_outputs)
        loss = found[0] if isinstance(found, tuple) else found
        if self.model.training:
            self.seen.append(float(loss.detach()))
        return found


def model_of(folder: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )


def curves_of(case: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Train a case; return the mean pair loss and the norm of the gradient of each step."""
    torch.manual_seed(0)
    model, adapter = model_of(case["model"]), case["adapter"]
    if adapter is not None:
        # LoRA's first weights are those that our run began with; its B is 0, so that the reference
        # is the base model.
        model = peft.get_peft_model(model, peft.LoraConfig(**adapter["config"]))
        weights = peft.load_peft_weights(adapter["weights"], device="cpu")
        missing = peft.set_peft_model_state_dict(model, weights)
        assert not missing.unexpected_keys, missing.unexpected_keys
    trained = [p for p in model.parameters() if p.requires_grad]
    rates = case["learning_rates"]
    optimizer = torch.optim.RMSprop(trained, lr=1.0, **case["optimizer"])
    norms: list[float] = []

    def note_norm(*_: Any) -> None:
        gradients = [p.grad for p in trained if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    optimizer.register_step_pre_hook(note_norm)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rates[min(step, len(rates) - 1)]
    )
    size, micro = len(case["batches"][0]), case["microbatch_size"]
    config = trl.DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=micro,
        gradient_accumulation_steps=size // micro, max_steps=len(rates), beta=case["beta"],
        loss_type=["sigmoid"], max_length=None, use_cpu=True, bf16=False,
        gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to=[],
        dataloader_num_workers=0, max_grad_norm=0, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = InOrder(
        model=model,
        ref_model=model_of(case["model"]),
        args=config,
        train_dataset=datasets.Dataset.from_list([row for b in case["batches"] for row in b]),
        processing_class=transformers.AutoTokenizer.from_pretrained(case["model"]),
        optimizers=(optimizer, schedule),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.seen = []
    trainer.train()
    parts, seen = size // micro, trainer.seen
    assert len(seen) == parts * len(rates), f"{len(seen)} losses for {len(rates)} steps"
    losses = [sum(seen[i : i + parts]) / parts for i in range(0, len(seen), parts)]
    return {"losses": losses, "gradient_norms": norms}


def main() -> None:
    torch.set_num_threads(1)
    source, target = map(Path, sys.argv[1:])
    cases = json.loads(source.read_text(encoding="utf-8"))
    curves = {name: curves_of(case, target.parent / "trl") for name, case in cases.items()}
    versions = {"python": platform.python_version()}
    versions |= {m.__name__: m.__version__ for m in (trl, transformers, torch, peft)}
    found = {"curves": curves, "versions": versions}
    target.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
