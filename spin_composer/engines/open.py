"""The engine of an iteration, made from the run's settings, model and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from composer.core import Precision, State
from composer.core.precision import get_precision_context
from composer.utils import dist

from spin_composer.distributed import from_rank_zero
from spin_composer.engines.base import Engine
from spin_composer.engines.hf.engine import HFEngine
from spin_composer.engines.hf.families import autocast_dtype
from spin_composer.engines.hf.memory import require_memory
from spin_composer.engines.server.engine import ServerEngine
from spin_composer.engines.server.export import (
    check_exportable,
    export_opponent,
    is_exported,
    plain_state,
)
from spin_composer.engines.server.lifecycle import NoEngine, Opponent, served
from spin_composer.engines.server.logprob_gap import (
    FP32_TOLERANCE,
    LOW_PRECISION_TOLERANCE,
    ServerGap,
)
from spin_composer.fsdp import gathered
from spin_composer.model.adapters import mergeable
from spin_composer.settings.spin import GenerationSettings

_EXPORTED_DTYPE = {
    Precision.AMP_BF16: torch.bfloat16,
    Precision.AMP_FP8: torch.bfloat16,
    Precision.AMP_FP16: torch.float16,
}
"""Training multiplies by weights of this dtype; other precisions keep the parameters'."""


@contextmanager
def engine_of(
    settings: GenerationSettings,
    state: State,
    model: Any,
    stop_token_id: int,
    folder: Path,
    opponent: str,
    needed: bool,
    merge: bool,
) -> Iterator[Engine]:
    """Yield the engine that answers an iteration's prompts; a collective at entry.

    Args:
        settings: Say which engine, and how it samples.
        state: For precision and device.
        model: The SpinLM; for engine ``hf`` its parameters are gathered.
        stop_token_id: The one token that ends a response.
        folder: The iteration's, for the exported opponent and the server's log.
        opponent: The model's fingerprint.
        needed: Whether any prompt is still to be answered; if not, no server is started.
        merge: Whether there is room for engine hf to merge LoRA adapters.
    """
    if settings.engine == "hf":
        yield HFEngine(
            model.model,
            model.tokenizer,
            stop_token_id,
            settings,
            device=_device(state),
            precision=lambda: get_precision_context(state.precision, state.precision_config),
            merge=merge,
        )
        return
    if not needed:
        yield NoEngine()
        return

    target, dtype = folder / "opponent", _EXPORTED_DTYPE.get(state.precision)
    what = (stop_token_id, opponent, dtype, target)
    weights: list[dict[str, torch.Tensor]] = []
    if not from_rank_zero(lambda: is_exported(*what)):  # reading them takes all ranks
        keep = dist.get_global_rank() == 0
        weights.append(plain_state(model.model, dtype, model, keep))

    def export() -> None:
        if weights:  # which are as large as the model, and not kept while the server runs
            export_opponent(model.model, model.tokenizer, *what, state=weights.pop())

    def make(url: str, check_alive: Callable[[], None], api_key: str) -> Engine:
        return ServerEngine(url, model.tokenizer, stop_token_id, settings, check_alive, api_key)

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what training has freed, the server may take
    assert settings.server is not None
    with served(settings.server, Opponent(target, export), make) as engine:
        yield engine


def held_for_play(settings: GenerationSettings, model: Any) -> AbstractContextManager[None]:
    """Return the context of play: its parameters gathered, unless a server generates."""
    return nullcontext() if settings.engine == "server" else gathered(model)


def server_gap(settings: GenerationSettings, state: State, engine: Engine) -> ServerGap | None:
    """Return what compares a server's log-probs with ours; None with engine ``hf``."""
    if settings.server is None:
        return None
    fp32 = state.precision == Precision.FP32
    tolerance = settings.server.logp_tolerance
    if tolerance is None:
        tolerance = FP32_TOLERANCE if fp32 else LOW_PRECISION_TOLERANCE
    return ServerGap(tolerance, engine)


def check_engine(settings: GenerationSettings, model: Any) -> None:
    """Refuse a model that the engine cannot play with.

    Raises:
        InputError: Names the engine and the model's class.
    """
    if settings.engine == "server":
        check_exportable(model.model)


def require_room(
    settings: GenerationSettings,
    state: State,
    model: Any,
    prompt_tokens: int,
    merged: bool | None = None,
) -> bool | None:
    """Refuse to play with a policy that no device can hold whole; a collective.

    Args:
        settings: Say which engine; only hf generates with the policy's own parameters.
        state: For precision and device.
        model: The SpinLM, whose parameters are not gathered yet.
        prompt_tokens: Of the longest prompt.
        merged: Whether LoRA adapters are to be merged; None: if there is room.

    Returns:
        Whether LoRA adapters are merged; None if there are none, or a server generates.

    Raises:
        EnvironmentFailure: Names the numbers and the remedy.
    """
    if settings.engine != "hf":
        return None
    device = _device(state)
    with get_precision_context(state.precision, state.precision_config):
        autocast = autocast_dtype(device)
    fits = require_memory(model, model.model, settings, prompt_tokens, autocast, device, merged)
    return fits if mergeable(model.model) else None


def _device(state: State) -> torch.device:
    if state.device.name == "gpu":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
