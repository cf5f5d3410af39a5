"""Seconds and peak memory of a training step, on a GPU or a CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Clock:
    """Seconds and peak memory of steps on one device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def _now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _resident(self, what: str) -> int:
        """Return an entry of ``/proc/self/status``, in bytes."""
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition(f"{what}:")[2].split()[0])

    def _before(self) -> int:
        """Reset the high-water mark; return the bytes in use."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns free memory to the system
        Path("/proc/self/clear_refs").write_text("5")
        return self._resident("VmRSS")

    def once(
        self, step: Callable[[int, bool], float], number: int, learns: bool = True
    ) -> tuple[float, float, float]:
        """Take a step; return its loss, its seconds, and the MiB beyond those in use before."""
        before, started = self._before(), self._now()
        loss = step(number, learns)
        seconds = self._now() - started
        peak = torch.cuda.max_memory_allocated() if self.cuda else self._resident("VmHWM")
        return loss, seconds, (peak - before) / 2**20
