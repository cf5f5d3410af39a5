"""Supervised fine-tuning by Composer's Trainer, for base models and as SPIN's baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spin_composer.demo.optimizer import make_optimizer
from spin_composer.report.history import NLL
from spin_composer.settings.section import Config
from spin_composer.store.durable import apply_umask

if TYPE_CHECKING:
    from composer.core import DataSpec
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SftRecipe:
    """The settings of an SFT run."""

    duration: str
    """Composer's: ``3ep`` or ``100ba``."""
    batch_size: int
    """Rows per optimizer step."""
    microbatch_size: int
    """Rows per forward pass: few where they are long, for the processor's caches."""
    optimizer: Config
    """The YAML's section: its name, lr and so on."""
    t_warmup: str
    """Of the learning rate, as Composer's: ``0.1dur``."""
    alpha_f: float = 0.0
    """Multiplier of the learning rate at the end; 1 keeps it constant after the warm-up."""
    gradient_clipping: float
    """Norm that gradients are clipped to."""
    max_seq_len: int
    """Longest sequence, in tokens."""
    seed: int
    """Of the run."""
    precision: str = "fp32"
    """Composer's."""
    dataset: Config = field(default_factory=dict)
    """More settings of ``train_loader.dataset``, for the rows of training and evaluation."""
    stop_early: str | None = None
    """How often the held-out rows are evaluated, as Composer's intervals (``10ba``): the weights
    with the lowest NLL are kept, those that the run begins with among them. None: the last ones."""


@dataclass(frozen=True)
class SftResult:
    """The result of an SFT run."""

    folder: Path
    """The model and its tokenizer, as ``from_pretrained`` reads them."""
    held_out_nll: float
    """Nats per response token on the held-out rows."""
    steps: int
    """Optimizer steps of the run; ``best_step`` tells which of them the model is of."""
    tokens: int
    """Tokens of prompts and responses that were trained on, padding excluded."""
    best_step: int
    """The step that the model is of: the last one, unless the recipe stops early."""
    last: Path
    """The model as it was at the end, to go on from; ``folder``, unless the recipe stops early."""
    last_nll: float
    """The held-out NLL of that one."""


def sft(
    model: Path,
    train_rows: Path,
    held_out_rows: Path,
    folder: Path,
    recipe: SftRecipe,
    progress_bar: bool = False,
) -> SftResult:
    """Fine-tune a model on rows, and save it; the learning rate decays linearly.

    Args:
        model: Folder of the model and tokenizer to start from.
        train_rows: jsonl of prompt and response.
        held_out_rows: The same, for the held-out NLL.
        folder: Where the trained model goes.
        recipe: The settings of the training.
        progress_bar: Show one.
    """
    from composer import Trainer
    from composer.algorithms import GradientClipping
    from composer.optim import LinearWithWarmupScheduler
    from transformers import AutoTokenizer

    from spin_composer.data.loader import build_spin_evaluator
    from spin_composer.demo.best_weights import BestWeights
    from spin_composer.demo.rates import RatesOfTheStep
    from spin_composer.model.lm import HFSpinLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = HFSpinLM(tokenizer, str(model), use_train_metrics=False)
    best = BestWeights()
    trainer = Trainer(
        model=policy,
        train_dataloader=_train_loader(tokenizer, train_rows, recipe),
        eval_dataloader=build_spin_evaluator(
            tokenizer,
            recipe.microbatch_size,
            dataset=_dataset(held_out_rows, recipe),
            pin_memory=False,
        ),
        optimizers=make_optimizer(policy.parameters(), recipe.optimizer),
        schedulers=LinearWithWarmupScheduler(t_warmup=recipe.t_warmup, alpha_f=recipe.alpha_f),
        algorithms=[GradientClipping("norm", recipe.gradient_clipping)],
        callbacks=[RatesOfTheStep(), *([best] if recipe.stop_early else [])],
        max_duration=recipe.duration,
        eval_interval=recipe.stop_early or recipe.duration,
        device_train_microbatch_size=recipe.microbatch_size,
        accumulate_train_batch_on_tokens=True,
        precision=recipe.precision,
        seed=recipe.seed,
        run_name=f"sft-{folder.name}",
        progress_bar=progress_bar,
    )
    if recipe.stop_early:
        trainer.eval()
    trainer.fit()
    nll = last_nll = float(trainer.state.eval_metrics["eval"][NLL].compute())
    time = trainer.state.timestamp
    step = int(time.batch)
    trainer.close()
    last = folder
    if recipe.stop_early:
        last = folder / "last"
        policy.model.save_pretrained(str(last))
        tokenizer.save_pretrained(last)
        nll, step = best.restore(policy.model)
    policy.model.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    apply_umask(folder)
    return SftResult(folder, nll, int(time.batch), int(time.token), step, last, last_nll)


def _dataset(rows: Path, recipe: SftRecipe) -> Config:
    where = {"hf_name": str(rows), "split": "train", "max_seq_len": recipe.max_seq_len}
    return {**where, **recipe.dataset}


def _train_loader(tokenizer: PreTrainedTokenizerBase, rows: Path, recipe: SftRecipe) -> DataSpec:
    """Return shuffled SFT batches, tokenized like SPIN's rows."""
    from composer.utils import dist
    from torch.utils.data import DataLoader

    from spin_composer.data.held_out import HeldOutRows, held_out_collator, held_out_data_spec
    from spin_composer.data.sources import read_rows
    from spin_composer.data.tokenization import build_examples
    from spin_composer.settings.dataset import read_config

    config = read_config(_dataset(rows, recipe), "train_loader.dataset")
    examples = HeldOutRows(build_examples(read_rows(config), tokenizer, config))
    loader = DataLoader(
        examples,
        batch_size=recipe.batch_size,
        sampler=dist.get_sampler(examples, shuffle=True, drop_last=True),
        drop_last=True,
        collate_fn=held_out_collator(tokenizer),
    )
    return held_out_data_spec(loader)
