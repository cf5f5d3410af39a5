"""One game of :mod:`product` in a process of its own: ``python benchmarks/gpu/game.py SPEC.json``.

Plays what the spec says by Composer's Trainer, and leaves in the run's folder: its store,
checkpoints and exports, ``journal.txt`` (``tests/chaos`` compares it) and, at its end,
``figures.json``. The same command resumes where a killed process stopped. A spec may name the
moment at which the process is to kill itself by SIGKILL.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from composer import Callback, Trainer
from composer.loggers import InMemoryLogger
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer import (
    SPIN,
    HFSpinLM,
    HuggingFaceExporter,
    SpinScheduler,
    build_spin_dataloader,
    build_spin_evaluator,
)
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.fsdp import iter_full_parameters
from spin_composer.model.layout.attention import install_segment_attention
from spin_composer.model.unwrap import composer_model, inner_model
from spin_composer.report.history import LOSS, NLL
from tests.chaos.compare import JOURNAL

FIGURES = "figures.json"
EXPORTS, ADAPTERS = "checkpoints/huggingface", "adapters"
PLAY, TRAINING = "play", "training"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
BETA, SEED = 0.5, 7


@dataclass(frozen=True)
class Spec:
    """A game: two epochs an iteration, replay, and everything that is written in ``folder``."""

    folder: str
    model: str
    """Folder of a model and its tokenizer."""
    rows: str
    held_out: str
    device: str
    """``cpu`` or ``gpu``, as Composer says it."""
    precision: str
    batch_size: int
    """Pairs."""
    microbatch_size: int | str
    """Pairs of a forward pass, or ``auto``."""
    unit_size: int
    learning_rate: float
    max_seq_len: int = 64
    max_new_tokens: int = 16
    iterations: int = 2
    deterministic: bool = False
    lora: bool = False
    fsdp: bool = False
    """Sharded by FSDP1, or by FSDP2 where the environment has ``FSDP_VERSION=2``."""
    kill: str = ""
    """``play`` or ``training``: SIGKILL at the ``nth`` unit or batch of this process."""
    nth: int = 0

    def save(self, path: Path) -> Path:
        """Write the spec as JSON; return its path."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        return path

    def but(self, **changes: Any) -> Spec:
        """Return the spec with other values."""
        return replace(self, **changes)


class Journal(Callback):
    """Notes units and losses as ``tests/chaos`` does; kills the process at the spec's moment."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.path = Path(spec.folder) / JOURNAL
        self.losses: list[float] = []
        self.counts = {PLAY: 0, TRAINING: 0}

    def note(self, line: str) -> None:
        """Add a line, which a kill that follows does not take away."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def hit(self, moment: str) -> None:
        """Count a moment; at the spec's this process ends."""
        self.counts[moment] += 1
        if self.spec.kill == moment and self.counts[moment] >= self.spec.nth:
            self.note(f"killed {moment}")
            os.kill(os.getpid(), signal.SIGKILL)

    def watch_play(self) -> None:
        """Note every unit that is generated."""
        generate = HFGenerator.generate

        def watched(*args: Any, **kwargs: Any) -> Any:
            responses = generate(*args, **kwargs)
            self.note("generated")
            self.hit(PLAY)
            return responses

        HFGenerator.generate = watched  # type: ignore[method-assign]

    def batch_end(self, state: Any, logger: Any) -> None:
        """Note the loss of the batch."""
        del logger
        loss = float(state.total_loss_dict[LOSS])
        self.losses.append(loss)
        self.note(f"batch {int(state.timestamp.batch)} {loss!r}")
        self.hit(TRAINING)


def policy_of(spec: Spec, tokenizer: Any) -> HFSpinLM:
    """Return the model that plays, with LoRA if the spec says so."""
    if not spec.lora:
        return HFSpinLM(tokenizer, spec.model)
    import peft

    torch.manual_seed(SEED)
    model: Any = AutoModelForCausalLM.from_pretrained(spec.model, **full_precision())
    return HFSpinLM.from_model(peft.get_peft_model(model, peft.LoraConfig(**LORA)), tokenizer)


def full_precision() -> dict[str, Any]:
    """Return the argument of ``from_pretrained`` that asks for fp32, by the version's name."""
    import transformers

    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    return {name: torch.float32}


def trainer_of(spec: Spec, journal: Journal) -> Trainer:
    """Return the Trainer of the game, resumed if the folder holds a checkpoint."""
    folder = Path(spec.folder)
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    model = policy_of(spec, tokenizer)
    data = {"hf_name": spec.rows, "split": "train", "max_seq_len": spec.max_seq_len}
    exporters = [HuggingFaceExporter(str(folder / EXPORTS), merge_adapters=spec.lora)]
    if spec.lora:
        exporters.append(HuggingFaceExporter(str(folder / ADAPTERS)))
    return Trainer(
        model=model,
        train_dataloader=build_spin_dataloader(
            tokenizer, spec.batch_size, dataset=data, pin_memory=False
        ),
        eval_dataloader=build_spin_evaluator(
            tokenizer, spec.batch_size, dataset={**data, "hf_name": spec.held_out}, pin_memory=False
        ),
        optimizers=torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=spec.learning_rate
        ),
        schedulers=SpinScheduler(t_warmup="0.1dur"),
        algorithms=[
            SPIN(
                beta=BETA,
                store=str(folder / "self-play"),
                unit_size=spec.unit_size,
                deterministic=spec.deterministic,
                generation={"max_new_tokens": spec.max_new_tokens, "batch_size": spec.unit_size},
            )
        ],
        callbacks=[journal, *exporters],
        loggers=[InMemoryLogger()],
        max_duration=f"{spec.iterations}iter",
        device_train_microbatch_size=spec.microbatch_size,
        device=spec.device,
        precision=spec.precision,
        parallelism_config={"fsdp": {"mixed_precision": "DEFAULT"}} if spec.fsdp else None,
        save_folder=str(folder / "checkpoints"),
        save_interval="5ba",
        save_num_checkpoints_to_keep=2,
        autoresume=True,
        run_name="gpu",
        seed=SEED,
        progress_bar=False,
    )


