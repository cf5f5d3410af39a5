"""One optimizer step of pairs, ours beside that of TRL's DPOTrainer: tokens per second and memory.

    python benchmarks/gpu/training_step.py --out benchmarks/results/training_step_nvidia_h200.json
    python benchmarks/gpu/training_step.py --tiny

Both train the same model, from the same weights, on the same pairs (prompt, real and generated
response) in the same precision with the same AdamW, in one process, taking turns. A step is
forward, backward and the optimizer's step, without a loader, logging and gradient clipping. Of TRL
there are two: with the reference's log-probs given, as ours has the opponent's, and with the
reference model beside it, as TRL has by default. What is not installed is named in the result.

Tokens are those of the sequences: padding, which only TRL computes, counts for nobody. ``held_mib``
is what a trainer keeps between steps (weights, optimizer, reference), ``step_mib`` what a step
takes beyond that at most, gradients included. The losses before the first step must agree.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "kernels" / "benchmarks"))

import numpy as np
import torch
from composer.core import Precision, get_precision_context
from generation import SHAPES
from provenance import provenance, require_gpu
from record import PACKAGES, write
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from spin_composer import HFSpinLM
from spin_composer.data.pairs import Pair, collate_pairs
from spin_composer.loss import PairLoss

BETA, LEARNING_RATE = 0.1, 1e-6
OURS, GIVEN, BESIDE = "ours", "TRL, reference's log-probs given", "TRL, reference model beside"
TOLERANCE = {"fp32": 2e-5, "amp_bf16": 2e-2}
"""In nats of the first step's mean loss.

fp32: that of ``benchmarks/parity_trl.py``. bf16: a token's log-prob is some 5e-3 nats off; of 500
that add up at random, times beta and the logistic's slope, 0.1 x 0.5 x 5e-3 x sqrt(500) = 6e-3 for
each side of a pair.
"""
_NOISE = 1e-3
"""Of the policy's weights beside the opponent's, so that the loss is not log 2."""


@dataclass
class Contender:
    """What takes a step, and what it keeps."""

    step: Callable[[bool], float]
    """Takes a step and returns the loss before it; if False, without the optimizer's part."""
    modules: list[nn.Module]
    optimizer: torch.optim.Optimizer

    def held_bytes(self) -> int:
        """Return the bytes of weights and optimizer state."""
        tensors = [p for module in self.modules for p in module.parameters()]
        for state in self.optimizer.state.values():
            tensors += [x for x in state.values() if isinstance(x, torch.Tensor)]
        return sum({x.data_ptr(): x.numel() * x.element_size() for x in tensors}.values())


