"""Loss and gradients of the shared layout are the padded one's, also where ranks train together."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from composer.utils import dist
from fixtures import models, tokenizers
from fixtures.ranks import on_ranks
from fixtures.runs import tiny_trainer, write_rows
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from spin_composer import build_spin_evaluator
from spin_composer.data.held_out import METRICS
from spin_composer.data.pairs import PairBatch, collate_pairs, num_pairs, split_pairs
from spin_composer.fsdp import correct_gloo_average
from spin_composer.loss import PairLoss
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.choose import LAYOUTS
from spin_composer.model.unwrap import composer_model
from tests.model.layout.test_packed import pairs_of

FSDP = {
    "alone": None,
    "ddp": None,
    "fsdp2": {},
    "hsdp": {"data_parallel_replicate_degree": 2},
}
WORLD = {"alone": 1, "ddp": 2, "fsdp2": 2, "hsdp": 4}
TOLERANCE = 2e-6
"""Relative; a few roundings of fp32."""
CHECKPOINTING = (None, True, False)
"""No layer is computed again, each is by a reentrant pass, or by another."""
torch_can = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"),
    reason="torch 2.7's gloo cannot average over replicas",
)


def trainer_of(folder: Path, kind: str, lora: bool, **settings: Any) -> Any:
    tokenizer = tokenizers.byte_level()
    torch.manual_seed(0)
    model: Any = models.tiny_model("llama", vocab_size=len(tokenizer))
    if lora:
        adapters = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(model, adapters)
    fsdp = FSDP[kind]
    config = None if fsdp is None else {"fsdp": fsdp}
    trainer = tiny_trainer(
        folder, model, device_batch_size=1, parallelism_config=config, **settings
    )
    correct_gloo_average(trainer.state)
    return trainer


def gradients(trainer: Any, batch: PairBatch, layout: Layout) -> torch.Tensor:
    """Return loss and gradients of a batch in microbatches of two pairs, as one vector."""
    composer_model(trainer.state).layout = layout
    model = trainer.state.model.train()
    model.zero_grad()
    total = torch.zeros(())
    for part in split_pairs(batch, 2):
        loss = composer_model(trainer.state).loss(model(part), part)
        loss = loss * num_pairs(part) / num_pairs(batch)
        loss.backward()
        total += loss.detach()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in found]
    assert whole
    return torch.cat([total.view(1), *(g.flatten() for g in whole)])


def differences(rank: int, folder: str, kind: str, lora: bool, cases: tuple[Any, ...]) -> list[Any]:
    """Return the layout that a rank chose, and how far its gradients are from the padded ones."""
    os.environ["FSDP_VERSION"] = "2"
    trainer = trainer_of(Path(folder) / str(rank), kind, lora)
    spin: Any = composer_model(trainer.state)
    spin.pair_loss = PairLoss("logistic", 0.3)
    sizes = [(5, 9, 7), (1, 1, 1), (12, 1 + rank, 10), (3, 14, 1), (20, 2, 2 + 3 * rank)]
    batch = collate_pairs(pairs_of(*sizes, seed=rank))
    spin.choose_layout("auto", None, batch["input_ids"].int().numpy(), 40, trainer.state.device)
    found: list[Any] = [spin.layout.name]
    for reentrant in cases:
        if reentrant is not None:
            spin.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            spin.model.enable_input_require_grads()
        wanted, ours = (gradients(trainer, batch, LAYOUTS[x]) for x in ("padded", "shared"))
        loss, rest = (ours - wanted)[:1], (ours - wanted)[1:]
        found.append(float(loss.abs() / wanted[0]))
        found.append(float(rest.norm() / wanted[1:].norm()))
    dist.barrier()
    return found


CASES = [
    pytest.param(
        kind, lora, cases, id=f"{kind}-{'lora' if lora else 'whole'}",
        marks=[*([] if quick else [pytest.mark.slow]), *([torch_can] if kind == "hsdp" else [])],
    )
    for kind, lora, cases, quick in (
        ("alone", False, CHECKPOINTING, True),
        ("alone", True, CHECKPOINTING, True),
        ("fsdp2", True, (None,), True),
        ("fsdp2", False, CHECKPOINTING, False),
        ("ddp", False, CHECKPOINTING, False),
        ("ddp", True, CHECKPOINTING, False),
        ("hsdp", False, CHECKPOINTING, False),
        ("hsdp", True, CHECKPOINTING, False),
    )
]  # fmt: skip


@pytest.mark.parametrize(("kind", "lora", "cases"), CASES)
def test_loss_and_gradients_are_the_padded_ones(
    kind: str, lora: bool, cases: tuple[Any, ...], tmp_path: Path
) -> None:
    body = partial(differences, folder=str(tmp_path), kind=kind, lora=lora, cases=cases)
    if kind == "alone":
        answers = {0: body(0)}
    else:
        answers = on_ranks(body, WORLD[kind], timeout_seconds=120, one_node=True)
    for rank, (name, *found) in answers.items():
        assert name == "shared", (rank, found)
        assert max(found) <= TOLERANCE, (rank, found)


def evaluations(rank: int, folder: str, kind: str, lora: bool) -> list[Any]:
    """Return metrics of held-out rows padded and not, and the outputs that they were made of."""
    os.environ["FSDP_VERSION"] = "2"
    held_out = write_rows(Path(folder) / f"held-out-{rank}.jsonl", num_rows=7, seed=3)
    dataset = {"hf_name": str(held_out), "max_seq_len": 64}
    loader = build_spin_evaluator(tokenizers.byte_level(), 2, dataset, pin_memory=False)
    trainer = trainer_of(Path(folder) / str(rank), kind, lora, eval_dataloader=loader)
    spin: Any = composer_model(trainer.state)
    outputs: list[str] = []
    update = spin.update_metric

    def noting(batch: Any, output: Any, metric: Any) -> Any:
        outputs.append(type(output).__name__)
        return update(batch, output, metric)

    spin.update_metric = noting
    found = []
    for layout in ("padded", "shared"):
        tokens = collate_pairs(pairs_of((5, 9, 7)))["input_ids"].int().numpy()
        spin.choose_layout(layout, None, tokens, 64, trainer.state.device)
        trainer.eval()
        metrics = trainer.state.eval_metrics["eval"]
        found.append([float(metrics[name].compute()) for name in METRICS])
    dist.barrier()
    return [*found, outputs]


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_held_out_rows_without_padding_have_the_padded_metrics_on_two_ranks(
    lora: bool, tmp_path: Path
) -> None:
    body = partial(evaluations, folder=str(tmp_path), kind="fsdp2", lora=lora)
    for padded, ours, outputs in on_ranks(body, timeout_seconds=120, one_node=True).values():
        assert set(outputs[: len(outputs) // 2]) == {"Tensor"}
        assert set(outputs[len(outputs) // 2 :]) == {"TokenScores"}
        assert ours == pytest.approx(padded, rel=1e-6)
