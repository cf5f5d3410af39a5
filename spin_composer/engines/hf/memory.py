"""Whether the gathered policy and its generation fit on a device, computed before either is tried.

An out-of-memory error in play comes late, on one rank, and names no remedy. Counted is an upper
bound of what is allocated beside what is resident already (own shards, optimizer state).

Dimensions: R rows in a batch, P tokens of the longest prompt, C columns of the KV cache, T tokens
in a forward pass, H heads, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from composer.utils import dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1

from spin_composer.engines.hf.cache import rounded
from spin_composer.engines.hf.decode import LOOK_EVERY, PREFILL_TOKENS
from spin_composer.engines.hf.families import obstacle_of
from spin_composer.errors import EnvironmentFailure
from spin_composer.model.adapters import mergeable
from spin_composer.model.unwrap import inner_model
from spin_composer.settings.spin import GenerationSettings

_GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes that play takes on a device."""

    gathered: int
    """Whole parameters, where they are sharded."""
    cast: int
    """Copies of fp32 weights that autocast makes and keeps."""
    merged: int
    """Weights with LoRA adapters merged; generation also runs without."""
    cache: int
    """Keys and values."""
    work: int
    """Activations and logits of one forward pass."""

    def total(self, merge: bool = True) -> int:
        """Return the sum, with or without merged adapters."""
        return sum(asdict(self).values()) - (0 if merge else self.merged)


def require_memory(
    model: nn.Module,
    hf: Any,
    settings: GenerationSettings,
    prompt_tokens: int,
    autocast: torch.dtype | None,
    device: torch.device,
    merged: bool | None = None,
) -> bool:
    """Refuse to gather and generate what does not fit on some rank's device; a collective.

    Args:
        model: Holds the wrappers that shard.
        hf: The Hugging Face (or PEFT) model in it.
        settings: Sampling settings.
        prompt_tokens: Of the longest prompt.
        autocast: Dtype of training's autocast, or None.
        device: This rank's.
        merged: Whether LoRA adapters are to be merged, as for the units that are there; None: if
            there is room.

    Returns:
        Whether LoRA adapters are merged; the same on every rank, since what a
        unit holds must not depend on who makes it.

    Raises:
        EnvironmentFailure: On every rank, with the numbers of the tightest and the remedy.
    """

    def needs(batch_size: int) -> Needs:
        return needs_of(model, hf, settings, batch_size, prompt_tokens, autocast)

    wanted = needs(settings.batch_size)
    free = min(dist.all_gather_object(free_bytes(device)))
    for merge in (True, False) if merged is None else (merged,):
        if wanted.total(merge) <= free:
            return merge
    least = bool(merged)
    smaller = settings.batch_size
    while smaller and needs(smaller).total(least) > free:
        smaller //= 2
    if smaller:
        remedy = (
            "An iteration that is half played must then be deleted, or finished on larger devices: "
            f"Set algorithms.spin.generation.batch_size to {smaller}"
        )
    else:  # it scores with the parameters as they are sharded
        remedy = (
            "No batch_size would do. Set algorithms.spin.generation.engine to server"
        )
    parts = ", ".join(
        f"{_shown(size)} {name}"
        for name, size in (
            ("of whole parameters", wanted.gathered),
            ("of their copies in lower precision", wanted.cast),
            (f"of keys and values at batch_size {settings.batch_size}", wanted.cache),
            ("of activations and logits", wanted.work),
            ("of merged LoRA weights, as in the units that are there", least * wanted.merged),
        )
        if size
    )
    raise EnvironmentFailure(
        f"generation with engine hf takes up to {_shown(wanted.total(least))} on a device "
        f"({parts}), and {_shown(free)} are free on the tightest. {remedy}."
    )


def free_bytes(device: torch.device) -> int:
    """Return what can be allocated on a device: on the CPU, a rank's share of the machine's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available // dist.get_local_world_size()


def needs_of(
    model: nn.Module,
    hf: Any,
    settings: GenerationSettings,
    batch_size: int,
    prompt_tokens: int,
    autocast: torch.dtype | None,
) -> Needs:
    """Return the most bytes that gathering ``model`` and generating take; see the class.

    Args:
        model: Holds the wrappers that shard.
        hf: The Hugging Face (or PEFT) model in it.
        settings: Sampling settings.
        batch_size: In place of the settings'.
        prompt_tokens: P.
        autocast: Dtype of training's autocast, or None.
    """
    whole = list(_whole(model))
    own = whole[0].dtype
    dtype = autocast or own
    cast = sum(w.numel * dtype.itemsize for w in whole if w.cast) if autocast else 0
    layers = mergeable(hf)
    sizes = [layer.base_layer.in_features * layer.base_layer.out_features for layer in layers]
    # While one is merged, its weight, the adapters' product and their sum are there in fp32.
    merged = sum(sizes) * dtype.itemsize + 12 * max(sizes, default=0)
    shape = _Shape.of(inner_model(hf), dtype, prompt_tokens + settings.max_new_tokens)
    columns = rounded(prompt_tokens + settings.max_new_tokens + LOOK_EVERY + 2)
    return Needs(
        gathered=sum(w.gathered for w in whole),
        cast=cast,
        merged=merged,
        cache=shape.cache(batch_size, prompt_tokens, columns),
        # Autocast casts frozen weights too, and drops them at once.
        work=shape.work(batch_size, prompt_tokens, columns, settings)
        + (max(w.numel for w in whole) * dtype.itemsize if autocast else 0),
    )


@dataclass(frozen=True)
class _Whole:
    """A parameter, or FSDP1's flat one, as it will be once gathered."""

    numel: int
    dtype: torch.dtype
    gathered: int
    """Bytes that gathering it allocates."""
    cast: bool
    """Whether autocast would keep a copy."""


