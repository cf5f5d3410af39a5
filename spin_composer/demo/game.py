"""Run a YAML like the demo's by Composer's Trainer, with or without llm-foundry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_composer.demo.optimizer import make_optimizer
from spin_composer.settings.section import Config
from spin_composer.settings.yaml import read_yaml, to_mapping, validate

if TYPE_CHECKING:
    from composer import Trainer

    from spin_composer.model.lm import HFSpinLM

_TRAINER = (
    "run_name", "seed", "max_duration", "eval_interval", "eval_subset_num_batches", "save_folder",
    "save_interval", "save_num_checkpoints_to_keep", "precision", "device_train_microbatch_size",
    "progress_bar",
)  # fmt: skip
"""The keys of a YAML that are also arguments of Composer's Trainer."""


def play_game(path: Path, overrides: Sequence[str]) -> Trainer:
    """Train from the demo's YAML, and return Composer's Trainer.

    ``spin-composer train`` builds the same run through llm-foundry, which need not be installed
    here.

    Args:
        path: The YAML: ``demo.yaml`` or a copy of it.
        overrides: ``key=value`` settings.

    Raises:
        InputError: If a setting cannot work.
    """
    return run_game(to_mapping(read_yaml(path, overrides)))


def run_game(config: Config, model_class: type[HFSpinLM] | None = None) -> Trainer:
    """Evaluate and train from a YAML's settings, and return Composer's Trainer.

    Args:
        config: The sections of ``demo.yaml``; ``gradient_clipping`` and what the Trainer has
            defaults for may be absent.
        model_class: The policy's, in place of HFSpinLM.

    Raises:
        InputError: If a setting cannot work.
    """
    from composer import Trainer
    from composer.algorithms import GradientClipping
    from transformers import AutoTokenizer

    from spin_composer.algorithm import SPIN
    from spin_composer.data.loader import build_spin_dataloader, build_spin_evaluator
    from spin_composer.export.callback import HuggingFaceExporter
    from spin_composer.model.lm import HFSpinLM
    from spin_composer.schedule import SpinScheduler

    validate(config)
    tokenizer = AutoTokenizer.from_pretrained(
        config["tokenizer"]["name"], **config["tokenizer"]["kwargs"]
    )
    model = (model_class or HFSpinLM)(tokenizer, **_arguments(config["model"]))
    algorithms = config["algorithms"]
    clipping = [GradientClipping(**c) for n, c in algorithms.items() if n == "gradient_clipping"]
    trainer = Trainer(
        model=model,
        train_dataloader=build_spin_dataloader(
            tokenizer, config["global_train_batch_size"], **_arguments(config["train_loader"])
        ),
        eval_dataloader=build_spin_evaluator(
            tokenizer, config["device_eval_batch_size"], **_arguments(config["eval_loader"])
        ),
        optimizers=make_optimizer(model.parameters(), config["optimizer"]),
        schedulers=SpinScheduler(**_arguments(config["scheduler"])),
        algorithms=[SPIN(**algorithms["spin"]), *clipping],
        callbacks=[HuggingFaceExporter(**config["callbacks"]["hf_exporter"])],
        **{name: config[name] for name in _TRAINER if name in config},
    )
    trainer.eval()
    trainer.fit()
    return trainer


def _arguments(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}
