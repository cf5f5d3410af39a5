"""What a run's tokenizer and rows must fit, known from the model's config, before its weights.

llm-foundry builds the tokenizer, then the loaders, then the model; SPIN's loader therefore checks
here what the config transform told it of the run (``train_loader.run``). Without a YAML the
algorithm calls the same functions with the model that it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from composer.utils import dist

from spin_composer.errors import InputError, shown
from spin_composer.exits import explain, rebuilt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.data.examples import ExampleDataset

_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx",
)  # fmt: skip
"""Names that configs have for the most positions; ``max_seq_len`` is MPT's."""
_RELATIVE = ("bloom", "mamba", "mamba2", "rwkv", "t5")
"""Model types whose attention has no last position."""
_COUNTED_ALREADY = ("llama3", "longrope", "su", "mrope", "default")
"""Rope scalings of models whose ``max_position_embeddings`` holds what the scaling gives."""
_NOT_OF_A_CONFIG = (
    "name", "tokenizer", "use_train_metrics", "additional_train_metrics",
    "additional_eval_metrics", "loss_fn", "master_weights_dtype",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says of the rows that it takes."""

    positions: int | None = None
    """Most tokens of a sequence; None if there is no end."""
    learned: bool = False
    """The positions are rows of a table: one more is an IndexError, not a worse model."""
    vocabulary: int | None = None
    """Rows of the embedding; None if the config does not say."""
    pad: int | None = None
    """The config's padding token."""


def model_facts(config: Any) -> ModelFacts:
    """Return what a Hugging Face config, or llm-foundry's MPTConfig, says."""
    config = getattr(config, "text_config", None) or config
    vocabulary, pad = (getattr(config, name, None) for name in ("vocab_size", "pad_token_id"))
    positions = _positions(config)
    rotary = getattr(config, "rope_theta", None) or getattr(config, "rotary_pct", None)
    rotary = rotary or getattr(config, "rotary_dim", None) or getattr(config, "alibi", False)
    return ModelFacts(
        positions=positions,
        learned=positions is not None and not rotary,  # MPT refuses a longer one whatever it has
        vocabulary=vocabulary if isinstance(vocabulary, int) else None,
        pad=pad if isinstance(pad, int) else None,
    )


def _positions(config: Any) -> int | None:
    if getattr(config, "model_type", "") in _RELATIVE or getattr(config, "alibi", False) is True:
        return None
    found = (getattr(config, name, None) for name in _POSITIONS)
    positions = next((n for n in found if isinstance(n, int) and n > 0), None)
    scaling = getattr(config, "rope_scaling", None)
    if positions is None or not isinstance(scaling, Mapping):
        return positions
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in _COUNTED_ALREADY:
        return positions
    before = scaling.get("original_max_position_embeddings") or positions
    return max(positions, int(before * float(scaling.get("factor") or 1.0)))


def read_facts(model: Mapping[str, Any]) -> ModelFacts:
    """Read the config of a YAML's ``model`` section, without weights; a collective.

    Raises:
        InputError: If it cannot be read.
    """
    return _from_rank_zero(lambda: model_facts(build_config(model)))


def build_config(model: Mapping[str, Any]) -> Any:
    """Return the config that llm-foundry will build the model of.

    Raises:
        InputError: If it cannot be read.
    """
    from spin_composer.foundry.base import ComposerHFCausalLM, MPTConfig

    given = {key: value for key, value in model.items() if key not in _NOT_OF_A_CONFIG}
    name = given.get("pretrained_model_name_or_path")
    try:
        if name is None:
            return MPTConfig(**given)
        return ComposerHFCausalLM.build_config(
            name,
            trust_remote_code=bool(given.get("trust_remote_code", False)),
            use_auth_token=given.get("use_auth_token", False),
            attn_implementation=given.get("attn_implementation") or "eager",
            config_overrides=given.get("config_overrides") or {},
        )
    except Exception as error:
        what = "model" if name is None else f"model.pretrained_model_name_or_path={name}"
        raise InputError(
            f"{what}: its config cannot be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Give a model's folder or a Hub name, and "
            "settings that its config has."
        ) from error


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, facts: ModelFacts, may_resize: bool
) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Args:
        tokenizer: The run's.
        facts: Of the model.
        may_resize: The model's embedding is made as large as the tokenizer.

    Raises:
        InputError: A line for each problem.
    """
    lines = list(_misfits(tokenizer, facts, may_resize))
    if lines:
        raise InputError("\n".join(lines))


def _misfits(tokenizer: Any, facts: ModelFacts, may_resize: bool) -> Iterator[str]:
    size = facts.vocabulary
    if size is None:
        return
    if facts.pad is not None and not -size <= facts.pad < size:
        yield (
            f"model: its config has pad_token_id={facts.pad} and an embedding of {size} tokens. "
            "Set model.config_overrides.pad_token_id to the tokenizer's."
        )
    if may_resize:
        size = max(size, len(tokenizer))
    elif len(tokenizer) > size:
        yield (
            f"tokenizer: it has {len(tokenizer)} tokens, and the model's embedding {size}. Give "
            "the model's own tokenizer, or set model.allow_embedding_resizing=true."
        )
        return
    for name in ("eos_token", "pad_token", "bos_token", "unk_token"):
        token = getattr(tokenizer, f"{name}_id", None)
        if token is not None and not 0 <= token < size:
            yield (
                f"tokenizer: its {name} {shown(getattr(tokenizer, name))} has id {token}, and the "
                f"model's embedding {size} tokens. Set tokenizer.kwargs.{name} to one that it has."
            )


def check_rows(
    examples: ExampleDataset, facts: ModelFacts, max_new_tokens: int, where: str = "train_loader"
) -> None:
    """Refuse rows, or responses to them, that the model has no positions or embeddings for.

    Args:
        examples: The SFT set.
        facts: Of the model.
        max_new_tokens: Of a generated response; 0 where none is generated.
        where: The loader's name in messages.

    Raises:
        InputError: A line for each problem.
    """
    lines = []
    positions, real = facts.positions, int(examples.lengths.sum(axis=1).max())
    if positions is not None and real > positions:
        lines.append(
            f"the longest row has {real} tokens, more than the model's {positions} positions. "
            f"Lower {where}.dataset.max_seq_len."
        )
    longest = examples.max_prompt_tokens + max_new_tokens
    if positions is not None and max_new_tokens and longest > positions:
        lines.append(
            f"algorithms.spin.generation.max_new_tokens={max_new_tokens} after the longest prompt "
            f"({examples.max_prompt_tokens} tokens) is more than the model's {positions} "
            f"positions. Lower it, or {where}.dataset.max_prompt_len."
        )
    if facts.vocabulary is not None and examples.max_token_id >= facts.vocabulary:
        lines.append(
            f"{where}: its rows hold token {examples.max_token_id}, and the model's embedding has "
            f"{facts.vocabulary} tokens. Give the model's own tokenizer."
        )
    if lines:
        raise InputError("\n".join(lines))


def check_first_batch_is_whole(examples: ExampleDataset, samples: int | str, batch: int) -> None:
    """Refuse fewer prompts than the first iteration's one batch takes.

    Args:
        examples: The SFT set.
        samples: ``algorithms.spin.samples_per_iteration``.
        batch: Pairs in a batch of all ranks.

    Raises:
        InputError: Names the numbers.
    """
    rows, dropped = len(examples), sum(examples.report.dropped.values())
    prompts = min(rows, samples) if isinstance(samples, int) else rows
    if prompts >= batch:
        return
    given = f"the {rows} rows"
    if prompts != rows:
        given = f"algorithms.spin.samples_per_iteration={samples}"
    beside = f" ({dropped} bad ones were left out)" if dropped and prompts == rows else ""
    raise InputError(
        f"global_train_batch_size={batch} pairs is more than {given}{beside}: an iteration would "
        "have no whole batch. Lower it, or give more rows."
    )


def check_run(run: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> ModelFacts:
    """Check what a YAML's run says before its rows are read; a collective.

    Returns:
        The model's facts, for :func:`check_rows`.

    Raises:
        InputError: A line for each problem.
    """
    model, facts = run["model"], read_facts(run["model"])
    resized = "pretrained_model_name_or_path" not in model  # MPT's always is, where need be
    resized = resized or bool(model.get("allow_embedding_resizing"))
    check_tokenizer(tokenizer, facts, resized)
    if resized and facts.vocabulary is not None:
        facts = replace(facts, vocabulary=max(facts.vocabulary, len(tokenizer)))
    if isinstance(model.get("peft_config"), Mapping):
        _from_rank_zero(lambda: _check_targets(model))
    if run.get("saves"):
        _from_rank_zero(lambda: _rehearse(model, tokenizer))
    longest = run.get("max_eval_tokens", 0)
    if facts.learned and facts.positions is not None and longest > facts.positions:
        raise InputError(
            f"eval_loader.dataset.max_seq_len={longest} is more than the model's "
            f"{facts.positions} positions, which are learned: a longer row cannot be evaluated. "
            f"Set it to {facts.positions}."
        )
    return facts


def _check_targets(model: Mapping[str, Any]) -> None:
    """Refuse LoRA on modules that the model does not have: peft's own error comes after loading."""
    from transformers import AutoModelForCausalLM

    from spin_composer.foundry.base import init_empty_weights

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
            f"model.peft_config.target_modules={shown(targets)} names no module of a "
            f"{type(twin).__name__}. It has {', '.join(leaves)}."
        )


def _rehearse(model: Mapping[str, Any], tokenizer: Any) -> None:
    """Try what checkpoints and exports write and need no weights for."""
    from transformers import GenerationConfig

    from spin_composer.pretrained.rehearsal import rehearse_generation_config, rehearse_tokenizer

    name = model.get("pretrained_model_name_or_path")
    rehearse_tokenizer(tokenizer, build_config(model))
    if name is None:
        return
    try:
        generation = GenerationConfig.from_pretrained(name)
    except OSError:  # it has none, which is as llm-foundry takes it
        return
    rehearse_generation_config(generation, f"model.pretrained_model_name_or_path={name}")


def _from_rank_zero(make: Callable[[], Any]) -> Any:
    """Return rank 0's value on every rank, or raise what it raised; a collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    failure: Any
    raised: Exception | None = None
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            raised, outcome[1] = error, explain(error) or (1, f"rank 0 failed: {error!r}")
    dist.broadcast_object_list(outcome, src=0)
    value, failure = outcome
    if failure is not None:
        raise raised or rebuilt(*failure)
    return value
