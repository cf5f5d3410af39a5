"""One optimizer step on pairs, ours by layout, next to TRL's DPOTrainer and the paper's way.

    python benchmarks/step.py --device cpu --lengths gsm8k --out results/step_cpu_gsm8k.json
    python benchmarks/step.py --out results/training_step_nvidia_h200.json
    python benchmarks/step.py --tiny

All contenders train the same model from the same weights on the same pairs (prompt, real and
generated response), in the same precision with the same optimizer, in one process, taking turns.
Each step has different pairs. A step is forward, backward and the optimizer's step, without data
loading, logging and gradient clipping. Ours is measured padded (``layout: padded``) and with a
shared prompt, on a GPU also with FlashAttention of packed sequences (torch 2.10), which a run uses
where it is exact. TRL is measured twice: with the reference's log-probs given, as ours has the
opponent's, and with the reference model in memory, TRL's default. The paper authors' way is two
models on padded rows of both responses, with full logits. The result names what is not installed.

Tokens are those of the sequences, with the prompt counted for both responses: neither padding nor
sharing changes the count. On a CPU, where one core should be used (``taskset -c 1``), seconds are
CPU time of the process. ``held_mib`` is what a trainer keeps between steps (weights, optimizer,
reference), ``step_mib`` the most that a step takes beyond that, gradients included: from the
allocator on a GPU, and on a CPU from the process's high-water mark, which is reset before the step.
The losses before the first step must agree.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parent / "gpu"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels" / "benchmarks"))

import numpy as np
import torch
from composer.core import Precision, get_precision_context
from generation import SHAPES
from provenance import provenance, require_gpu
from record import PACKAGES, write
from step_clock import Clock
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from spin_composer import HFSpinLM
from spin_composer.data.pairs import Pair, collate_pairs
from spin_composer.loss import PairLoss
from spin_composer.model.layout.attention import install_segment_attention, set_kernel
from spin_composer.model.layout.choose import LAYOUTS
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.layout.varlen import VarlenKernel, flash_kernel
from spin_composer.model.logprobs import sequence_sums

HERE = Path(__file__).resolve().parent
BETA, LEARNING_RATE = 0.1, 1e-6
PADDED_OURS, SHARED_OURS, FLASH_OURS = "ours, padded", "ours, shared", "ours, shared, flash"
GIVEN, BESIDE = "TRL, reference's log-probs given", "TRL, reference model beside"
AUTHORS = "two models, whole logits"
FIXED = {"long-prompts": (1024, 128, 128), "long-responses": (64, 1024, 1024)}
"""Lengths of prompt, real and generated response of every pair."""
TOLERANCE = {"fp32": 2e-5, "amp_bf16": 2e-2}
"""Largest difference of the first step's mean loss, in nats.

fp32: as in ``benchmarks/parity_trl.py``. bf16: a token's log-prob is off by about 5e-3 nats; 500
random errors add up to 5e-3 x sqrt(500), times beta and the logistic's slope, 0.1 x 0.5, that is
6e-3 for each side of a pair.
"""
_NOISE = 1e-3
"""Noise that is added to the policy's weights, so that the first loss is not log 2."""


@dataclass
class Contender:
    """One way to take a step, and what it holds in memory."""

    step: Callable[[int, bool], float]
    """Takes a step on the batch of that number and returns the loss before it; with False, without
    the optimizer's step."""
    modules: list[nn.Module]
    optimizer: torch.optim.Optimizer

    def held_bytes(self) -> int:
        """Return the bytes of weights and optimizer state."""
        tensors = [p for module in self.modules for p in module.parameters()]
        for state in self.optimizer.state.values():
            tensors += [x for x in state.values() if isinstance(x, torch.Tensor)]
        return sum({x.data_ptr(): x.numel() * x.element_size() for x in tensors}.values())


