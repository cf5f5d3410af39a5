"""Supervised fine-tuning by llm-foundry's training command: of base models, and as SPIN's rival."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_composer.report.books import NLL
from spin_composer.settings.section import Config


@dataclass(frozen=True)
class SftResult:
    """What a run of SFT left."""

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
    *,
    duration: str,
    batch_size: int,
    microbatch_size: int,
    optimizer: Config,
    scheduler: Config,
    gradient_clipping: float,
    max_seq_len: int,
    seed: int,
    progress_bar: bool = False,
) -> SftResult:
    """Fine-tune a model on rows, and save it.

    Args:
        model: Folder of the model and tokenizer to start from.
        train_rows: jsonl of prompt and response.
        held_out_rows: The same, for the held-out NLL.
        folder: Where the trained model goes.
        duration: Composer's: ``3ep`` or ``100ba``.
        batch_size: Rows per optimizer step.
        microbatch_size: Rows per forward pass: few where they are long, for the processor's caches.
        optimizer: llm-foundry's section: name, lr, ...
        scheduler: llm-foundry's section: name, t_warmup, ...
        gradient_clipping: Norm that gradients are clipped to.
        max_seq_len: Longest sequence.
        seed: Of the order of the rows.
        progress_bar: Show one.
    """
    from omegaconf import OmegaConf

    from spin_composer.foundry.command import train

    config = {
        "run_name": f"sft-{folder.name}",
        "seed": seed,
        "max_seq_len": max_seq_len,
        "model": {
            "name": "hf_causal_lm",
            "pretrained_model_name_or_path": str(model),
            "init_device": "cpu",
            "trust_remote_code": False,
        },
        "tokenizer": {"name": str(model), "kwargs": {"model_max_length": max_seq_len}},
        "train_loader": _train_loader(train_rows, max_seq_len),
        "eval_loader": {
            "name": "spin",  # the rows' ids as SPIN measures them
            "dataset": {
                "hf_name": str(held_out_rows),
                "split": "train",
                "max_seq_len": max_seq_len,
            },
            "num_workers": 0,
            "pin_memory": False,
        },
        "max_duration": duration,
        "eval_interval": duration,
        "optimizer": dict(optimizer),
        "scheduler": dict(scheduler),
        "algorithms": {
            "gradient_clipping": {
                "clipping_type": "norm",
                "clipping_threshold": gradient_clipping,
            }
        },
        "global_train_batch_size": batch_size,
        "device_train_microbatch_size": microbatch_size,
        "device_eval_batch_size": microbatch_size,
        "precision": "fp32",
        "progress_bar": progress_bar,
        "log_to_console": False,
        "log_config": False,
        "python_log_level": "warning",
    }
    trainer = train(OmegaConf.create(config))
    nll = trainer.state.eval_metrics["eval"][NLL].compute()
    time = trainer.state.timestamp
    trainer.close()
    composer_model: Any = trainer.state.model
    composer_model.model.save_pretrained(folder)
    composer_model.tokenizer.save_pretrained(folder)
    return SftResult(folder, float(nll), int(time.batch), int(time.token))


def _train_loader(rows: Path, max_seq_len: int) -> dict[str, Any]:
    return {
        "name": "finetuning",
        "dataset": {
            "hf_name": "json",
            "hf_kwargs": {"data_files": str(rows)},
            "split": "train",
            "max_seq_len": max_seq_len,
            "decoder_only_format": True,
            "allow_pad_trimming": True,
            "shuffle": True,
        },
        "drop_last": True,
        "num_workers": 0,
        "pin_memory": False,
        "prefetch_factor": None,
        "persistent_workers": False,
    }
