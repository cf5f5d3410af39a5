"""The sections of ``gpu.py``: which cases they run and what a step of each candidate is."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import peers
import torch
from inputs import Head, make_head, make_padded_head
from peers import Peer
from results import GEMM, Report
from timing import ContextLostError, Measured, Step, Timer, one_line
from torch import Tensor
from truth import Check, HeadTruth, LogitsTruth, checker

SEQUENCE_TOKENS = 1024  # of c at the shapes
_CHUNK = 1024

SHAPES = (
    (2048, 4096, 128256),
    (8192, 4096, 128256),
    (16384, 4096, 128256),
    (8192, 896, 151936),
    (8192, 2048, 128256),
    (8192, 3584, 152064),
    (4096, 4096, 32000),
)
"""(N, D, V)."""

PAIRS = [(pairs, 2048, share) for pairs in (1, 4, 8) for share in (1.0, 0.5, 0.25)]
"""(pairs, tokens of a sequence, share of response tokens), at D = 4096 and V = 128256."""

TINY_SHAPES = ((64, 64, 512),)
TINY_PAIRS = [(2, 16, 0.5)]


class Bench:
    """The sections, with what they share: the device, the timer, the report and the clock."""

    def __init__(self, given: argparse.Namespace, report: Report) -> None:
        self.tiny: bool = given.tiny
        self.device = torch.device("cpu" if given.tiny else "cuda")
        self.shapes = TINY_SHAPES if given.tiny else SHAPES
        self.timer = Timer(self.device, given.repeats, given.candidate_seconds)
        self.report = report
        self.skipped = set(given.skip)
        self.ends = time.monotonic() + given.seconds
        self.broken: dict[str, str] = {}

    def case(self, operation: str, case: str, work: Callable[..., None], *args: Any) -> None:
        """Do ``work(*args)``; if it fails outside of a candidate or time is up, note that."""
        if time.monotonic() > self.ends:
            late = Measured("all", reason="not reached: the time of --seconds was up")
            self.report.add(operation, case, [late])
            return
        print(f"{operation}: {case}", file=sys.stderr, flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.compiler.reset()  # else the last case's shapes make this one's dynamic
        try:
            work(*args)
        except ContextLostError:
            raise
        except Exception as error:
            self.report.add(operation, case, [Measured("all", reason=one_line(error))])

    def load(self, peer: Peer) -> Callable[..., Tensor] | str:
        """Return the peer's function, or why there is none."""
        if peer.name in self.skipped:
            return "left out by --skip"
        if peer.needs_cuda and self.device.type != "cuda":
            return "needs a CUDA GPU"
        if peer.name not in self.broken:
            try:
                return peer.load()
            except Exception as error:  # a peer's failure is its result
                self.broken[peer.name] = one_line(error)
        return self.broken[peer.name]

    def compare(
        self,
        operation: str,
        case: str,
        candidates: tuple[Peer, ...],
        make_step: Callable[[Peer, Callable[..., Tensor]], Step],
        make_check: Callable[[Peer], Check],
        bare: Step | None = None,
    ) -> None:
        """Run one case: warm every candidate up, then time them in turns."""
        steps: dict[str, Step] = {}
        found: dict[str, Measured] = {}
        try:
            if bare is not None:
                steps[GEMM], found[GEMM] = bare, Measured(GEMM)
                self.timer.warm_up(bare, found[GEMM], lambda *_: {})
                found[GEMM].peak_mib = None  # its outputs are preallocated
            for peer in candidates:
                result = found[peer.name] = Measured(peer.name, peer.gives, ours=peer.ours)
                function = self.load(peer)
                if isinstance(function, str):
                    result.reason = function
                    continue
                steps[peer.name] = make_step(peer, function)
                self.timer.warm_up(steps[peer.name], result, make_check(peer))
            self.timer.rounds(steps, found)
        finally:
            self.report.add(operation, case, list(found.values()))

    # --- sections ----------------------------------------------------------------------------

    def ceilings(self) -> None:
        """Time a large copy, and the three bare products of every shape."""
        self.case("ceilings", "copy", self.copy)
        for shape in self.shapes:
            self.case("ceilings", shape_name(*shape), self.products, *shape)

    def copy(self) -> None:
        """Time a copy of 2 GiB."""
        size = 2**20 if self.tiny else 2**31
        source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=self.device)
        milliseconds = self.plain_time(torch.empty_like(source).copy_, source)
        self.report.ceilings["copy_gb_per_s"] = 2 * size / milliseconds / 1e6

    def products(self, n: int, d: int, v: int) -> None:
        """Time the bare products of one shape."""
        head = make_head(n, d, v, self.pairs_of(n), self.device)
        keys = "forward_ms", "d_hidden_ms", "d_weight_ms"
        passes = dict(zip(keys, map(self.plain_time, bare_products(head)), strict=True))
        passes["tflop_per_s"] = 6 * n * d * v / sum(passes.values()) / 1e9
        self.report.ceilings.setdefault("gemm", {})[shape_name(n, d, v)] = passes
        self.report.save()

    def plain_time(self, work: Callable[..., Any], *args: Any) -> float:
        """Return the median milliseconds of ``work(*args)``."""
        result, step = Measured(""), Step(lambda: work(*args))
        self.timer.once(step)
        self.timer.rounds({"": step}, {"": result})
        if result.forward_ms is None:
            raise RuntimeError(f"a ceiling failed: {result.reason}")
        return result.forward_ms

    def a(self) -> None:
        """log_softmax_gather, on each [N, V] of the shapes once."""
        for n, v in dict.fromkeys((n, v) for n, _, v in self.shapes):
            self.case("a", shape_name(n, v), self.one_of_a, n, v)

    def one_of_a(self, n: int, v: int) -> None:
        """Run operation a on logits [n, v]."""
        head = make_head(n, 512, v, device=self.device)
        with torch.no_grad():
            logits = head.hidden @ head.weight.T
        targets, truth = head.targets, LogitsTruth(logits, head.targets)
        coefficients = torch.linspace(-1, 2, n, device=self.device)
        scratch = torch.empty_like(logits).requires_grad_()
        kept = logits.detach().requires_grad_()
        del head

        def make_step(peer: Peer, function: Callable[..., Tensor]) -> Step:
            leaf = scratch if peer.overwrites_logits else kept

            def backward(out: Tensor) -> tuple[Tensor, ...]:
                return torch.autograd.grad(out, leaf, coefficients if out.dim() else None)

            restore = (lambda: scratch.data.copy_(logits)) if peer.overwrites_logits else None
            return Step(lambda: function(leaf, targets), backward, restore)

        def make_check(peer: Peer) -> Check:
            by = coefficients if peer.gives == "logps" else torch.full_like(coefficients, -1)
            return lambda out, gradients: truth.check(by, out, *gradients)

        self.compare("a", shape_name(n, v), peers.LOGITS, make_step, make_check)

    def b(self) -> None:
        """linear_log_softmax_gather, forward alone and with backward."""
        for shape in self.shapes:
            self.case("b forward", shape_name(*shape), self.one_of_b, *shape)

    def one_of_b(self, n: int, d: int, v: int) -> None:
        """Run operation b at one shape."""
        head, case = make_head(n, d, v, self.pairs_of(n), self.device), shape_name(n, d, v)
        truth = HeadTruth(head)
        by = torch.linspace(-1, 2, len(head.targets), device=self.device)
        leaves = head.hidden, head.weight
        args = (*leaves, head.targets)

        def forward_only(_: Peer, function: Callable[..., Tensor]) -> Step:
            return Step(lambda: torch.no_grad()(function)(*args))

        def both(_: Peer, function: Callable[..., Tensor]) -> Step:
            return Step(lambda: function(*args), lambda out: grads(out, *leaves, by=by))

        def make_check(peer: Peer) -> Check:
            return checker(truth, peer.gives, by)

        bare = Step(bare_products(head)[0])
        self.compare("b forward", case, peers.LINEAR, forward_only, make_check, bare)
        del bare  # and its outputs with it
        training = "b training", case
        self.case(*training, self.compare, *training, peers.LINEAR, both, make_check)

    def c(self) -> None:
        """linear_pair_loss at the shapes, then over pairs of whole sequences."""
        for shape in self.shapes:
            self.case("c", shape_name(*shape), self.one_of_c, *shape)
        for pairs, length, share in TINY_PAIRS if self.tiny else PAIRS:
            case = f"{pairs} x 2 x {length}, {share:.0%} response"
            self.case("c pairs", case, self.one_of_c_pairs, case, pairs, length, share)

    def one_of_c(self, n: int, d: int, v: int) -> None:
        """Run operation c at one shape."""
        head = make_head(n, d, v, self.pairs_of(n), self.device)
        self.train(("c", shape_name(n, d, v)), head, peers.TRAINING)

    def one_of_c_pairs(self, case: str, pairs: int, length: int, share: float) -> None:
        """Run operation c over whole sequences."""
        d, v = (64, 512) if self.tiny else (4096, 128256)
        head = make_padded_head(pairs, length, share, d, v, self.device)
        self.train(("c pairs", case), head, peers.PAIRS)

    def train(self, where: tuple[str, str], head: Head, candidates: tuple[Peer, ...]) -> None:
        """Run a training step's loss, forward and backward, on ``head``."""
        truth = HeadTruth(head)
        forward, d_hidden, d_weight = bare_products(head)
        bare = Step(forward, lambda _: (d_hidden(), d_weight()))
        leaves = head.hidden, head.weight

        def make_step(peer: Peer, function: Callable[..., Tensor]) -> Step:
            args = (head,) if peer.gives == "pairs" else (*leaves, head.targets)
            return Step(lambda: function(*args), lambda out: grads(out, *leaves))

        no_matter = torch.zeros(len(head.targets), device=self.device)  # all are scalars
        self.compare(
            *where,
            candidates,
            make_step,
            lambda peer: checker(truth, peer.gives, no_matter),
            bare,
        )

    def pairs_of(self, num_rows: int) -> int:
        """Return how many pairs the rows of a shape make."""
        return 2 if self.tiny else num_rows // (2 * SEQUENCE_TOKENS)


