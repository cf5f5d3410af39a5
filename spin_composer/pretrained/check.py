"""Checks of a YAML's model section with its tokenizer, before rows and weights are loaded.

llm-foundry builds the tokenizer, then the loaders, then the model. Therefore SPIN's loader runs
these checks, with what the config transform passes to it (``train_loader.run``). Without a YAML the
model itself calls the functions of :mod:`spin_composer.pretrained.tokenizer_limits`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from spin_composer.distributed import from_rank_zero
from spin_composer.errors import InputError, format_value
from spin_composer.pretrained.limits import ModelLimits, build_config, read_limits
from spin_composer.pretrained.tokenizer_limits import check_tokenizer
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LoaderRun(TypedDict):
    """What the config transform passes to SPIN's loaders: ``train_loader.run``."""

    model: Config
    """The ``model`` section."""
    max_new_tokens: int
    """Tokens of the longest generated response; 0: none is generated."""
    samples_per_iteration: int | str
    responses_per_prompt: int
    """The settings of ``algorithms.spin``."""
    max_eval_tokens: int
    """Tokens of the longest row of llm-foundry's evaluation loaders; 0: there is none."""
    saves: bool
    """The run writes checkpoints or exports."""
    legacy_turns: bool
    """It was started before ``tokenize`` was a setting, with rows tokenized turn by turn."""


def check_run(run: LoaderRun, tokenizer: PreTrainedTokenizerBase) -> ModelLimits:
    """Check a YAML's run before its rows are read; a collective.

    Returns:
        The model's limits, for :func:`~spin_composer.data.row_limits.check_rows`.

    Raises:
        InputError: A line for each problem.
    """
    model, limits = run["model"], read_limits(run["model"])
    resized = "pretrained_model_name_or_path" not in model  # MPT is always resized if necessary
    resized = resized or bool(model.get("allow_embedding_resizing"))
    check_tokenizer(tokenizer, limits, resized)
    if resized and limits.vocabulary_size is not None:
        limits = replace(limits, vocabulary_size=max(limits.vocabulary_size, len(tokenizer)))
    if isinstance(model.get("peft_config"), Mapping):
        from_rank_zero(lambda: _check_lora_targets(model))
    if run.get("saves"):
        from_rank_zero(lambda: _dry_run(model, tokenizer))
    longest = run.get("max_eval_tokens", 0)
    if limits.learned_positions and limits.positions is not None and longest > limits.positions:
        raise InputError(
            f"eval_loader.dataset.max_seq_len={longest} is more than the model's "
            f"{limits.positions} positions, which are learned: a longer row cannot be evaluated. "
            f"Set it to {limits.positions}."
        )
    return limits


def _check_lora_targets(model: Config) -> None:
    """Reject LoRA on modules that the model does not have; peft would fail only after loading."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    targets = model["peft_config"].get("target_modules")
    if targets == "all-linear" or not isinstance(targets, (str, list)):
        return
    with init_empty_weights(include_buffers=False):
        trusted = bool(model.get("trust_remote_code", False))
        twin = AutoModelForCausalLM.from_config(build_config(model), trust_remote_code=trusted)
    names = [name for name, _ in twin.named_modules()]
    if isinstance(targets, str):
        found = any(re.fullmatch(targets, name) for name in names)
    else:
        found = any(f".{name}".endswith(f".{target}") for name in names for target in targets)
    if not found:
        leaves = sorted({n.split(".")[-1] for n, m in twin.named_modules() if hasattr(m, "weight")})
        raise InputError(
            f"model.peft_config.target_modules={format_value(targets)} names no module of a "
            f"{type(twin).__name__}. It has {', '.join(leaves)}."
        )


def _dry_run(model: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Try to write the parts of checkpoints and exports that need no weights."""
    from spin_composer.pretrained.config import read_generation_config
    from spin_composer.pretrained.dry_run import dry_run_generation_config, dry_run_tokenizer

    name = model.get("pretrained_model_name_or_path")
    dry_run_tokenizer(tokenizer, build_config(model))
    if name is not None:
        generation = read_generation_config(name, model.get("use_auth_token", False))
        dry_run_generation_config(generation, f"model.pretrained_model_name_or_path={name}")