class Setting:
    """The model, the pairs and the precision, which all contenders share."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.device = torch.device(given.device)
        self.precision = "fp32" if given.device == "cpu" else "amp_bf16"
        words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<s>")),
            pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        )  # fmt: skip
        pairs = self._with_opponent(self._drawn_pairs(given.pairs * given.batches))
        self.batches = [pairs[i : i + given.pairs] for i in range(0, len(pairs), given.pairs)]

    def model(self, noise: float = 0.0) -> Any:
        """Return the opponent, or, with noise on its weights, the policy."""
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
        """Return the precision context of forward passes."""
        return get_precision_context(Precision(self.precision), None)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a contender's optimizer, the one of the paper."""
        return torch.optim.RMSprop(model.parameters(), lr=LEARNING_RATE)

    def to_device(self, batch: Any) -> dict[str, Any]:
        """Return a batch with its tensors on the device."""
        return {
            key: x.to(self.device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()
        }

    def _drawn_pairs(self, count: int) -> list[Pair]:
        """Return pairs of random ids with the requested lengths."""
        draw = np.random.default_rng(0)
        vocabulary = SHAPES[self.given.shape]["vocab_size"]
        return [
            Pair(*(draw.integers(3, vocabulary, length).astype(np.int32) for length in lengths))
            for lengths in self._lengths(count, draw)
        ]

    def _lengths(self, count: int, draw: np.random.Generator) -> list[list[int]]:
        """Return the lengths of prompt, real and generated response of each pair, in tokens."""
        if self.given.lengths == "uniform":
            mean = self.given.mean_tokens
            return draw.integers(mean // 2, mean + mean // 2 + 1, (count, 3)).tolist()
        fixed = FIXED.get(self.given.lengths, self.given.lengths)
        if isinstance(fixed, tuple):
            return [list(fixed)] * count
        known = json.loads((HERE / "lengths" / f"{self.given.lengths}.json").read_text())
        return [known[i] for i in draw.choice(len(known), count)]

    def _with_opponent(self, pairs: list[Pair]) -> list[Pair]:
        """Return the pairs with the log-prob sums of the opponent, as play stores them."""
        model = HFSpinLM.from_model(self.model(), self.tokenizer)
        found = []
        for pair in pairs:  # one by one, to leave no large buffers behind
            with torch.no_grad(), self.autocast():
                real, generated = model.score(self.to_device(collate_pairs([pair])))[0].tolist()  # type: ignore[arg-type]
            found.append(Pair(pair.prompt, pair.real, pair.generated, real, generated))
        return found


def ours(setting: Setting) -> dict[str, Contender]:
    """Return our steps: HFSpinLM on a pair batch, in the precision context that Composer uses."""
    model = HFSpinLM.from_model(setting.model(_NOISE), setting.tokenizer)
    model.pair_loss = PairLoss("logistic", BETA)
    model.train()
    layers = install_segment_attention(model.model)
    optimizer = setting.optimizer(model)
    batches: Any = [setting.to_device(collate_pairs(pairs)) for pairs in setting.batches]

    def step(layout: str, kernel: VarlenKernel | None, number: int, learns: bool) -> float:
        batch, model.layout = batches[number], LAYOUTS[layout]
        set_kernel(layers, kernel)
        with setting.autocast():
            loss = model.loss(model(batch), batch)
        loss.backward()
        if learns:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    ways: dict[str, tuple[str, VarlenKernel | None]] = {
        PADDED_OURS: ("padded", None), SHARED_OURS: ("shared", None)
    }  # fmt: skip
    flash = flash_kernel()
    if flash is not None and setting.device.type == "cuda":
        ways[FLASH_OURS] = ("shared", flash)
    return {
        name: Contender(functools.partial(step, *way), [model], optimizer)
        for name, way in ways.items()
    }


def authors(setting: Setting) -> Contender:
    """Return the step with two models, which both compute full logits of both responses."""
    policy, opponent = setting.model(_NOISE).train(), setting.model().eval()
    optimizer = setting.optimizer(policy)

    def sums(model: Any, batch: Any) -> torch.Tensor:
        """Return log-prob sums [B, 2]."""
        inputs = PADDED.arrange(batch)
        logits = model(**inputs.kwargs, use_cache=False).logits.float()
        logps = logits.log_softmax(-1).flatten(0, 1)[inputs.rows]
        logps = logps.gather(1, batch["targets"][:, None])[:, 0]
        return sequence_sums(logps, batch["cu_scored"]).view(-1, 2)

    def step(number: int, learns: bool) -> float:
        batch: Any = setting.to_device(collate_pairs(setting.batches[number]))
        with setting.autocast():
            with torch.no_grad():
                reference = sums(opponent, batch)
            real, generated = (sums(policy, batch) - reference).unbind(1)
            loss = -torch.nn.functional.logsigmoid(BETA * (real - generated)).mean()
        loss.backward()
        if learns:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Contender(step, [policy, opponent], optimizer)


def trl_contenders(setting: Setting, folder: Path) -> dict[str, Contender]:
    """Return TRL's two steps; they share a policy."""
    import datasets
    import trl

    class Unprepared(trl.DPOTrainer):
        """Accepts rows of token ids as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    batches = [
        [{"prompt_ids": p.prompt.tolist(), "chosen_ids": p.real.tolist(),
          "rejected_ids": p.generated.tolist(), "ref_chosen_logps": p.opponent_real,
          "ref_rejected_logps": p.opponent_generated}
         for p in pairs]
        for pairs in setting.batches
    ]  # fmt: skip
    on_cpu = setting.device.type == "cpu"
    config = trl.DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=setting.given.pairs, beta=BETA,
        max_length=None, loss_type=["sigmoid"], gradient_checkpointing=False, report_to=[],
        use_cpu=on_cpu,
        bf16=setting.precision == "amp_bf16", save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer: Any = Unprepared(
        model=setting.model(_NOISE),
        ref_model=setting.model(),
        args=config,
        train_dataset=datasets.Dataset.from_list(batches[0]),
        processing_class=setting.tokenizer,
    )
    optimizer = setting.optimizer(trainer.model)
    prepared, stepper = trainer.accelerator.prepare(trainer.model, optimizer)
    prepared.train()
    inputs = [setting.to_device(trainer.data_collator(rows)) for rows in batches]

    def step(given: bool, number: int, learns: bool) -> float:
        trainer.precompute_ref_logps = given
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(prepared, inputs[number])
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


def measured(
    setting: Setting, contenders: dict[str, Contender], rounds: int, seconds: float
) -> Any:
    """Return each contender's results; they take turns, so that clock drift affects all alike."""
    clock, end = Clock(setting.device), time.monotonic() + seconds
    # TRL's two contenders share a policy, so no one learns before all first losses are known.
    firsts = {name: clock.once(x.step, 0, learns=False)[0] for name, x in contenders.items()}
    for contender in contenders.values():
        clock.once(contender.step, 0)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        if time.monotonic() > end:
            break
        for name, contender in contenders.items():
            taken[name].append(clock.once(contender.step, number % len(setting.batches))[1:])
    pairs = [pair for batch in setting.batches for pair in batch]
    tokens = sum(2 * len(p.prompt) + len(p.real) + len(p.generated) for p in pairs)
    tokens /= len(setting.batches)
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
            "step_mib": max(x for _, x in taken[name]),
            "rounds": len(times),
        }
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=SHAPES, help="1b; 135m on a CPU; tiny with --tiny")
    parser.add_argument("--pairs", type=int, help="of a step (8; 4 on a CPU)")
    parser.add_argument(
        "--lengths", choices=("uniform", "gsm8k", "oasst", *FIXED), default="uniform",
        help="tokens of prompts and responses: random, those of a data set, or all the same",
    )  # fmt: skip
    parser.add_argument("--mean-tokens", type=int, help="of uniform lengths (512; 16 with --tiny)")
    parser.add_argument("--batches", type=int, default=4, help="batches, used in turn")
    parser.add_argument("--rounds", type=int, help="20; 4 on a CPU; 2 with --tiny")
    parser.add_argument("--seconds", type=float, help="no round starts later (400; 1500 on a CPU)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, in seconds")
    given = parser.parse_args()
    if given.tiny:
        given.device = "cpu"
    cpu = ("tiny", 4, 16, 2, 400) if given.tiny else ("135m", 4, 512, 4, 1500)
    defaults = cpu if given.device == "cpu" else ("1b", 8, 512, 20, 400)
    names = ("shape", "pairs", "mean_tokens", "rounds", "seconds")
    for name, value in zip(names, defaults, strict=True):
        if getattr(given, name) is None:
            setattr(given, name, value)
    require_gpu("step.py", given.device == "cpu")
    return given


