"""The policy as a generator: our decode loop, or Hugging Face ``generate``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from spin_composer import interrupt
from spin_composer.data.pairs import LENGTH, STOP, STRING, Ids, Pair
from spin_composer.engines.base import OnProgress, Response, ignore_progress
from spin_composer.engines.hf.cache import cache_argument
from spin_composer.engines.hf.decode import Decoder
from spin_composer.engines.hf.families import (
    autocast_dtype,
    compute_dtype,
    masked_attention,
    unsupported_reason,
)
from spin_composer.engines.hf.sampling import StopStrings, draw_uniforms, permute
from spin_composer.model.adapters import merged_adapters
from spin_composer.model.unwrap import inner_model
from spin_composer.settings.generation import GenerationSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class _InterruptCriteria(StoppingCriteria):
    """Raises at the next step of Hugging Face ``generate`` after a signal; stops no row.

    Args:
        on_step: Called with the number of generated tokens per row.
        prompt_width: Columns of the prompts.
    """

    def __init__(self, on_step: Callable[[int], None], prompt_width: int):
        self.on_step = on_step
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        interrupt.check()
        self.on_step(input_ids.shape[1] - self.prompt_width)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class OpaqueCache(DynamicCache):
    """A KV cache that FSDP2 passes through unchanged.

    FSDP2's ``cast_forward_inputs`` traverses its inputs as pytrees and would copy a registered
    ``DynamicCache`` for every layer, losing what the layer appends: the tokens would be wrong,
    silently. A subclass is not a registered pytree node.
    """

    @classmethod
    def of(cls, model: PreTrainedModel) -> OpaqueCache:
        """Return the cache that ``generate`` would make for a model; with windows from 4.57 on."""
        if "config" in inspect.signature(DynamicCache.__init__).parameters:
            text = model.config.get_text_config(decoder=True)
            return cls(config=text)  # pyright: ignore[reportCallIssue]  (of older transformers)
        return cls()


class HFGenerator:
    """Generates with the policy itself, whose parameters must be gathered.

    Models with a standard KV cache use our decode loop, all others Hugging Face ``generate``. Both
    draw from the same distribution.

    Args:
        model: The Hugging Face (or PEFT) model; its forward must not need a collective.
        tokenizer: For the stop strings.
        stop_token_id: The token that ends a response.
        settings: Sampling settings.
        device: The device of the prompts.
        precision: Returns the context of forward passes (training's autocast).
        merge: Merge LoRA adapters into copies of the weights during generation.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_id: int,
        settings: GenerationSettings,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        merge: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.stop_token_id = stop_token_id
        self.settings = settings
        self.device = device
        self.precision = precision
        self.merge = merge
        self._strings = StopStrings(tokenizer, s) if (s := settings.stop_strings) else None

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Ids], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        """Answer the prompts, at most ``settings.batch_size`` at a time; see ``Generator``.

        The longest come first, so that a batch holds little padding.
        """
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        ordered = [prompts[i] for i in order]
        longest = len(ordered[0]) + self.settings.max_new_tokens
        reason = unsupported_reason(inner_model(self.model), longest)
        with ExitStack() as stack:
            for context in (_eval_mode(self.model), _nondeterministic_allowed(), self.precision()):
                stack.enter_context(context)
            if self.merge:
                stack.enter_context(merged_adapters(self.model, autocast_dtype(self.device)))
            if reason is None:
                answers = self._decode(ordered, order, seed, on_progress)
            else:
                _log_once(f"engine hf uses Hugging Face generate: {reason}.")
                stack.enter_context(_seeded(seed, self.device))
                answers = self._generate(ordered, on_progress)
        return [self._cut(ids) for ids in permute(answers, order)]

    def check_logps(
        self, pairs: Sequence[Pair], logps: Sequence[float | None], noise: float
    ) -> None:
        """See ``Generator``; the same model generates and scores."""

    def _decode(
        self,
        prompts: Sequence[Ids],
        order: Sequence[int],
        seed: int,
        on_progress: OnProgress,
    ) -> list[Ids]:
        inner = inner_model(self.model)
        dtype = compute_dtype(inner, self.device)
        decoder = Decoder(
            self.model, self.stop_token_id, self.settings, self.device, dtype, self._strings
        )
        uniforms = draw_uniforms(len(prompts), self.settings.max_new_tokens, seed)
        with masked_attention(inner):
            return decoder.run(prompts, uniforms[list(order)], on_progress)

    def _generate(self, prompts: Sequence[Ids], on_progress: OnProgress) -> list[Ids]:
        """Answer by Hugging Face ``generate``, batch by batch."""
        size = self.settings.batch_size
        answers: list[Ids] = []
        for first in range(0, len(prompts), size):
            answers += self._generate_batch(prompts[first : first + size], answers, on_progress)
            on_progress(len(answers), sum(len(self._cut(ids).ids) for ids in answers))
        # A cache that transformers keeps for the next call would stay allocated in training.
        inner_model(self.model).__dict__.pop("_cache", None)
        return answers

    def _generate_batch(
        self, prompts: Sequence[Ids], before: Sequence[Ids], on_progress: OnProgress
    ) -> list[Ids]:
        made = sum(len(self._cut(ids).ids) for ids in before)
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.empty((len(prompts), width), dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):  # left padding: all prompts end together
            # generate's repetition penalty ignores the mask, so only a token of the prompt pads.
            input_ids[row] = int(prompt[0])
            input_ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, width - len(prompt) :] = 1
        strings = self.settings.stop_strings
        ends = [StopStrings(self.tokenizer, strings, width)] if strings else []
        rows = len(prompts)
        interrupt_criteria = _InterruptCriteria(
            lambda each: on_progress(len(before), made + rows * each), width
        )
        generate: Any = self.model.generate
        with _no_generation_config(inner_model(self.model)):
            output = generate(
                input_ids=input_ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=self._config(),
                synced_gpus=False,  # ranks generate different numbers of tokens
                stopping_criteria=StoppingCriteriaList([interrupt_criteria, *ends]),
                **self._cache(),
            )
        return list(output[:, width:].cpu().numpy().astype(np.int32))

    def _cache(self) -> dict[str, Any]:
        """Return generate's arguments for the KV cache that the model needs."""
        inner = inner_model(self.model)
        if self._own_cache() or not _takes_dynamic_cache(inner):
            return {}
        return {cache_argument(inner): OpaqueCache.of(inner)}

    def _own_cache(self) -> str | None:
        """Return the kind of cache that the model's config asks for (Gemma 2: hybrid), if any.

        generate makes it; unlike DynamicCache those kinds are not pytree nodes.
        """
        return getattr(self.model.config, "cache_implementation", None)

    def _config(self) -> GenerationConfig:
        settings = self.settings
        return GenerationConfig(
            do_sample=True,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens or None,
            temperature=float(settings.temperature),
            top_p=float(settings.top_p),
            top_k=settings.top_k,  # transformers' own default is 50
            repetition_penalty=float(settings.repetition_penalty),
            eos_token_id=self.stop_token_id,
            pad_token_id=self.stop_token_id,
            use_cache=True,
            cache_implementation=self._own_cache(),
        )

    def _cut(self, ids: Ids) -> Response:
        """Cut a response after its first stop token, which padding repeats."""
        stops = np.flatnonzero(ids == self.stop_token_id)
        end = int(stops[0]) if len(stops) else len(ids)
        if self._strings is not None and self._strings.contains(ids[:end]):
            return Response(ids[:end], STRING)  # a stop token after it is padding
        return Response(ids[: end + 1], STOP) if len(stops) else Response(ids, LENGTH)


def _takes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Return whether a model takes a DynamicCache object; in 4.51 a flag of its class says so."""
    flag = getattr(model, "_supports_cache_class", None)
    asks: Any = model._supports_default_dynamic_cache
    return bool(asks() if flag is None else flag)


@contextmanager
def _no_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Hide the checkpoint's generation config from ``generate``.

    It would fill whatever is None, or at its default, in the one that ``generate`` is given
    (temperature 1, min_p, suppress_tokens, ...), and samples would not be the policy's.
    """
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


@cache
def _log_once(line: str) -> None:
    log.warning(line)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators within, and leave the training run's as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _nondeterministic_allowed() -> Iterator[None]:
    """Allow sampling under ``deterministic: true``: top_p's cumsum has no such CUDA kernel."""
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(strict, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=lenient)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode: in train mode gradient checkpointing disables the cache."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
