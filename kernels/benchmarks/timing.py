"""Interleaved timing of candidates: CUDA events on a GPU, the clock on a CPU.

All candidates of a case take turns within a round, so that a drift of the card's clock meets all of
them alike. A candidate that fails drops out with its reason and the others go on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MIB = 2**20
_FLUSH_BYTES = 2**28
"""Written before every measurement on a GPU: several times the L2 cache of a data-center card."""

_HEAD_START_CYCLES = 2_000_000
"""About a millisecond of the card: the host has queued its launches before the card needs them."""

_MIN_ROUNDS = 5


@dataclass
class Step:
    """What is timed: ``forward``, then ``backward`` of what it returned.

    Attributes:
        forward: Makes the output.
        backward: Makes the gradients [..] of it, or None for forward only.
        restore: Puts back inputs that a step destroys; not timed.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], tuple[Tensor, ...]] | None = None
    restore: Callable[[], None] | None = None


@dataclass
class Measured:
    """One candidate of one case.

    Attributes:
        name: The candidate's.
        gives: "logps", "sum" or "pairs", as in :mod:`peers`; "" for what has no result.
        ours: One of ours, not a peer.
        forward_ms: Median time of the forward, in milliseconds.
        backward_ms: Median time of the backward, in milliseconds; None without one.
        total_ms: Median of the sum of both, in milliseconds.
        peak_mib: Most memory held beyond the inputs, gradients included, in MiB; None on a CPU.
        first_seconds: The first call with compilation and autotuning, in seconds.
        rounds: How many times the medians are of.
        errors: Differences from fp64, see :mod:`truth`.
        reason: Why there is no result, in one line.
    """

    name: str
    gives: str = ""
    ours: bool = False
    forward_ms: float | None = None
    backward_ms: float | None = None
    total_ms: float | None = None
    peak_mib: float | None = None
    first_seconds: float | None = None
    rounds: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


class ContextLostError(RuntimeError):
    """The CUDA context is dead, so nothing can be measured any more in this process."""


def one_line(error: BaseException) -> str:
    """Return an error's kind and the start of its message, without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


class Timer:
    """Times steps on one device.

    Args:
        device: Where the candidates run.
        repeats: Rounds of a case.
        seconds: What one candidate may take of a case, in seconds: it then stops taking turns,
            though not before its fifth.
    """

    def __init__(self, device: torch.device, repeats: int, seconds: float) -> None:
        self.device = device
        self.repeats = repeats
        self.seconds = seconds
        self.cuda = device.type == "cuda"
        self._flush = (
            torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device) if self.cuda else None
        )

    def rounds(self, steps: dict[str, Step], results: dict[str, Measured]) -> None:
        """Time ``steps`` in turns and write the medians into ``results``, failures too."""
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        spent = dict.fromkeys(steps, 0.0)
        for done in range(self.repeats):
            for name, step in steps.items():
                late = spent[name] > self.seconds and done >= _MIN_ROUNDS
                if results[name].reason is not None or late:
                    continue
                started = time.perf_counter()
                try:
                    samples[name].append(self.once(step))
                except Exception as error:  # a peer's failure is its result
                    self.failed(results[name], error)
                spent[name] += time.perf_counter() - started
        for name, taken in samples.items():
            if results[name].reason is None and taken:
                self._write_medians(results[name], taken, steps[name].backward is not None)

    @staticmethod
    def _write_medians(
        result: Measured, taken: list[tuple[float, float]], with_backward: bool
    ) -> None:
        result.rounds = len(taken)
        result.forward_ms = statistics.median(forward for forward, _ in taken)
        result.total_ms = statistics.median(sum(both) for both in taken)
        if with_backward:
            result.backward_ms = statistics.median(backward for _, backward in taken)

    def once(self, step: Step) -> tuple[float, float]:
        """Return the milliseconds of one forward and one backward (0 without one)."""
        if step.restore is not None:
            step.restore()
        if self._flush is None:
            return self._once_on_cpu(step)
        self._flush.zero_()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        torch.cuda._sleep(_HEAD_START_CYCLES)
        marks[0].record()
        output = step.forward()
        marks[1].record()
        gradients = step.backward(output) if step.backward is not None else ()
        marks[2].record()
        torch.cuda.synchronize()
        del output, gradients
        return marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])

    @staticmethod
    def _once_on_cpu(step: Step) -> tuple[float, float]:
        marks = [time.perf_counter()]
        output = step.forward()
        marks.append(time.perf_counter())
        if step.backward is not None:
            step.backward(output)
        marks.append(time.perf_counter())
        return (marks[1] - marks[0]) * 1e3, (marks[2] - marks[1]) * 1e3

    def warm_up(
        self, step: Step, result: Measured, check: Callable[[Any, tuple[Tensor, ...]], Any]
    ) -> None:
        """Run ``step`` twice: compile, take the peak memory, and let ``check`` see what it made."""
        try:
            started = time.perf_counter()
            self.once(step)
            result.first_seconds = time.perf_counter() - started
            if step.restore is not None:
                step.restore()
            held = self._start_of_peak()
            output = step.forward()
            gradients = step.backward(output) if step.backward is not None else ()
            if self.cuda:
                torch.cuda.synchronize()
                result.peak_mib = (torch.cuda.max_memory_allocated() - held) / MIB
            result.errors = check(output, gradients)
        except Exception as error:  # a peer's failure is its result
            self.failed(result, error)

    def _start_of_peak(self) -> int:
        if not self.cuda:
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def failed(self, result: Measured, error: Exception) -> None:
        """Note why a candidate has no result; raise if it took the CUDA context with it."""
        result.reason = one_line(error)
        error.__traceback__ = None  # its frames hold the candidate's tensors
        if not self.cuda:
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise ContextLostError(
                f"{result.name} broke the CUDA context: {result.reason}"
            ) from None
        torch.cuda.empty_cache()
