"""The peers of the benchmark: other implementations of the same operations, one adapter each.

A peer's ``load`` imports it and returns one function, so that a peer that is missing or broken
fails there and is listed with its reason. What the function takes depends on the operation and
what it returns is said by ``gives``:

| operation | arguments | ``gives`` |
|---|---|---|
| a | logits [N, V], targets [N] | "logps": [N]; "sum": the negated sum of log-probs, a scalar |
| b, c | hidden [N, D], weight [V, D], targets [N] | the same |
| c | a :class:`inputs.Head` | "pairs": the mean logistic loss of its pairs, a scalar |

Peers that have cross entropy only are given its sum: forward and backward then do what they do in
training, with one coefficient for all rows, where a pair loss has one per sequence.

``peers.txt`` names the packages and versions that these adapters were written for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from inputs import Head
from torch import Tensor
from torch.nn import functional as F

BETA = 0.01
"""Of the pair loss: small enough that no pair of 2048-token sequences has lost its gradient."""


@dataclass(frozen=True)
class Peer:
    """One way of doing an operation.

    Attributes:
        name: As the tables show it.
        gives: "logps", "sum" or "pairs", see the module's docstring.
        load: Imports what it needs and returns the function.
        needs_cuda: It has no CPU implementation.
        overwrites_logits: Operation a: forward or backward destroys its input.
        ours: Ours, which no target counts among the peers.
    """

    name: str
    gives: str
    load: Callable[[], Callable[..., Tensor]]
    needs_cuda: bool = True
    overwrites_logits: bool = False
    ours: bool = False


def logistic(real_sums: Tensor, generated_sums: Tensor) -> Tensor:
    """Return SPIN's losses [B] against an opponent whose sums are zero, as Liger's without one."""
    return -F.logsigmoid(BETA * (real_sums - generated_sums))


def mean_pair_loss(logps: Tensor, head: Head) -> Tensor:
    """Return the mean pair loss of log-probs [N] whose sequences are all of one length."""
    sums = logps.view(head.num_pairs, 2, -1).sum(2)
    return logistic(sums[:, 0], sums[:, 1]).mean()


# --- torch -----------------------------------------------------------------------------------


def eager_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log-probs [N] of logits [N, V] by ``log_softmax`` in fp32 and ``gather``."""
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def eager_linear(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return log-probs [N] through a whole matrix of logits."""
    return eager_logps(hidden @ weight.T, targets)


def eager_pairs(head: Head) -> Tensor:
    """Return the mean pair loss through a whole matrix of logits of the scored rows."""
    return mean_pair_loss(eager_linear(head.scored(), head.weight, head.targets), head)


def _compiled(function: Callable[..., Tensor]) -> Callable[[], Callable[..., Tensor]]:
    return lambda: torch.compile(function, dynamic=False)


def _compiled_pairs() -> Callable[..., Tensor]:
    linear = _compiled(eager_linear)()
    return lambda head: mean_pair_loss(linear(head.scored(), head.weight, head.targets), head)


# --- ours ------------------------------------------------------------------------------------


def _ours_logits(inplace_backward: bool) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from spin_kernels import log_softmax_gather

        return lambda x, t: log_softmax_gather(x, t, inplace_backward=inplace_backward)

    return load


def _ours_linear() -> Callable[..., Tensor]:
    from spin_kernels import linear_log_softmax_gather

    return linear_log_softmax_gather


def _ours_pairs(**options: Any) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from spin_kernels import linear_pair_loss

        def run(head: Head) -> Tensor:
            even = torch.full((head.num_pairs,), 1 / head.num_pairs, device=head.hidden.device)
            args = head.scored(), head.weight, head.targets, head.cu_seqlens
            return linear_pair_loss(*args, logistic, pair_weights=even, **options).loss

        return run

    return load


def _ours_recomputing() -> Callable[..., Tensor]:
    linear = _ours_linear()
    return lambda head: mean_pair_loss(linear(head.scored(), head.weight, head.targets), head)


# --- other packages --------------------------------------------------------------------------


def _trl() -> Callable[..., Tensor]:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax


def _trl_linear() -> Callable[..., Tensor]:
    gather = _trl()
    return lambda x, w, t: gather(x @ w.T, t)


def _liger_logits() -> Callable[..., Tensor]:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda x, t: liger_cross_entropy(x, t, reduction="sum")


def _liger_linear(chunk_constant: int, reduction: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        sign = -1 if reduction == "none" else 1
        options: dict[str, Any] = {"reduction": reduction, "chunk_mem_const": chunk_constant}
        return lambda x, w, t: sign * liger_fused_linear_cross_entropy(x, w, t, **options)

    return load


def _liger_dpo(pairs_of_a_chunk: int | None) -> Callable[[], Callable[..., Tensor]]:
    """Liger's DPO loss over whole sequences; None takes all pairs in one chunk."""

    def load() -> Callable[..., Tensor]:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        def run(head: Head) -> Tensor:
            if head.padded_targets is None:
                raise ValueError("Liger's DPO loss takes whole sequences, [2 B, T].")
            loss = LigerFusedLinearDPOLoss(
                beta=BETA,
                compiled=head.hidden.is_cuda,
                use_ref_model=False,
                chunk_size=pairs_of_a_chunk or head.num_pairs,
            )
            hidden = head.hidden.view(*head.padded_targets.shape, -1)
            return loss(head.weight, hidden, head.padded_targets)[0]

        return run

    return load


def _cce(filter_eps: str | None, reduction: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from cut_cross_entropy import linear_cross_entropy

        sign = -1 if reduction == "none" else 1
        options: dict[str, Any] = {"reduction": reduction, "filter_eps": filter_eps}
        return lambda x, w, t: sign * linear_cross_entropy(x, w, t, **options)

    return load


def _fla() -> Callable[..., Tensor]:
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    return lambda x, w, t: fused_linear_cross_entropy_loss(x, t, w, reduction="sum")


def _quack_logits(inplace_backward: bool) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from quack.cross_entropy import cross_entropy

        options: dict[str, Any] = {"reduction": "none", "inplace_backward": inplace_backward}
        return lambda x, t: -cross_entropy(x, t, **options)

    return load


def _quack_linear() -> Callable[..., Tensor]:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    # tuned=False: its search over GEMM settings would take minutes of every shape's warm-up.
    return lambda x, w, t: chunked_linear_cross_entropy(x, w, t, reduction="sum", tuned=False)


RECOMPUTING = "ours, recomputing (b)"

LOGITS = (
    Peer("ours", "logps", _ours_logits(False), needs_cuda=False, ours=True),
    Peer("ours, in place", "logps", _ours_logits(True), False, overwrites_logits=True, ours=True),
    Peer("torch eager", "logps", lambda: eager_logps, needs_cuda=False),
    Peer("torch.compile", "logps", _compiled(eager_logps)),
    Peer("TRL selective_log_softmax", "logps", _trl, needs_cuda=False),
    Peer("Liger cross_entropy", "sum", _liger_logits, overwrites_logits=True),
    Peer("QuACK cross_entropy", "logps", _quack_logits(False)),
    Peer("QuACK cross_entropy, in place", "logps", _quack_logits(True), overwrites_logits=True),
)
"""Operation a: log-probs of logits that exist."""

LINEAR = (
    Peer("ours", "logps", _ours_linear, needs_cuda=False, ours=True),
    Peer("torch eager", "logps", lambda: eager_linear, needs_cuda=False),
    Peer("torch.compile", "logps", _compiled(eager_linear)),
    Peer("TRL selective_log_softmax", "logps", _trl_linear, needs_cuda=False),
    Peer("Liger FLCE 8, per token", "logps", _liger_linear(8, "none")),
    Peer("Cut Cross-Entropy, per token", "logps", _cce("high", "none")),
    Peer("QuACK linear CE", "sum", _quack_linear),
)
"""Operation b: log-probs of an LM head, any loss."""

TRAINING = (
    Peer("ours", "pairs", _ours_pairs(), needs_cuda=False, ours=True),
    Peer("ours, 4 GiB", "pairs", _ours_pairs(memory_budget_bytes=2**32), False, ours=True),
    Peer(RECOMPUTING, "pairs", _ours_recomputing, needs_cuda=False, ours=True),
    Peer("torch eager", "pairs", lambda: eager_pairs, needs_cuda=False),
    Peer("torch.compile", "pairs", _compiled_pairs),
    *(Peer(f"Liger FLCE {k}", "sum", _liger_linear(k, "sum")) for k in (1, 8, 16)),
    Peer("Cut Cross-Entropy", "sum", _cce("high", "sum")),
    Peer("Cut Cross-Entropy unfiltered", "sum", _cce(None, "sum")),
    Peer("flash-linear-attention FLCE", "sum", _fla),
    Peer("QuACK linear CE", "sum", _quack_linear),
)
"""Operation c at the shapes: forward and backward of a training step's loss."""

PAIRS = (
    *(peer for peer in TRAINING if peer.gives == "pairs" and peer.name != RECOMPUTING),
    Peer("Liger DPO, 1 pair a chunk", "pairs", _liger_dpo(1), needs_cuda=False),
    Peer("Liger DPO, one chunk", "pairs", _liger_dpo(None), needs_cuda=False),
)
"""Operation c over pairs of whole sequences, prompts included."""

PACKAGES = (
    "liger-kernel",
    "cut-cross-entropy",
    "fla-core",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "trl",
    "transformers",
)
"""The distributions whose versions a result names."""
