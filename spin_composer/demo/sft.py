"""Supervised fine-tuning by Composer's Trainer, for base models and as SPIN's baseline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spin_composer.report.history import NLL
from spin_composer.settings.section import Config

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
    """Arguments of Composer's DecoupledAdamW: lr, betas, ..."""
    t_warmup: str
    """Of the learning rate, as Composer's: ``0.1dur``."""
    gradient_clipping: float
    """Norm that gradients are clipped to."""
    max_seq_len: int
    """Longest sequence, in tokens."""
    seed: int
    """Of the run."""


@dataclass(frozen=True)
class SftResult:
    """The result of an SFT run."""

    folder: Path
    """The model and its tokenizer, as ``from_pretrained`` reads them."""
    held_out_nll: float
    """Nats per response token on the held-out rows."""
    steps: int
    tokens: int
    """Tokens of prompts and responses that were trained on, padding excluded."""


def sft(
    model: Path,
    train_rows: Path,
    held_out_rows: Path,
    folder: Path,
    recipe: SftRecipe,
    progress_bar: bool = False,
) -> SftResult:
    """Fine-tune a model on rows, and save it; the learning rate decays to 0.

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
    from composer.optim import DecoupledAdamW, LinearWithWarmupScheduler
    from transformers import AutoTokenizer

    from spin_composer.data.loader import build_spin_evaluator
    from spin_composer.model.lm import HFSpinLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = HFSpinLM(tokenizer, str(model), use_train_metrics=False)
    held_out = {"hf_name": str(held_out_rows), "split": "train", "max_seq_len": recipe.max_seq_len}
    trainer = Trainer(
        model=policy,
        train_dataloader=_train_loader(tokenizer, train_rows, recipe),
        eval_dataloader=build_spin_evaluator(
            tokenizer, recipe.microbatch_size, dataset=held_out, pin_memory=False
        ),
        optimizers=DecoupledAdamW(policy.parameters(), **recipe.optimizer),
        schedulers=LinearWithWarmupScheduler(t_warmup=recipe.t_warmup),
        algorithms=[GradientClipping("norm", recipe.gradient_clipping)],
        max_duration=recipe.duration,
        eval_interval=recipe.duration,
        device_train_microbatch_size=recipe.microbatch_size,
        accumulate_train_batch_on_tokens=True,
        precision="fp32",
        seed=recipe.seed,
        run_name=f"sft-{folder.name}",
        progress_bar=progress_bar,
    )
    trainer.fit()
    nll = trainer.state.eval_metrics["eval"][NLL].compute()
    time = trainer.state.timestamp
    trainer.close()
    policy.model.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    return SftResult(folder, float(nll), int(time.batch), int(time.token))


def _train_loader(tokenizer: PreTrainedTokenizerBase, rows: Path, recipe: SftRecipe) -> DataSpec:
    """Return shuffled SFT batches, tokenized like SPIN's rows."""
    from composer.utils import dist
    from torch.utils.data import DataLoader

    from spin_composer.data.held_out import HeldOutRows, held_out_collator, held_out_data_spec
    from spin_composer.data.sources import read_rows
    from spin_composer.data.tokenization import build_examples
    from spin_composer.settings.dataset import read_config

    dataset = {"hf_name": str(rows), "split": "train", "max_seq_len": recipe.max_seq_len}
    config = read_config(dataset, "train_loader.dataset")
    examples = HeldOutRows(build_examples(read_rows(config), tokenizer, config))
    loader = DataLoader(
        examples,
        batch_size=recipe.batch_size,
        sampler=dist.get_sampler(examples, shuffle=True, drop_last=True),
        drop_last=True,
        collate_fn=held_out_collator(tokenizer),
    )
    return held_out_data_spec(loader)