def _whole(model: nn.Module) -> Iterator[_Whole]:
    fsdp2: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            for parameter in group.fsdp_params if group is not None else ():
                fsdp2[id(parameter.sharded_param)] = group, parameter
    flat: set[int] = set()
    for module in model.modules():
        if isinstance(module, FSDP1) and module._handle is not None:
            handle: Any = module._handle
            numel = handle.flat_param._unpadded_unsharded_size.numel()
            full, forward = handle._orig_param_dtype, handle._fwd_bwd_param_dtype
            gathered = numel * full.itemsize if handle.uses_sharded_strategy else 0
            gathered += numel * forward.itemsize if forward != full else 0
            yield _Whole(numel, forward, gathered, forward == torch.float32)
            flat |= {id(p) for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) in flat:
            continue
        group, sharded = fsdp2.get(id(parameter), (None, None))
        dtype, gathered = parameter.dtype, 0
        if sharded is not None and group is not None:
            dtype = group.mp_policy.param_dtype or dtype
            gathered = parameter.numel() * dtype.itemsize if group.is_sharded else 0
        kept = dtype == torch.float32 and parameter.requires_grad and parameter.ndim > 1
        yield _Whole(parameter.numel(), dtype, gathered, kept)


@dataclass(frozen=True)
class _Shape:
    """What the sizes of cache and activations depend on."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    inner_width: int
    vocabulary: int
    itemsize: int
    eager: bool
    own_loop: bool
    all_logits: bool

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype, num_tokens: int) -> _Shape:
        config = model.config

        def read(*names: str) -> int | None:
            return next((v for n in names if (v := getattr(config, n, None)) is not None), None)

        width = read("hidden_size", "d_model") or 0
        heads = read("num_attention_heads", "n_heads") or 1
        attention: Any = getattr(config, "attn_config", None) or {}
        kv_heads = read("num_key_value_heads") or attention.get("kv_n_heads") or heads
        ratio = read("expansion_ratio") or 4
        takes = inspect.signature(model.forward).parameters
        return cls(
            layers=read("num_hidden_layers", "n_layers") or 0,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=read("head_dim") or width // heads,
            width=width,
            inner_width=read("intermediate_size", "n_inner") or int(ratio * width),
            vocabulary=config.vocab_size,
            itemsize=dtype.itemsize,
            eager=getattr(config, "_attn_implementation", "eager") == "eager",
            own_loop=obstacle_of(model, num_tokens) is None,
            all_logits="logits_to_keep" not in takes,
        )

    def prefill(self, rows: int, prompt_tokens: int) -> int:
        """Return how many rows one forward pass of prompts takes."""
        if not self.own_loop:
            return rows
        return min(rows, max(1, PREFILL_TOKENS // prompt_tokens))

    def cache(self, rows: int, prompt_tokens: int, columns: int) -> int:
        """Return the bytes of keys and values at their largest."""
        column = 2 * self.kv_heads * self.head_dim * self.itemsize
        joining = self.prefill(rows, prompt_tokens) * prompt_tokens * self.layers
        # A layer that grows, or takes in rows, is there twice; two while the next is begun.
        return column * (rows * columns * (self.layers + 2) + joining)

    def work(
        self, rows: int, prompt_tokens: int, columns: int, settings: GenerationSettings
    ) -> int:
        """Return the bytes of the larger of a pass of prompts and a step."""
        asked = self.prefill(rows, prompt_tokens)
        tokens = asked * prompt_tokens
        # fp32 streams and norms; the feed-forward's three products; queries, keys and values
        # with their rotations, and the keys and values repeated for every head.
        stream = tokens * (6 * self.width * 4 + 3 * self.inner_width * 4)
        heads = tokens * 5 * self.heads * self.head_dim * 4
        first = stream + heads + self._scores(asked, prompt_tokens, prompt_tokens)
        first += tokens * self.vocabulary * (self.itemsize + 4) if self.all_logits else 0
        repeated = 2 * rows * self.heads * columns * self.head_dim * self.itemsize
        step = repeated + self._scores(rows, 1, columns)
        warps = settings.top_p < 1 or settings.top_k or settings.repetition_penalty != 1
        # Logits as they come, in fp32, their softmax and its fp64 sums; sorting them takes more.
        draw = rows * self.vocabulary * (self.itemsize + 16 + (32 if warps else 0))
        return max(first, step) + draw

    def _scores(self, rows: int, queries: int, keys: int) -> int:
        """Return the bytes of attention's mask and, where they are made, its scores."""
        mask = rows * queries * keys * (3 * self.itemsize + 2)
        scores = rows * self.heads * queries * keys * 12
        return mask + (scores if self.eager else 0)


def _shown(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
