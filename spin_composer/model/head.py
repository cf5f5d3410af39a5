"""The output layer of a causal LM, extended to return log-probs instead of logits.

The layer keeps its parameters; its class is replaced by a subclass. While a scoring request is
active, the subclass returns the log-probs of the scored rows, or the loss of the pairs that they
belong to. They are passed through the model's output, so that FSDP's hooks see a tensor that needs
a backward pass, and the kernels get the unsharded weight. Without a request nothing changes:
generation and evaluation get logits.

Dimensions: B pairs, S = 2B sequences, T the longest of them, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from spin_composer.errors import InputError
from spin_composer.model.logit_transforms import InstalledTransform, transforms_of
from spin_composer.model.unwrap import inner_model
from spin_composer.settings.model import lora_on_output_layer
from spin_kernels import (
    PairLossOutput,
    linear_log_softmax_gather,
    linear_pair_loss,
    log_softmax_gather,
)

_LOGITS = 2**26
"""Logits in memory at once if predictions are requested: 256 MiB in fp32."""


@dataclass
class PairRequest:
    """Requests the loss of pairs instead of log-probs; see ``linear_pair_loss``."""

    bounds: Tensor
    """[S + 1] int64 on the CPU: the sequences in the N scored rows."""
    pair_loss: Callable[[Tensor, Tensor], Tensor]
    """(real sums [B], generated sums [B]) -> losses [B]."""
    weights: Tensor
    """[B] fp32 on the model's device."""
    answer: PairLossOutput | None = None
    """The head's result; its ``loss`` is also the model's output."""


@dataclass
class _Request:
    """The scoring request of one forward pass."""

    rows: Tensor  # [N] into the [S * T] positions
    targets: Tensor  # [N]
    num_positions: int
    softcap: float | None
    temperature: float
    pairs: PairRequest | None
    predictions: bool
    calls: int = 0


