"""Memory per GPU that is known beforehand: all but activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_composer.forecast.parameters import Parameters
from spin_composer.report.figures import Section, bytes_text
from spin_composer.settings.fields import is_int
from spin_composer.settings.section import Config
from spin_composer.settings.spin import SpinSettings

STATE_BYTES = 4
"""Of a number of an optimizer's state or of a gradient: fp32."""
_WHOLE = ("NO_SHARD",)
_REPLICATED = "data_parallel_replicate_degree"
_SHARDED = "data_parallel_shard_degree"


def optimizer_numbers(optimizer: Config) -> int | None:
    """Return how many numbers an optimizer keeps for each trained parameter; None if unknown."""
    momentum = bool(optimizer.get("momentum"))
    return {
        "rmsprop": 1 + momentum + bool(optimizer.get("centered")),
        "decoupled_adamw": 2,
        "adalr_lion": 1,
        "clip_lion": 1,
        "decoupled_lionw": 1,
        "decoupled_sgdw": int(momentum),
        "no_op": 0,
    }.get(str(optimizer.get("name")))


def num_shards(fsdp: object, gpus: int) -> int:
    """Return over how many GPUs one copy of the weights is spread.

    Args:
        fsdp: The YAML's ``fsdp_config``.
        gpus: Number of ranks.
    """
    if gpus == 1 or not isinstance(fsdp, Mapping) or fsdp.get("sharding_strategy") in _WHOLE:
        return 1
    degree, replicas = fsdp.get(_SHARDED), fsdp.get(_REPLICATED)
    if is_int(degree) and degree > 0:
        return degree
    return gpus // replicas if is_int(replicas) and replicas > 0 else gpus


def memory_section(
    cfg: Config, settings: SpinSettings, found: Parameters | None, gpus: int, longest: int
) -> Section:
    """Return what is known of the memory per GPU.

    Args:
        cfg: The YAML, checked.
        settings: Its algorithm's.
        found: The model's parameters; None if they are unknown.
        gpus: Number of ranks.
        longest: Tokens of the longest prompt and the longest response together.
    """
    section = Section("memory per GPU")
    if found is None:
        section.add("bytes", None, "unknown: the layers of MPT are llm-foundry's")
        return section
    shards = num_shards(cfg.get("fsdp_config"), gpus)
    half = cfg.get("precision", "amp_bf16") != "fp32"
    weights = found.weight_bytes * found.total // shards
    gradients = found.weight_bytes * found.trained // shards
    numbers = optimizer_numbers(cfg["optimizer"])
    state = None if numbers is None else STATE_BYTES * numbers * found.trained // shards
    _add(section, "weights bytes", weights, f"over {shards} GPUs" if shards > 1 else "")
    _add(section, "gradients bytes", gradients)
    _add(section, "optimizer bytes", state, str(cfg["optimizer"].get("name")))
    if half and shards == 1:
        _add(section, "cast copy bytes", 2 * found.total, "weights in 16 bits, within a step")
    parts = [one.value for one in section.figures]
    known = sum(part for part in parts if part is not None)
    why = "and activations, which are not estimated"
    why += "" if state is not None else ", and the optimizer's"
    _add(section, "training at least bytes", known, why)
    if settings.generation.engine == "hf":
        _add_play(section, settings, found, weights, 2 if half else 4, longest, shards)
        if not settings.reset_optimizer and state:
            _add(section, "optimizer in play bytes", state, "reset_optimizer: false keeps it")
    else:
        section.add("play", None, "the completion server's own")
    return section


def _add_play(
    section: Section, settings: SpinSettings, found: Parameters, weights: int, width: int,
    longest: int, shards: int,
) -> None:  # fmt: skip
    """Add what engine hf holds while it plays; ``width`` is the bytes of a number."""
    whole = width * found.total if shards > 1 or width < found.weight_bytes else 0
    if shards > 1:
        _add(section, "whole model in play bytes", whole, "gathered, beside the shard")
    cache = None
    if found.cache_numbers is not None:
        cache = found.cache_numbers * width * settings.generation.batch_size * longest
    why = f"at most: {settings.generation.batch_size} rows of {longest} tokens"
    _add(section, "KV cache bytes", cache, why)
    total = weights + whole + (cache or 0)
    _add(section, "play at least bytes", total, "" if cache is not None else "without KV cache")


def _add(section: Section, name: str, value: Any, why: str = "") -> None:
    text = "unknown" if value is None else bytes_text(value)
    section.add(name, value, f"{text} ({why})" if why else text)