def shape_name(*sizes: int) -> str:
    """Return the name of a shape's case, as 8192 x 4096 x 128256."""
    return " x ".join(map(str, sizes))


def grads(out: Tensor, *leaves: Tensor, by: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the gradients of a scalar, or of log-probs [N] weighted ``by`` [N]."""
    return torch.autograd.grad(out, leaves, by if out.dim() else None)


def bare_products(head: Head) -> tuple[Callable[[], Tensor], ...]:
    """Return the three products of a head's forward and backward, outputs preallocated.

    X W^T, G W and G^T X with G = onehot - softmax of these very inputs: products run faster on
    matrices of small numbers, and a ceiling must not be made with others.
    """
    hidden, weight = head.scored().detach(), head.weight.detach()
    logits = hidden.new_empty(len(hidden), len(weight))
    gradient = torch.empty_like(logits)
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
    for rows in torch.arange(len(hidden), device=hidden.device).split(_CHUNK):
        probs = (hidden[rows] @ weight.T).float().softmax(1)
        probs[torch.arange(len(rows), device=rows.device), head.targets[rows]] -= 1
        gradient[rows] = probs.neg_().to(gradient.dtype)
    return (
        lambda: torch.mm(hidden, weight.T, out=logits),
        lambda: torch.mm(gradient, weight, out=d_hidden),
        lambda: torch.mm(gradient.T, hidden, out=d_weight),
    )