class ScoringHead(nn.Module):
    """Mixin of an output layer: returns log-probs [1, N, 1] or a loss [1, 1, 1] on request.

    If ``predictions`` are requested, [1, N, 2]: log-probs, and 1 where the target is the argmax.
    """

    weight: nn.Parameter
    _request: _Request | None
    _transforms: list[InstalledTransform]

    def _score(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        request = self._request
        assert request is not None
        request.calls += 1
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if hidden.shape[0] != request.num_positions:
            raise RuntimeError(
                f"The output layer received {hidden.shape[0]} positions, not the batch's "
                f"{request.num_positions}: this model drops positions before its output layer "
                "and cannot be scored."
            )
        scored = hidden.index_select(0, request.rows)
        pairs = request.pairs
        if request.predictions:
            return self._with_predictions(scored, bias, request)
        if pairs is None:
            logps = linear_log_softmax_gather(
                scored,
                self.weight,
                request.targets,
                bias=bias,
                softcap=request.softcap,
                temperature=request.temperature,
            )
            return logps.view(1, -1, 1)
        pair_loss: Any = linear_pair_loss  # torch 2.15 types what its decorator wraps otherwise
        answer: PairLossOutput = pair_loss(
            scored,
            self.weight,
            request.targets,
            pairs.bounds,
            pairs.pair_loss,
            pairs.weights,
            bias=bias,
            softcap=request.softcap,
            temperature=request.temperature,
        )
        pairs.answer = answer
        return answer.loss.view(1, 1, 1)

    def _with_predictions(self, scored: Tensor, bias: Tensor | None, request: _Request) -> Tensor:
        """Return log-probs and hits, from the logits of a chunk of rows at a time."""
        answers = []
        num_rows = max(1, _LOGITS // self.weight.shape[0])
        for x, t in zip(scored.split(num_rows), request.targets.split(num_rows), strict=True):
            logits = nn.functional.linear(x, self.weight, bias)
            if request.temperature != 1.0:
                logits = logits / request.temperature
            if request.softcap is not None:
                logits = torch.tanh(logits / request.softcap) * request.softcap
            logps = log_softmax_gather(logits, t)
            answers.append(torch.stack((logps, (logits.argmax(-1) == t).to(logps.dtype)), -1))
        return torch.cat(answers)[None]


class LogProbLinear(ScoringHead, nn.Linear):
    """An ``nn.Linear`` output layer that can return log-probs."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self._request is None:
            return nn.Linear.forward(self, input)
        return self._score(input, self.bias)


class LogProbSharedEmbedding(ScoringHead):
    """Mixin of llm-foundry's SharedEmbedding: MPT's tied embedding and output layer."""

    @override
    def forward(self, input: Tensor, unembed: bool = False) -> Tensor:
        if self._request is None or not unembed:
            return super().forward(input, unembed)
        return self._score(input, None)


def _head_class(layer: nn.Module) -> type[ScoringHead] | None:
    """Return the head class for an output layer; None if its class is not supported."""
    cls = type(layer)
    if cls is nn.Linear:
        return LogProbLinear
    if cls.__module__.startswith("llmfoundry.") and cls.__name__ == "SharedEmbedding":
        # Derived from the layer's own class, so that llm-foundry need not be imported.
        return type(LogProbSharedEmbedding.__name__, (LogProbSharedEmbedding, cls), {})
    return None


def install_head(model: nn.Module) -> None:
    """Extend the output layer of ``model`` to return log-probs on request.

    The layer's class is replaced by a subclass; its parameters, its path in the model and the keys
    of ``state_dict`` do not change. Call it after embeddings were resized and LoRA was applied, and
    before FSDP. A second call does nothing.

    Args:
        model: a Hugging Face causal LM, a PeftModel around one, or llm-foundry's MPTForCausalLM.

    Raises:
        InputError: The output layer has LoRA, or its class is not supported.
    """
    inner = inner_model(model)
    head: Any = inner.get_output_embeddings()
    trained = getattr(head, "modules_to_save", None)  # PEFT's copy of a fully trained layer
    if isinstance(trained, nn.ModuleDict):
        head = trained[head.active_adapter]
    if isinstance(head, ScoringHead):
        return
    if hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        name = next(name for name, module in inner.named_modules() if module is head)
        raise InputError(lora_on_output_layer(name))
    head_class = _head_class(head)
    if head_class is None:
        raise InputError(
            f"model: the output layer of {type(inner).__name__} is a {type(head).__name__}: only "
            "['Linear', 'SharedEmbedding'] can be scored. Use another model."
        )
    head.__class__ = head_class
    head._request = None
    # In a list, so that nn.Module does not register the model as a child of its own head.
    head._transforms = transforms_of(inner)


@contextmanager
def scoring(
    head: ScoringHead,
    rows: Tensor,
    targets: Tensor,
    positions: int,
    pairs: PairRequest | None = None,
    predictions: bool = False,
) -> Iterator[None]:
    """Request log-probs, or the loss of ``pairs``, from ``head`` in one forward pass of its model.

    The model's own logit transforms are disabled within and passed to the kernel instead, so that
    each is applied exactly once. They are restored on exit, also after an error.

    Args:
        head: Returned by :func:`find_head`.
        rows: [N] the scored positions among those that the head receives.
        targets: [N] the tokens at these positions.
        positions: Number of positions that the head receives.
        pairs: Requests a loss; its ``answer`` has the result afterward.
        predictions: Also requests which targets are the argmax; without autograd.

    Raises:
        InputError: A scale of the logits is not positive.
        RuntimeError: The output layer did not run exactly once.
    """
    steps = [(step, step.value) for step in head._transforms]
    taken = [(step, value) for step, value in steps if value is not None]
    request = _Request(rows, targets, positions, None, 1.0, pairs, predictions)
    for step, value in taken:
        kind, attribute = step.transform.kind, step.transform.attribute
        if kind == "softcap":
            request.softcap = float(value)
        elif kind == "scale":
            if not value > 0:
                raise InputError(f"model: {attribute}={value} must be positive to be scored.")
            request.temperature = 1.0 / float(value)
        else:
            request.temperature = float(value)
    try:
        for step, _ in taken:
            step.switch_off()
        head._request = request
        yield
    finally:
        head._request = None
        for step, value in taken:
            step.restore(value)
    if request.calls != 1:
        raise RuntimeError(
            f"The output layer ran {request.calls} times in one forward, not once: "
            "this model cannot be scored."
        )


def find_head(model: nn.Module) -> ScoringHead:
    """Return the head installed by :func:`install_head`, also within PEFT's and FSDP's wrappers."""
    for module in model.modules():
        if isinstance(module, ScoringHead):
            return module
    raise RuntimeError(
        f"{type(model).__name__} has no scoring head. Call install_head(model) after its "
        "embeddings were resized and before FSDP."
    )