class Setting:
    """The model, the pairs and the precision that all contenders have."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.device = torch.device("cpu" if given.tiny else "cuda")
        self.precision = "fp32" if given.tiny else "amp_bf16"
        words = {"<pad>": 0, "<s>": 1, "</s>": 2}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<s>")),
            pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        )  # fmt: skip
        self.pairs = self._with_opponent(self._drawn_pairs())

    def model(self, noise: float = 0.0) -> Any:
        """Return the opponent, or the policy: its weights with a little noise."""
        config = LlamaConfig(
            **SHAPES[self.given.shape], max_position_embeddings=8192, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        with self.device:
            model: Any = AutoModelForCausalLM.from_config(config).float()
            if noise:
                with torch.no_grad():
                    for weight in model.parameters():
                        weight.add_(torch.randn_like(weight), alpha=noise)
        return model

    def autocast(self) -> Any:
        """Return the context of forward passes."""
        return get_precision_context(Precision(self.precision), None)

    def adamw(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimizer of a contender."""
        return torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, fused=self.device.type == "cuda"
        )

    def to_device(self, batch: Any) -> dict[str, Any]:
        """Return a batch with its tensors on the device."""
        return {
            key: x.to(self.device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()
        }

    def _drawn_pairs(self) -> list[Pair]:
        """Return pairs of random ids: prompts and responses of uneven lengths."""
        draw = np.random.default_rng(0)
        mean, vocabulary = self.given.mean_tokens, SHAPES[self.given.shape]["vocab_size"]

        def ids() -> np.ndarray:
            length = int(draw.integers(mean // 2, mean + mean // 2 + 1))
            return draw.integers(3, vocabulary, length).astype(np.int32)

        return [Pair(ids(), ids(), ids()) for _ in range(self.given.pairs)]

    def _with_opponent(self, pairs: list[Pair]) -> list[Pair]:
        """Return the pairs with the log-prob sums of the opponent, as play stores them."""
        model = HFSpinLM.from_model(self.model(), self.tokenizer)
        found = []
        for pair in pairs:  # one by one: nothing is left of it in memory
            with torch.no_grad(), self.autocast():
                real, generated = model.score(self.to_device(collate_pairs([pair])))[0].tolist()  # type: ignore[arg-type]
            found.append(Pair(pair.prompt, pair.real, pair.generated, real, generated))
        return found


def ours(setting: Setting) -> Contender:
    """Return our step: HFSpinLM on a pair batch, in the precision's context as Composer's."""
    model = HFSpinLM.from_model(setting.model(_NOISE), setting.tokenizer)
    model.pair_loss = PairLoss("logistic", BETA)
    model.train()
    optimizer = setting.adamw(model)
    batch: Any = setting.to_device(collate_pairs(setting.pairs))

    def step(learns: bool) -> float:
        with setting.autocast():
            loss = model.loss(model(batch), batch)
        loss.backward()
        if learns:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Contender(step, [model], optimizer)


def trl_contenders(setting: Setting, folder: Path) -> dict[str, Contender]:
    """Return TRL's steps; both train the same policy, which is theirs alone."""
    import datasets
    import trl

    class Unprepared(trl.DPOTrainer):
        """Takes rows of token ids as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    rows = [
        {"prompt_ids": p.prompt.tolist(), "chosen_ids": p.real.tolist(),
         "rejected_ids": p.generated.tolist(), "ref_chosen_logps": p.opponent_real,
         "ref_rejected_logps": p.opponent_generated}
        for p in setting.pairs
    ]  # fmt: skip
    on_cpu = setting.device.type == "cpu"
    config = trl.DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(rows), beta=BETA, max_length=None,
        loss_type=["sigmoid"], gradient_checkpointing=False, report_to=[], use_cpu=on_cpu,
        bf16=setting.precision == "amp_bf16", save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer: Any = Unprepared(
        model=setting.model(_NOISE),
        ref_model=setting.model(),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=setting.tokenizer,
    )
    optimizer = setting.adamw(trainer.model)
    prepared, stepper = trainer.accelerator.prepare(trainer.model, optimizer)
    prepared.train()
    inputs = setting.to_device(trainer.data_collator(rows))

    def step(given: bool, learns: bool) -> float:
        trainer.precompute_ref_logps = given
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(prepared, inputs)
        trainer.accelerator.backward(loss)
        if learns:
            stepper.step()
        stepper.zero_grad()
        return float(loss.detach())

    return {
        GIVEN: Contender(functools.partial(step, True), [trainer.model], optimizer),
        BESIDE: Contender(
            functools.partial(step, False), [trainer.model, trainer.ref_model], optimizer
        ),
    }


class Clock:
    """Seconds and peak memory of steps on one device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def once(self, contender: Contender, learns: bool = True) -> tuple[float, float, float]:
        """Return loss, seconds and MiB beyond what was held (0 on a CPU) of one step."""
        started = self._now()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        loss = contender.step(learns)
        seconds = self._now() - started
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if self.cuda else 0.0
        return loss, seconds, peak


def measured(
    setting: Setting, contenders: dict[str, Contender], rounds: int, seconds: float
) -> Any:
    """Return each contender's figures: all take turns, so that a drift of the clock meets all."""
    clock, end = Clock(setting.device), time.monotonic() + seconds
    # TRL's two share a policy, so nobody learns until all have shown their loss.
    firsts = {name: clock.once(x, learns=False)[0] for name, x in contenders.items()}
    for contender in contenders.values():
        clock.once(contender)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        if time.monotonic() > end:
            break
        for name, contender in contenders.items():
            taken[name].append(clock.once(contender)[1:])
    tokens = sum(2 * len(p.prompt) + len(p.real) + len(p.generated) for p in setting.pairs)
    found = {}
    for name, contender in contenders.items():
        times = [x for x, _ in taken[name]]
        median = statistics.median(times)
        found[name] = {
            "first_loss": firsts[name],
            "step_ms": 1e3 * median,
            "fastest_ms": 1e3 * min(times),
            "slowest_ms": 1e3 * max(times),
            "tokens_per_second": tokens / median,
            "held_mib": contender.held_bytes() / 2**20,
            "step_mib": max(x for _, x in taken[name]) if clock.cuda else None,
            "rounds": len(times),
        }
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--shape", choices=SHAPES, help="1b; tiny with --tiny")
    parser.add_argument("--pairs", type=int, help="of a step (8; 4 with --tiny)")
    parser.add_argument("--mean-tokens", type=int, help="of a prompt and of a response (512; 16)")
    parser.add_argument("--rounds", type=int, help="20; 2 with --tiny")
    parser.add_argument("--seconds", type=float, default=400, help="no round begins after that")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, in seconds")
    given = parser.parse_args()
    defaults = ("tiny", 4, 16, 2) if given.tiny else ("1b", 8, 512, 20)
    for name, value in zip(("shape", "pairs", "mean_tokens", "rounds"), defaults, strict=True):
        if getattr(given, name) is None:
            setattr(given, name, value)
    require_gpu("training_step.py", given.tiny)
    return given


def main() -> int:
    """Measure, compare the losses, and write the result."""
    given = arguments()
    setting = Setting(given)
    contenders = {OURS: ours(setting)}
    missing = [] if importlib.util.find_spec("trl") else ["trl"]
    if not missing:
        contenders |= trl_contenders(setting, Path("runs/training_step"))
    found = measured(setting, contenders, given.rounds, given.seconds)
    largest = max(abs(x["first_loss"] - found[OURS]["first_loss"]) for x in found.values())
    result = {
        **provenance(PACKAGES, given.tiny),
        "model": SHAPES[given.shape],
        "pairs": given.pairs,
        "mean_tokens": given.mean_tokens,
        "precision": setting.precision,
        "contenders": found,
        "missing": missing,
        "first_losses_differ": largest,
        "tolerance": TOLERANCE[setting.precision],
    }
    write(result, given.out)
    for name, x in found.items():
        memory = "" if x["step_mib"] is None else f", {x['held_mib']:.0f} + {x['step_mib']:.0f} MiB"
        print(f"{name:36s} {x['step_ms']:9.1f} ms {x['tokens_per_second']:9.0f} tokens/s{memory}")
    for name in missing:
        print(f"{name}: not installed")
    if not largest <= TOLERANCE[setting.precision]:
        print(f"the first losses differ by {largest} nats: these are not the same step")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