def rows_of_ids(spec: Spec, tokenizer: Any, count: int = 8) -> torch.Tensor:
    """Return token ids [count, T] of held-out rows, cut to the shortest."""
    with open(spec.held_out, encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    ids = [tokenizer(row["prompt"] + row["response"])["input_ids"] for row in rows]
    width = min(map(len, ids))
    return torch.tensor([x[:width] for x in ids])


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return fp32 logits [B, T, V] on the CPU, without autocast."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device)).logits.float().cpu()
    model.train(was_training)
    return logits


def export_figures(trainer: Trainer, spec: Spec) -> dict[str, Any]:
    """Load the last export by the Auto classes; compare weights and logits with the policy's."""
    torch.backends.cuda.matmul.allow_tf32 = False  # Composer switches it on
    model = composer_model(trainer.state)
    device = next(model.parameters()).device
    place = Path(spec.folder) / EXPORTS / f"iter{spec.iterations - 1}"
    ids = rows_of_ids(spec, AutoTokenizer.from_pretrained(place))
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, **full_precision()).to(device)
    found: dict[str, Any] = {}
    policy: Any = model.model
    if not spec.lora:
        # The weights that the optimizer has: FSDP runs forwards with copies in lower precision.
        own = {
            w.name.removeprefix("model."): w.tensor.detach().clone()
            for w in iter_full_parameters(model)
        }
        saved = dict(loaded.named_parameters())
        same = own.keys() == saved.keys() and all(torch.equal(own[n], saved[n]) for n in saved)
        found["weights_equal"] = same
        if spec.fsdp:
            policy = AutoModelForCausalLM.from_config(loaded.config).to(device)
            policy.load_state_dict(own, strict=False)
    mine, theirs = logits_of(policy, ids), logits_of(loaded, ids)
    found |= {"logits_gap": _gap(mine, theirs), "largest_logit": float(mine.abs().max())}
    if spec.lora:
        found |= _adapter_figures(spec, ids, mine, device)
    return found


def _adapter_figures(
    spec: Spec, ids: torch.Tensor, mine: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    import peft

    base: Any = AutoModelForCausalLM.from_pretrained(spec.model, **full_precision()).to(device)
    before = logits_of(base, ids)
    place = Path(spec.folder) / ADAPTERS / f"iter{spec.iterations - 1}"
    adapted = peft.PeftModel.from_pretrained(base, str(place))
    return {
        "adapters_logits_gap": _gap(mine, logits_of(adapted, ids)),
        "moved_from_base": _gap(mine, before),
    }


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def figures_of(trainer: Trainer, journal: Journal, seconds: float) -> dict[str, Any]:
    """Return what the game came to."""
    (logger,) = [x for x in trainer.logger.destinations if isinstance(x, InMemoryLogger)]
    books = json.loads((Path(journal.spec.folder) / "self-play/iterations.json").read_text())
    records = books["iterations"]
    bounds = [0, *[int(record["batches"]) for record in records]]
    firsts = [sum(bounds[: i + 1]) for i in range(len(records))]
    whole = len(journal.losses) == sum(bounds)  # else this process began midway
    gaps = logger.data.get("spin/first_batch_gap", [])
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {
        "seconds": seconds,
        "batches": sum(bounds),
        "first_losses": [journal.losses[i] for i in firsts] if whole else [],
        "first_batch_gaps": [float(value) for _, value in gaps],
        "mean_losses": [record[LOSS] for record in records],
        "held_out_nll": [
            books["baseline"][f"eval/eval/{NLL}"],
            *[record[f"eval/eval/{NLL}"] for record in records],
        ],
        "play_seconds": [record["spin/play_seconds"] for record in records],
        "generated_tokens_per_second": [
            record["spin/generated_tokens_per_second_per_rank"] for record in records
        ],
        "layout": composer_model(trainer.state).layout.name,
        "rows_by_flash_attention": all(
            layer.spin_switch.kernel is not None
            for layer in install_segment_attention(inner_model(composer_model(trainer.state).model))
        ),
        "microbatch_size": trainer.state.device_train_microbatch_size,
        "peak_mib": peak,
    }


def main() -> int:
    """Play the game of the spec and write its figures."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(spec.folder).mkdir(parents=True, exist_ok=True)
    journal = Journal(spec)
    journal.note("start")
    journal.watch_play()
    started = time.perf_counter()
    trainer = trainer_of(spec, journal)
    trainer.eval()
    trainer.fit()
    found = figures_of(trainer, journal, time.perf_counter() - started)
    found |= export_figures(trainer, spec)
    trainer.close()
    assert math.isfinite(sum(found["mean_losses"])), found
    (Path(spec.folder) / FIGURES).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