def main() -> int:
    """Measure, compare the losses, and write the result."""
    given = arguments()
    setting = Setting(given)
    contenders = {**ours(setting), AUTHORS: authors(setting)}
    missing = [] if importlib.util.find_spec("trl") else ["trl"]
    if not missing:
        contenders |= trl_contenders(setting, Path("runs/step"))
    found = measured(setting, contenders, given.rounds, given.seconds)
    largest = max(abs(x["first_loss"] - found[PADDED_OURS]["first_loss"]) for x in found.values())
    pairs = [pair for batch in setting.batches for pair in batch]
    columns = zip(*((p.prompt, p.real, p.generated) for p in pairs), strict=True)
    result = {
        **provenance(PACKAGES, given.tiny),
        "model": SHAPES[given.shape],
        "pairs": given.pairs,
        "lengths": given.lengths,
        "mean_lengths": [statistics.mean(len(x) for x in column) for column in columns],
        "precision": setting.precision,
        "contenders": found,
        "missing": missing,
        "first_losses_differ": largest,
        "tolerance": TOLERANCE[setting.precision],
    }
    write(result, given.out)
    for name, x in found.items():
        memory = f", {x['held_mib']:.0f} + {x['step_mib']:.0f} MiB"
        print(f"{name:36s} {x['step_ms']:9.1f} ms {x['tokens_per_second']:9.0f} tokens/s{memory}")
    for name in missing:
        print(f"{name}: not installed")
    if not largest <= TOLERANCE[setting.precision]:
        print(f"the first losses differ by {largest} nats: they do not take the same step")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
